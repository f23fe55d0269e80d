"""`plan --model M --gpu G`: what fits, what it costs, and which to take."""

from dataclasses import replace
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from tuneplan import __version__
from tuneplan.hardware_profiles.loader import load_gpu_file, load_price_file
from tuneplan.planner.cli.config_words import for_search
from tuneplan.planner.cli.data_words import data_options, with_data
from tuneplan.planner.cli.main import LazyGroup
from tuneplan.planner.cli.money import money_options, narrowed, owned_target, read_overheads, read_purchase
from tuneplan.planner.cli.options import (
    Step,
    calibrated,
    calibration_option,
    config_options,
    json_option,
    length_of,
    lora_options,
    margin_options,
    peft_config_option,
    read_method,
    read_methods,
    read_own_method,
    refuse_short_forms,
    safety_margin,
    stack,
    step_options,
    write_file,
)
from tuneplan.planner.cli.progress import progress
from tuneplan.planner.cli.sweep import check_plot, sweep_options, sweep_search
from tuneplan.planner.cli.traced import read_any_model, with_traces
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.job import AUTO, DEFAULT_METHODS, DEFAULT_OPTIMIZERS, OBJECTIVES, Job
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.registry import checkpointing_kinds, suited
from tuneplan.planner.parallel.splits import LAYOUTS
from tuneplan.planner.report import document
from tuneplan.planner.target import ANY, Target, of_gpu, of_memory, targets
from tuneplan.planner.training.attention_kernel import AMPERE
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import CHECKPOINTING
from tuneplan.planner.units import parse_bytes, parse_count

EXAMPLES = """\b
Examples:
  plan --model 70b --gpu a100-80g
  plan --model 70b --gpu p4de.24xlarge --method full,lora --seq-len 512
  plan --model 8b --gpu rtx-4090 --gpus 1 --tokens 50M
  plan --model ./config.json --gpu any --max-usd 50
  plan estimate --model 7b --method lora --micro-batch-size 8 --seq-len 512
"""

DEFAULT_TOKENS = "10M"
COMPARED = "full,lora,qlora,dora,lora_fa,ia3,vera,prompt_tuning"
"""What `plan compare` holds side by side unless it is told."""

job_options = stack(
    click.option("--model", metavar="M", help="Alias (70b), hub id of the catalog, or path to a config.json or its folder."),
    config_options,
    click.option("--gpu", "gpus_named", metavar="G", help="GPU ids or instance types, comma-separated; any; local."),
    click.option("--gpu-memory", metavar="SIZE", help="Memory of a card that is not known, such as 24GiB: no time, no price."),
    click.option("--gpu-file", metavar="FILE", help="Your own card, a TOML file like those of hardware_profiles/gpus."),
    click.option("--prices", metavar="FILE", help="Your own prices (CSV), or skypilot: its catalogs here."),
    lora_options,
    peft_config_option,
    click.option("--gpus", default=AUTO, show_default=True, metavar="N|auto", help="Numbers of GPUs, comma-separated."),
    step_options,
    click.option("--global-batch-size", type=int, default=64, show_default=True, help="Sequences of one update."),
    click.option("--micro-batch-size", type=int, default=None, help="Only this micro-batch."),
    click.option("--tokens", default=None, help=f"Tokens to train on.  [default: {DEFAULT_TOKENS}]"),
    click.option("--samples", default=None, help="Sequences of the data set, instead of tokens."),
    click.option("--epochs", type=int, default=None, help="With --samples or --dataset: passes over them.  [default: 1]"),
    click.option("--dtype", default=AUTO, show_default=True, metavar="bf16|fp16|fp32", help="Of weights and activations."),
    click.option(
        "--precision",
        default=AUTO,
        show_default=True,
        metavar="pure|master-weights|autocast",
        help="auto: fp32 master weights where the base is trained.",
    ),
    click.option(
        "--optimizer",
        default=",".join(DEFAULT_OPTIMIZERS),
        show_default=True,
        metavar="NAMES",
        help="Optimizers to consider.",
    ),
    click.option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=None,
        help="Only with, or only without; both if neither.",
    ),
    click.option("--zero-stage", type=int, default=None, help="Only this stage (0 is DDP); all if not given."),
    click.option("--objective", default="cost", show_default=True, metavar="cost|time|memory", help="What to make least."),
    data_options,
    money_options,
    calibration_option,
    click.option("--max-hours", type=float, default=None, help="Leave out slower plans."),
    click.option("--max-usd", default=None, help="Leave out dearer plans."),
    margin_options,
)

method_option = click.option(
    "--method", default=",".join(DEFAULT_METHODS), show_default=True, metavar="NAMES", help="Methods to consider."
)
why_not_option = click.option(
    "--why-not", metavar="WISH", help="What is wrong with a configuration, such as method=qlora,gpus=2,optimizer=adamw."
)
layouts_option = click.option(
    "--layouts",
    default=LAYOUTS[0],
    show_default=True,
    metavar="|".join(LAYOUTS),
    help="all: split the model too (TP, PP, CP, EP).",
)
html_option = click.option("--html", metavar="FILE", help="Also write the report as HTML.")


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@method_option
@job_options
@layouts_option
@html_option
@why_not_option
@sweep_options
@json_option
@click.version_option(__version__, prog_name="plan", message="%(prog)s %(version)s")
@click.pass_context
def plan(ctx: click.Context, /, **given: Any) -> int:
    """What does it take to fine-tune a model: which configuration fits, how long it runs, what it costs."""
    if ctx.invoked_subcommand is not None:
        return 0
    if given["model"] is None and not given["configs"]:
        raise InputError("name a model: plan --model 70b --gpu a100-80g (plan --help)")
    check_plot(given["sweep"], given["plot"])
    if given["sweep"] is not None:
        return sweep_search(given, given["sweep"], given["plot"], given["as_json"])
    job = job_of(given)
    from tuneplan.planner.savings import plan_savings
    from tuneplan.planner.search import find

    with progress(job.candidates, "candidates") as told:
        answer = find(job, date.today(), told)
    found = plan_savings(answer.plans[0]) if answer.plans else ()
    why = None
    if given["why_not"] is not None:
        from tuneplan.planner.why_not import why_not

        why = why_not(job, answer, given["why_not"], date.today())
    if given["html"] is not None:
        from tuneplan.planner.report.answer import render
        from tuneplan.planner.report.terminal import console

        page = console(record=True, quiet=True)
        page.print(render(answer, given["model"] or answer.job.spec.id, found, why))
        write_file(given["html"], page.export_html())
    if given["as_json"]:
        from tuneplan.planner.report.json_report import answer_json

        click.echo(document.text(answer_json(answer, found, why)))
    else:
        from tuneplan.planner.report.answer import render
        from tuneplan.planner.report.terminal import console

        console().print(render(answer, given["model"] or answer.job.spec.id, found, why))
    return 0 if answer.plans else 1


def job_of(given: dict[str, Any]) -> Job:
    """The job of the command line's words and of its config files. Raises InputError and the loader's errors."""
    given, files = for_search(given)
    spec = read_any_model(given["model"], given["task"], given["num_labels"])
    step = Step(**{name: given[name] for name in Step.__slots__})
    length = length_of(step.seq_len, spec)
    stages: tuple[int, ...] = (0, 1, 2, 3)
    if given["zero_stage"] is not None:
        if given["zero_stage"] not in stages:
            raise InputError(f"zero-stage {given['zero_stage']} does not exist; use 0, 1, 2 or 3")
        stages = (given["zero_stage"],)
    if given["objective"] not in OBJECTIVES:
        raise UnknownNameError("objective", given["objective"], OBJECTIVES, "plan --help")
    micro = given["micro_batch_size"]
    if micro is not None and (micro < 1 or given["global_batch_size"] % micro):
        raise InputError(
            f"micro-batch-size {micro} does not divide global-batch-size {given['global_batch_size']}; use a divisor of it"
        )
    checkpointing = checkpointing_kinds(spec)
    if given["gradient_checkpointing"] is not None:
        checkpointing = (CHECKPOINTING[1] if given["gradient_checkpointing"] else CHECKPOINTING[0],)
    refuse_short_forms(given["peft_config"] is not None, given["rank"], given["target_modules"])
    if isinstance(given["method"], Method):
        methods: tuple[Method, ...] = (read_method(given["method"], given["rank"], given["target_modules"]),)
    elif given["peft_config"] is None:
        names = method_names(given["method"])
        if given["method"] in (COMPARED, ",".join(DEFAULT_METHODS)) and given["target_modules"] is None:
            names = suited(spec, names)
        methods = read_methods(names, given["rank"], given["target_modules"])
    else:
        methods = (read_own_method(given["peft_config"], spec),)
    job = Job(
        spec=spec,
        methods=methods,
        targets=tuple({target.label: target for target in _targets(given)}.values()),
        tokens=_tokens(given, length),
        global_batch_size=given["global_batch_size"],
        settings=step.settings(length),
        precision=given["precision"],
        dtype=given["dtype"],
        checkpointing=checkpointing,
        micro_batch_sizes=(micro,) if micro is not None else (),
        optimizers=tuple(find_optimizer(name) for name in given["optimizer"].split(",")),
        zero_stages=stages,
        layouts=given.get("layouts", LAYOUTS[0]),
        objective=given["objective"],
        purchase=read_purchase(given),
        safety_margin=safety_margin(given["safety_margin"], given["oom_chance"]),
        max_hours=given["max_hours"],
        max_usd=_dollars(given["max_usd"]),
        config=files,
        overheads=read_overheads(given),
    )
    return with_traces(with_data(job, given))


def method_names(text: str) -> list[str]:
    """Methods separated by commas outside parentheses."""
    names, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            names.append(text[start:index])
            start = index + 1
    return [*names, text[start:]]


def _targets(given: dict[str, Any]) -> list[Target]:
    counts = _counts(given["gpus"])
    result: list[Target] = []
    for option in ("gpu_file", "prices", "gpu_memory", "html", "owned"):
        if given.get(option) is not None and not given[option].strip():
            raise InputError(f"--{option.replace('_', '-')} is empty; give a value or leave it out")
    own = load_gpu_file(given["gpu_file"]) if given["gpu_file"] else None
    extra = load_price_file(given["prices"], [own] if own else []) if given["prices"] else []
    if own is not None:
        result.append(of_gpu(own, counts, [offer for offer in extra if offer.instance.gpu == own.id]))
    if given["gpu_memory"]:
        result.append(of_memory(parse_bytes(given["gpu_memory"]), counts))
    if given["gpus_named"]:
        names = [name.strip() for name in given["gpus_named"].split(",")]
        result += [t for t in targets(names, counts, extra) if ANY not in names or _can(t, given["attention"])]
    if given["owned"]:
        result.append(owned_target(given["owned"], counts))
    if not result:
        raise InputError("name a card: --gpu a100-80g, an instance, any or local; or --gpu-memory 24GiB (plan gpus)")
    return [_calibrated(narrowed(target, given), given["calibration"]) for target in result]


def _calibrated(target: Target, path: str | None) -> Target:
    return target if target.gpu is None else replace(target, gpu=calibrated(target.gpu, path))


def _can(target: Target, attention: str) -> bool:
    """Whether a card of `any` can run the attention asked for (FlashAttention-2 needs Ampere)."""
    capability = target.gpu.compute_capability if target.gpu else None
    return attention != "flash" or capability is None or capability >= AMPERE


def _counts(text: str) -> tuple[int, ...] | None:
    if text == AUTO:
        return None
    try:
        counts = tuple(sorted({int(item) for item in text.split(",")}))
    except ValueError:
        raise InputError(f"--gpus {text!r} is not a number of GPUs; use such as 1, 8 or 1,2,4, or auto") from None
    if counts[0] < 1 or counts[-1] > 1024:
        raise InputError(f"--gpus {text} is not a number of GPUs of a machine; use 1 to 1024")
    return counts


def _tokens(given: dict[str, Any], seq_len: int) -> int:
    samples, epochs = given["samples"], given["epochs"]
    if given["dataset"] is not None or given["lengths"] is not None:
        if samples is not None and given["dataset"] is not None:
            raise InputError("--samples and --dataset both say how many sequences there are; leave --samples out")
        return 1  # the data say
    if samples is None:
        if epochs is not None:
            raise InputError(
                f"--epochs {epochs} needs --samples or --dataset: passes over how many sequences; or give --tokens alone"
            )
        return parse_count(given["tokens"] if given["tokens"] is not None else DEFAULT_TOKENS)
    if given["tokens"] is not None:
        raise InputError("--samples and --tokens both say how much to train on; give one of them")
    passes: float = 1 if epochs is None else epochs
    if passes <= 0 or (passes < 1 and isinstance(passes, int)):
        raise InputError(f"--epochs {passes} is no pass over the data; use 1 or more")
    return max(1, int(parse_count(samples) * passes * seq_len))


def _dollars(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        raise InputError(f"--max-usd {text!r} is not an amount; write a number such as 50") from None
    if not amount.is_finite():
        raise InputError(f"--max-usd {text!r} is not an amount; write a number such as 50")
    return amount

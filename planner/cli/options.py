"""Options that several commands share, and how their words become a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.device_memory import DEFAULT_OOM_CHANCE
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import override, parse
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.request import LONGEST_SEQUENCE
from tuneplan.planner.training.objective import Objective, objective_of
from tuneplan.planner.training.settings import BITSANDBYTES, Settings
from tuneplan.planner.units import parse_bytes

DEFAULT_LENGTH = 2048
MOST_IMAGES = 1024
F = TypeVar("F", bound=Callable[..., Any])


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model_option = click.option(
    "--model",
    default=None,
    metavar="M",
    help="Alias (70b), hub id of the catalog, or path to a config.json or its folder.",
)

lora_options = stack(
    click.option("--rank", type=int, default=None, metavar="R", help="Rank r of low-rank parts (their own default: 8)."),
    click.option(
        "--target-modules",
        default=None,
        metavar="NAMES",
        help="Modules to adapt, such as q_proj,v_proj, or all-linear.",
    ),
)

config_options = stack(
    click.option(
        "--config",
        "configs",
        multiple=True,
        metavar="FILE",
        help="A training config (TRL, accelerate, DeepSpeed, axolotl, LLaMA-Factory, torchtune, ...); several: later ones win.",
    ),
    click.option(
        "--config-format",
        "config_formats",
        multiple=True,
        metavar="NAME",
        help="Whose config it is, such as trl-dpo or axolotl; recognised by its keys if not given.",
    ),
)

peft_config_option = click.option(
    "--peft-config", "peft_config", default=None, metavar="FILE", help="Your own PEFT adapter_config.json, instead of --method."
)

step_options = stack(
    click.option(
        "--task",
        default="",
        metavar="TASK",
        help=f"{', '.join(tasks.SHORT)} or their long forms.  [default: what the architecture is for]",
    ),
    click.option(
        "--num-labels", type=int, default=None, metavar="N", help="Classes of a classification.  [default: the config's]"
    ),
    click.option(
        "--seq-len",
        type=int,
        default=None,
        help=f"Tokens of a sequence.  [default: {DEFAULT_LENGTH}, or as many as the model has positions]",
    ),
    click.option(
        "--target-len", type=int, default=None, help="Tokens of a target, for encoder-decoders.  [default: those of a sequence]"
    ),
    click.option(
        "--images",
        type=int,
        default=1,
        show_default=True,
        help="Images in each sequence, for models that read both; 0: text alone.",
    ),
    click.option(
        "--image-size",
        default=None,
        metavar="WxH",
        help="Pixels of an image, such as 1280x720, or of its sides, for models that read images of any size.  [default: 768]",
    ),
    click.option("--attention", default="sdpa", show_default=True, metavar="eager|sdpa|flash", help="Attention implementation."),
    click.option(
        "--loss",
        default="eager",
        show_default=True,
        metavar="eager|liger|chunked|...",
        help="Loss; shifted, shifted_fp32: transformers 4.",
    ),
    click.option("--attention-dropout", type=float, default=None, help="Overrides the model's own attention dropout."),
    click.option("--padded", is_flag=True, help="Sequences are padded, so attention gets a mask."),
    click.option("--keep-outputs", is_flag=True, help="Your loop keeps the model's outputs alive (outputs = model(...))."),
    click.option("--use-cache", is_flag=True, help="The model keeps keys and values (the Trainer turns that off)."),
    click.option(
        "--training", default="sft", show_default=True, metavar="sft|reward|dpo|grpo", help="Towards what; TRL's trainers."
    ),
    click.option(
        "--reference", default=None, metavar="adapters-off|model|precomputed|none", help="Of DPO and GRPO.  [default: as TRL]"
    ),
    click.option("--completion-length", type=int, default=None, help="Tokens of --seq-len that are scored (DPO, GRPO)."),
    click.option("--num-generations", type=int, default=None, help="Completions of a prompt (GRPO).  [default: 8]"),
    click.option(
        "--vllm-memory", default=None, metavar="SIZE", help="GRPO generates by a vLLM engine on the card, of that size."
    ),
    click.option(
        "--kernels",
        default=BITSANDBYTES,
        show_default=True,
        metavar="bitsandbytes|tuneplan",
        help="That dequantize 4-bit weights; tuneplan: of a patched model.",
    ),
    click.option("--max-grad-norm", type=float, default=1.0, show_default=True, help="Clip gradients; 0 for no clipping."),
)

margin_options = stack(
    click.option(
        "--oom-chance",
        type=float,
        default=DEFAULT_OOM_CHANCE,
        show_default=True,
        help="Chance of running out of memory that you accept; sets the safety margin.",
    ),
    click.option("--safety-margin", type=float, default=None, help="Share of memory to keep free, instead of --oom-chance."),
)

calibration_option = click.option(
    "--calibration", default=None, metavar="FILE", help="Constants of the card that plan calibrate fitted, instead of ours."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


@dataclass(frozen=True, slots=True)
class Step:
    """The values of `step_options`."""

    seq_len: int | None
    target_len: int | None
    images: int
    image_size: str | None
    attention: str
    loss: str
    attention_dropout: float | None
    padded: bool
    keep_outputs: bool
    use_cache: bool
    max_grad_norm: float
    training: str
    reference: str | None
    completion_length: int | None
    num_generations: int | None
    vllm_memory: str | None
    kernels: str

    def objective(self, length: int) -> Objective:
        """What is trained towards. Raises InputError."""
        found = objective_of(self.training, self.reference, self.completion_length, self.num_generations, length)
        if self.vllm_memory is None:
            return found
        if self.training != "grpo":
            raise InputError(f"--training {self.training} generates nothing; leave --vllm-memory out")
        return replace(found, vllm_bytes=parse_bytes(self.vllm_memory))

    def settings(self, length: int) -> Settings:
        """As settings of a run, `length` tokens long. Raises InputError for a dropout that is not a probability."""
        if self.target_len is not None and not 2 <= self.target_len <= LONGEST_SEQUENCE:
            raise InputError(f"target-len {self.target_len} is not a length to train on; use 2 to {LONGEST_SEQUENCE} tokens")
        if not 0 <= self.images <= MOST_IMAGES:
            raise InputError(f"images {self.images} is not a number of images in a sequence; use 0 to {MOST_IMAGES}")
        if self.attention_dropout is not None and not 0 <= self.attention_dropout < 1:
            raise InputError(f"attention-dropout {self.attention_dropout} is not a probability below 1; use such as 0.1")
        if self.training != "sft" and self.loss not in ("eager", "trl"):
            raise InputError(f"--training {self.training} has TRL's own loss, not {self.loss}; leave --loss out")
        return Settings(
            objective=self.objective(length),
            seq_len=length,
            target_len=self.target_len,
            images=self.images,
            image_size=None if self.image_size is None else image_size_of(self.image_size),
            attention=self.attention,
            loss=self.loss if self.training == "sft" else "trl",
            attention_dropout=self.attention_dropout,
            padded=self.padded,
            keep_outputs=self.keep_outputs,
            use_cache=self.use_cache,
            max_grad_norm=self.max_grad_norm,
            kernels=self.kernels,
        )


def image_size_of(given: str) -> tuple[int, int]:
    """Height and width of `--image-size`, which has the width first. Raises InputError."""
    sides = given.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() for side in sides):
        raise InputError(f"image-size {given!r} is not a size in pixels; write such as 768, or 1280x720 (wide x high)")
    wide, high = int(sides[0]), int(sides[-1])
    return high, wide


def safety_margin(given: float | None, oom_chance: float) -> float:
    """The share of memory to keep free: as given, or from the accepted chance. Raises InputError for what is neither."""
    if given is None:
        from tuneplan.planner.uncertainty import margin

        return margin(oom_chance)
    if not 0 <= given < 1:
        raise InputError(f"safety-margin {given} is not a share of memory; use a value such as 0.05")
    return given


def calibrated(gpu: Gpu, path: str | None) -> Gpu:
    """The card with the constants of a file. Raises InputError for those of another card, and the loader's errors."""
    if path is None:
        return gpu
    from tuneplan.hardware_profiles.calibrations import read_calibration

    found = read_calibration(path)
    if found.gpu != gpu.id:
        raise InputError(f"{path} was fitted on {found.gpu}, and the card is {gpu.id}; give its own, or leave --calibration out")
    return replace(gpu, calibration=found)


def load_model(name: str | None, num_labels: int | None = None) -> tuple[str, ConfigReader]:
    """The name and the config of `--model`, with the classes of `--num-labels`. Raises InputError."""
    if name is None:
        raise InputError("Missing option '--model': name one such as 70b, or give a training config that does with --config")
    if not name.strip():
        raise InputError("--model is empty; name one such as 70b, or a path to a config.json")
    id, config = load(name)
    return (id, config) if num_labels is None else (id, tasks.with_labels(config, num_labels))


def read_model(name: str, task: str = "", num_labels: int | None = None) -> ModelSpec:
    """The spec of `--model` for `--task`. Raises InputError."""
    task = tasks.task_name(task)
    spec = read_spec(*load_model(name, num_labels), task)
    tasks.check_labels(spec, num_labels)
    return spec


def length_of(given: int | None, spec: ModelSpec | None) -> int:
    """The length of `--seq-len`, by default 2048, or as long as the model's positions (or its images) are.

    `spec`: None for a model that the planner does not know. Raises InputError for a length where images decide it.
    """
    if spec is not None and spec.fixed_length:
        if given is not None and given != spec.fixed_length:
            raise InputError(
                f"--seq-len {given} cannot be: an image of {spec.id} is {spec.fixed_length} patches; leave --seq-len out"
            )
        return spec.fixed_length
    longest = DEFAULT_LENGTH if spec is None or spec.longest is None else min(DEFAULT_LENGTH, spec.longest)
    return longest if given is None else given


def refuse_short_forms(own: bool, rank: int | None, target_modules: str | None) -> None:
    """Raise InputError where `--rank` or `--target-modules` is given beside a `--peft-config`."""
    if own and (rank is not None or target_modules is not None):
        raise InputError("--peft-config has its own rank and target modules; leave --rank and --target-modules out")


def read_own_method(path: str, spec: ModelSpec) -> Method:
    """The method of `--peft-config`; what is not modelled is said on stderr. Raises InputError."""
    from tuneplan.planner.methods.peft_config import check_base, check_dimensions, read_peft_config

    given = read_peft_config(path)
    check_dimensions(given, spec)
    for warning in (*given.warnings, check_base(given, spec.model_type, spec.id)):
        if warning:
            click.echo(f"note: {warning}", err=True)
    return given.method


def read_method(text: str | Method, rank: int | None, target_modules: str | None) -> Method:
    """The method of `--method`, or of a config file, with the short forms applied. Raises InputError."""
    forms = _short_forms(rank, target_modules)
    return override(text, forms) if isinstance(text, Method) else parse(text, forms)


def read_methods(texts: Sequence[str], rank: int | None, target_modules: str | None) -> tuple[Method, ...]:
    """Several methods, each once; a short form goes to those that have it. Raises InputError where none has."""
    given = _short_forms(rank, target_modules)
    methods: dict[str, Method] = {}
    taken: set[str] = set()
    for text in texts:
        own = {f.name for part in parse(text).parts for f in fields(part)}
        method = parse(text, {name: value for name, value in given.items() if name in own})
        taken |= own & given.keys()
        methods.setdefault(method.name, method)
    missing = sorted(given.keys() - taken)
    if missing:
        raise InputError(
            f"{', '.join(texts)} has no option {missing[0]}; add a method that has it, such as lora, or leave it out"
        )
    return tuple(methods.values())


def write_file(path: str, content: str | bytes) -> None:
    """Write a report. Raises InputError where that cannot be."""
    try:
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise InputError(f"{path!r} cannot be written: {reason}; choose another file") from None


def _short_forms(rank: int | None, target_modules: str | None) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    if rank is not None:
        forms["r"] = rank
    if target_modules is not None:
        forms["target_modules"] = target_modules
    return forms

"""`plan estimate`: one configuration, in full."""

from typing import Any

import click

from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.cli.options import (
    Step,
    json_option,
    lora_options,
    model_option,
    peft_config_option,
    read_method,
    read_model,
    read_own_method,
    stack,
    step_options,
)
from tuneplan.planner.device_memory import DEFAULT_SAFETY_MARGIN, usable_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.report import document
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.target import Target, of_memory, targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import parse_bytes

MOST_STEPS = 2**20

request_options = stack(
    model_option,
    click.option("--method", default="lora", show_default=True, metavar="NAME", help="Method, such as qlora(r=16)."),
    lora_options,
    peft_config_option,
    step_options,
    click.option("--micro-batch-size", type=int, default=1, show_default=True, help="Sequences of one forward."),
    click.option("--gradient-accumulation-steps", type=int, default=1, show_default=True, help="Micro-batches of an update."),
    click.option("--dtype", default="bf16", show_default=True, metavar="bf16|fp16|fp32", help="Of weights and activations."),
    click.option(
        "--precision",
        default="pure",
        show_default=True,
        metavar="pure|master-weights",
        help="Whether the optimizer keeps fp32 copies of 16-bit weights.",
    ),
    click.option(
        "--optimizer",
        default="adamw",
        show_default=True,
        metavar="NAME",
        help=f"One of {', '.join(OPTIMIZERS)} (adamw is torch's foreach).",
    ),
    click.option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=None,
        help="Recompute layers in the backward.  [default: no]",
    ),
    click.option("--reentrant", is_flag=True, help="Reentrant checkpointing (non-reentrant is transformers' default)."),
    click.option("--data-parallel", type=int, default=1, show_default=True, help="GPUs, each with its own micro-batch."),
    click.option("--zero-stage", type=int, default=0, show_default=True, help="What they split: 0 nothing ... 3 weights too."),
    click.option("--expandable-segments", is_flag=True, help="PYTORCH_ALLOC_CONF=expandable_segments:True."),
    click.option("--gpu", "gpu_name", default=None, metavar="G", help="GPU or instance: gives time, and whether it fits."),
    click.option("--gpu-memory", default=None, metavar="SIZE", help="Memory of a card that is not known, such as 24GiB."),
    click.option(
        "--safety-margin",
        type=float,
        default=DEFAULT_SAFETY_MARGIN,
        show_default=True,
        help="Share of memory to keep free.",
    ),
)


@click.command(name="estimate")
@request_options
@json_option
def command(as_json: bool, **given: Any) -> int:
    """One configuration, in full: memory by phase and component, time, checkpoint.

    \b
    Examples:
      plan estimate --model 7b --method lora --micro-batch-size 8 --seq-len 512
      plan estimate --model 70b --method qlora --gradient-checkpointing --gpu a100-80g --json
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.estimate import estimate

    result = estimate(request_of(given))
    if as_json:
        click.echo(document.text(result.to_json()))
    else:
        from tuneplan.planner.report.terminal import console, estimate_report

        console().print(estimate_report(result))
    capacity = result.request.capacity_bytes
    return 1 if capacity is not None and result.device_bytes > capacity else 0


def request_of(given: dict[str, Any]) -> Request:
    """The request of the command line's words. Raises InputError and the loader's errors."""
    from dataclasses import replace

    spec = read_model(given["model"])
    if given["peft_config"] is None:
        method = read_method(given["method"], given["rank"], given["target_modules"])
    else:
        method = read_own_method(given["peft_config"], given["rank"], given["target_modules"], spec)
    if given["reentrant"] and given["gradient_checkpointing"] is False:
        raise InputError("--reentrant and --no-gradient-checkpointing contradict each other; give one of them")
    checkpointing = "off"
    if given["gradient_checkpointing"] or given["reentrant"]:
        checkpointing = "reentrant" if given["reentrant"] else "non-reentrant"
    settings = replace(
        Step(**{name: given[name] for name in Step.__slots__}).settings(),
        micro_batch_size=given["micro_batch_size"],
        dtype=given["dtype"],
        precision=given["precision"],
        gradient_checkpointing=checkpointing,
    )
    steps = given["gradient_accumulation_steps"]
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"gradient-accumulation-steps {steps} is not a number of micro-batches; use 1 to {MOST_STEPS}")
    sharding = Sharding(given["data_parallel"], given["zero_stage"])
    sharding.check()
    target = _target(given["gpu_name"])
    if target and target.instance and sharding.data_parallel > target.instance.gpu_count:
        instance = target.instance
        raise InputError(f"{instance.id} has {instance.gpu_count} GPUs, not {sharding.data_parallel}; lower data-parallel")
    if target and target.gpu and target.gpu.compute_capability:
        settings = replace(settings, compute_capability=target.gpu.compute_capability)
    check_settings(settings, spec)
    memory = target.memory_bytes if target else None
    if given["gpu_memory"] is not None:
        memory = of_memory(parse_bytes(given["gpu_memory"]), None).memory_bytes
    if not 0 <= given["safety_margin"] < 1:
        raise InputError(f"safety-margin {given['safety_margin']} is not a share of memory; use a value such as 0.05")
    return Request(
        spec=spec,
        method=method,
        settings=settings,
        optimizer=find_optimizer(given["optimizer"]),
        sharding=sharding,
        gradient_accumulation_steps=steps,
        gpu=_card(target),
        capacity_bytes=None if memory is None else usable_bytes(memory, given["safety_margin"]),
        expandable_segments=given["expandable_segments"],
    )


def _target(name: str | None) -> Target | None:
    if name is None:
        return None
    found = targets([name], None)
    if len(found) != 1:
        raise InputError(f"--gpu {name} names {len(found)} cards; name one")
    return found[0]


def _card(target: Target | None) -> Gpu | None:
    return target.gpu if target else None

"""The options that describe one training step, shared by `estimate`, `explain`, `trace` and `profile`, and what they mean."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import click

from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.cli.config_words import with_configs
from tuneplan.planner.cli.layout_words import (
    checkpoint_options,
    layout_options,
    read_checkpoints,
    read_layout,
    read_network,
    read_node,
)
from tuneplan.planner.cli.options import (
    Step,
    calibrated,
    calibration_option,
    config_options,
    length_of,
    load_model,
    lora_options,
    margin_options,
    model_option,
    peft_config_option,
    read_method,
    read_own_method,
    refuse_short_forms,
    safety_margin,
    stack,
    step_options,
)
from tuneplan.planner.configs.training_config import ConfigUse
from tuneplan.planner.device_memory import usable_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.host_memory import GPUS_OF_A_NODE, USUAL, Checkpoints
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.request import Request, check_settings, with_experts
from tuneplan.planner.target import Target, of_memory, targets
from tuneplan.planner.training.optimizers import OPTIMIZERS, Optimizer
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import parse_bytes

MOST_STEPS = 2**20
MOST_BATCHES = 64

request_options = stack(
    model_option,
    config_options,
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
        metavar="pure|master-weights|autocast",
        help="fp32 copies of 16-bit weights in the optimizer, or CUDA autocast (bf16=True of the Trainer).",
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
    layout_options,
    checkpoint_options,
    click.option(
        "--experts",
        default=None,
        metavar="grouped_mm|batched_mm|eager",
        help="How transformers runs a mixture of experts.  [default: grouped_mm]",
    ),
    click.option(
        "--routing",
        default=None,
        metavar="even|worst",
        help="Tokens over experts, for --experts eager and --expert-parallel; worst: all want the same.  [default: even]",
    ),
    click.option("--expandable-segments", is_flag=True, help="PYTORCH_ALLOC_CONF=expandable_segments:True."),
    click.option(
        "--batch-lengths", default="", metavar="N,N,...", help="Lengths of one batch after the other, instead of --seq-len."
    ),
    click.option("--empty-cache-steps", type=int, default=0, help="Empty the cache every so many steps; 0 for never."),
    click.option("--gpu", "gpu_name", default=None, metavar="G", help="GPU or instance: gives time, and whether it fits."),
    click.option("--gpu-memory", default=None, metavar="SIZE", help="Memory of a card that is not known, such as 24GiB."),
    calibration_option,
    margin_options,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One configuration as it was asked for, checked but for the model's own config, which `request` reads.

    Attributes are those of `Request`; `id` and `config` stand for the model, `peft_config` is the path of an adapter_config.json
    that takes the place of the method's adapters, `files` are those of `--config`.
    """

    id: str
    config: ConfigReader
    task: str
    num_labels: int | None
    peft_config: str | None
    method: Method
    settings: Settings
    optimizer: Optimizer
    sharding: Sharding
    gradient_accumulation_steps: int
    gpu: Gpu | None
    capacity_bytes: int | None
    expandable_segments: bool
    batch_lengths: tuple[int, ...]
    empty_cache_steps: int
    files: ConfigUse | None = None
    checkpoints: Checkpoints = USUAL
    gpus_of_a_node: int = GPUS_OF_A_NODE
    network_bytes_per_second: float | None = None

    @property
    def real_task(self) -> str:
        """The task of the real code: that of the estimate, as it was given where the planner does not know the model."""
        spec = _known(self.id, self.config, self.task)
        return self.task if spec is None else spec.task

    def request(self, read: Callable[[str, ConfigReader, str], ModelSpec] = read_spec) -> Request:
        """The planner's request. Raises InputError for a config, or a PEFT config, that the planner cannot read.

        `read`: makes the spec of a model's name, its config and a task.
        """
        spec = read(self.id, self.config, self.task)
        if spec.source is None:
            tasks.check_labels(spec, self.num_labels)
        return Request(
            spec=spec,
            method=self.method if self.peft_config is None else read_own_method(self.peft_config, spec),
            settings=self.settings,
            optimizer=self.optimizer,
            sharding=self.sharding,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            gpu=self.gpu,
            capacity_bytes=self.capacity_bytes,
            expandable_segments=self.expandable_segments,
            batch_lengths=self.batch_lengths,
            empty_cache_steps=self.empty_cache_steps,
            config=self.files,
            checkpoints=self.checkpoints,
            gpus_of_a_node=self.gpus_of_a_node,
            network_bytes_per_second=self.network_bytes_per_second,
        )


def asked(given: dict[str, Any], typed: Collection[str] | None = None) -> Asked:
    """The meaning of the command line's words. Raises InputError and the loader's errors.

    `typed`: options that win over those of `--config` files; None for those that were typed for the present command.
    """
    words, files = with_configs(given, typed)
    try:
        return _asked(words, files)
    except InputError as error:
        if files is None:
            raise
        raise files.located(error) from None


def _asked(given: dict[str, Any], files: ConfigUse | None) -> Asked:
    """As `asked`, for words that those of the files are among."""
    id, config = load_model(given["model"], given["num_labels"])
    task = tasks.task_name(given["task"])
    own = given["peft_config"] is not None
    refuse_short_forms(own, given["rank"], given["target_modules"])
    method = read_method(given["method"], given["rank"], given["target_modules"])
    if given["reentrant"] and given["gradient_checkpointing"] is False:
        raise InputError("--reentrant and --no-gradient-checkpointing contradict each other; give one of them")
    checkpointing = "off"
    if given["gradient_checkpointing"] or given["reentrant"]:
        checkpointing = "reentrant" if given["reentrant"] else "non-reentrant"
    lengths = batch_lengths(given["batch_lengths"])
    if given["empty_cache_steps"] < 0:
        raise InputError(
            f"empty-cache-steps {given['empty_cache_steps']} is not a number of steps; use 1 or more, or 0 for never"
        )
    words = Step(**{name: given[name] for name in Step.__slots__})
    known = _known(id, config, task)
    step = words.settings(length_of(words.seq_len, known))
    settings = replace(
        with_experts(step, given.get("experts"), given.get("routing"), known),
        seq_len=max(lengths, default=step.seq_len),
        micro_batch_size=given["micro_batch_size"],
        dtype=given["dtype"],
        precision=given["precision"],
        gradient_checkpointing=checkpointing,
    )
    steps = given["gradient_accumulation_steps"]
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"gradient-accumulation-steps {steps} is not a number of micro-batches; use 1 to {MOST_STEPS}")
    target = _target(given["gpu_name"])
    sharding = read_layout(given, target)
    if target and target.gpu and target.gpu.compute_capability:
        settings = replace(settings, compute_capability=target.gpu.compute_capability)
    check_settings(settings)
    memory = target.memory_bytes if target else None
    if given["gpu_memory"] is not None:
        memory = of_memory(parse_bytes(given["gpu_memory"]), None).memory_bytes
    margin = safety_margin(given["safety_margin"], given["oom_chance"])
    return Asked(
        checkpoints=read_checkpoints(given),
        gpus_of_a_node=read_node(given, target),
        network_bytes_per_second=read_network(given),
        id=id,
        config=config,
        task=task,
        num_labels=given["num_labels"],
        peft_config=given["peft_config"],
        method=method,
        settings=settings,
        optimizer=find_optimizer(given["optimizer"]),
        sharding=sharding,
        gradient_accumulation_steps=steps,
        gpu=_card(target, given["calibration"]),
        capacity_bytes=None if memory is None else usable_bytes(memory, margin),
        expandable_segments=given["expandable_segments"],
        batch_lengths=lengths,
        empty_cache_steps=given["empty_cache_steps"],
        files=files,
    )


def _known(id: str, config: ConfigReader, task: str) -> ModelSpec | None:
    """The spec, or None where the planner cannot read it: the real code may know the model all the same."""
    try:
        return read_spec(id, config, task)
    except InputError:
        return None


def batch_lengths(text: str) -> tuple[int, ...]:
    """The lengths of `--batch-lengths`. Raises InputError for what is no list of at most MOST_BATCHES lengths."""
    if not text:
        return ()
    pieces = text.split(",")
    if len(pieces) > MOST_BATCHES:
        raise InputError(f"batch-lengths names {len(pieces)} batches; {MOST_BATCHES} are the most that are replayed")
    try:
        lengths = tuple(int(piece) for piece in pieces)
    except ValueError:
        raise InputError(f"batch-lengths {text[:60]!r} is not a list of lengths; write such as 512,2048,1024") from None
    if min(lengths) < 2:
        raise InputError(f"batch-lengths holds {min(lengths)}, which is no length to train on; use 2 or more tokens")
    return lengths


def _target(name: str | None) -> Target | None:
    if name is None:
        return None
    found = targets([name], None)
    if len(found) != 1:
        raise InputError(f"--gpu {name} names {len(found)} cards; name one")
    return found[0]


def _card(target: Target | None, calibration: str | None) -> Gpu | None:
    if target is None or target.gpu is None:
        if calibration is not None:
            raise InputError("--calibration is of a card; name it with --gpu")
        return None
    return calibrated(target.gpu, calibration)

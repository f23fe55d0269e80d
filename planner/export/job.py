"""What is exported: one plan, the model and data it is for, and the words that every tool needs of it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tuneplan import __version__
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.modules_to_save import ModulesToSave
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.plan import Plan
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import format_gib

STYLES = ("text", "chat")
SAMPLE_DATA = "roneneldan/TinyStories"
"""A public set of short texts (column `text`), which needs no chat template, so that a job runs before the user names data."""
ADAPTER_RATE, FULL_RATE = 2e-4, 1e-5
"""Learning rates to begin with: TRL's documentation advises ten times its default of 2e-5 for adapters. No plan says which."""


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on.

    Attributes:
        name: of a data set on the Hugging Face hub, or a file of JSON lines.
        style: "text" (a column `text`) or "chat" (a column `messages`, and a model with a chat template).
    """

    name: str = SAMPLE_DATA
    style: str = "text"

    @property
    def local(self) -> bool:
        """Whether it is a file."""
        return self.name.startswith(("/", ".", "~")) or self.name.endswith((".json", ".jsonl"))


@dataclass(frozen=True, slots=True)
class Adapters:
    """A method taken apart as libraries have it.

    Attributes:
        base: the quantized base, or None.
        part: the part that PEFT adds, or None for full fine-tuning.
        saved: names of PEFT's `modules_to_save`.
    """

    base: QuantizedBase | None
    part: Part | None
    saved: tuple[str, ...]

    @property
    def lora(self) -> Lora | None:
        """The part, if it is LoRA."""
        return self.part if isinstance(self.part, Lora) else None

    @property
    def fp32(self) -> bool:
        """Whether adapters are kept in fp32 whatever the model's dtype (PEFT's default)."""
        return bool(getattr(self.part, "autocast_adapter_dtype", True))

    def config(self, base_model: str) -> dict[str, Any]:
        """Contents of an adapter_config.json. Only for a method with a part."""
        assert self.part is not None
        given = self.part.peft_config() or {}
        saved = {"modules_to_save": list(self.saved)} if self.saved else {}
        return {**given, **saved, "base_model_name_or_path": base_model, "inference_mode": False}


@dataclass(frozen=True, slots=True)
class ExportJob:
    """A plan on its way out.

    Attributes:
        plan: as the search found it.
        model: a hub id, or the absolute path of a local folder.
        tokens: to train on.
        data: what they are taken from.
        today: for the age of prices.
        output_dir: where the tool writes what it trained.
    """

    plan: Plan
    model: str
    tokens: int
    data: Data
    today: date
    output_dir: str = "output"

    @property
    def settings(self) -> Settings:
        """How it is trained."""
        return self.plan.request.settings

    @property
    def sharding(self) -> Sharding:
        """Over how many GPUs."""
        return self.plan.request.sharding

    @property
    def method(self) -> Method:
        """What is trained."""
        return self.plan.request.method

    @property
    def gpus(self) -> int:
        """Processes to start, one a GPU."""
        return self.sharding.data_parallel

    @property
    def accumulation(self) -> int:
        """Micro-batches of an update."""
        return self.plan.request.gradient_accumulation_steps

    @property
    def global_batch_size(self) -> int:
        """Sequences of an update."""
        return int(self.settings.micro_batch_size) * self.accumulation * self.gpus

    @property
    def updates(self) -> int:
        """Updates for all tokens."""
        return -(-self.tokens // (self.global_batch_size * int(self.settings.seq_len)))

    @property
    def learning_rate(self) -> float:
        """To begin with; the plan does not say."""
        return FULL_RATE if any(isinstance(part, Full) for part in self.method.parts) else ADAPTER_RATE

    def adapters(self, tool: str) -> Adapters:
        """The method as libraries have it. Raises InputError for one that PEFT does not have."""
        base = next((part for part in self.method.parts if isinstance(part, QuantizedBase)), None)
        saved: tuple[str, ...] = ()
        parts = []
        for part in self.method.parts:
            if isinstance(part, ModulesToSave):
                saved = part.modules
            elif not isinstance(part, QuantizedBase | Full):
                parts.append(part)
        for part in parts:
            if part.peft_config() is None:
                raise InputError(
                    f"{tool} cannot run {self.method.name}: {part.label} is no method of PEFT; export a plan of another "
                    "method, such as --method lora"
                )
        if len(parts) > 1:
            names = " and ".join(part.label for part in parts)
            raise InputError(f"{tool} trains one adapter, and {self.method.name} has {names}; export a plan with one of them")
        if getattr(parts[0] if parts else None, "freeze_a", False):
            raise InputError(f"{tool} has no option to freeze A (freeze_a=true); export a plan of lora without it")
        if base is not None and base.quant_type not in ("nf4", "fp4", "int8"):
            raise InputError(
                f"a base in {base.quant_type} is a checkpoint made beforehand; name that checkpoint as --model of {tool} "
                "yourself, or export a plan with quant_type=nf4"
            )
        return Adapters(base, parts[0] if parts else None, saved)

    def head(self, tool: str, file: str) -> str:
        """The comment that opens a file: what was planned, and by which version."""
        plan = self.plan
        peak = plan.memory.peak.peak_bytes
        lines = [
            f"{file} for {tool}, written by tuneplan {__version__}.",
            f"{self.method.name} of {plan.request.spec.id} on {plan.gpu_count} x {plan.target.label}, "
            f"{self.sharding.label}, {self.settings.micro_batch_size} x {self.accumulation} sequences of "
            f"{self.settings.seq_len} tokens a GPU.",
            f"Predicted peak on each GPU: {format_gib(peak)} allocated, {format_gib(plan.device_bytes)} of "
            f"{format_gib(plan.usable_bytes)} usable in all.",
        ]
        if plan.time is not None and plan.time.seconds is not None:
            hours = "" if plan.hours is None else f", {plan.hours:.2f} h for {self.tokens:,} tokens ({self.updates:,} updates)"
            lines.append(f"Predicted time: {plan.time.seconds:.3g} s an update{hours}.")
        if plan.usd is not None and plan.price is not None:
            offer = plan.price.offer
            lines.append(
                f"Predicted cost: ${plan.usd} on {offer.instance.provider} {offer.instance.id} at "
                f"${plan.price.usd_per_hour}/h ({offer.purchase})."
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Export:
    """Files of one tool.

    Attributes:
        files: contents by name.
        gaps: what the tool does otherwise than the plan says, each a sentence that names the option.
        main: the file that holds the configuration.
    """

    files: dict[str, str]
    gaps: tuple[str, ...]
    main: str


def data_of(name: str | None, style: str) -> Data:
    """The data of the command line's words; a file by its absolute path, as the files lie in a folder of their own.

    Raises:
        InputError: an empty name, or a file that is not there.
        UnknownNameError: a style that is none.
    """
    if style not in STYLES:
        raise UnknownNameError("train data format", style, STYLES, "plan export --help")
    if name is None:
        if style != "text":
            raise InputError(f"--train-data-format {style} says how your data look; name them with --train-data")
        return Data()
    if not name.strip() or "\n" in name or "\0" in name:
        raise InputError("--train-data is no name; name a data set of the hub, or a file of JSON lines")
    data = Data(name, style)
    if not data.local:
        return data
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"--train-data {name!r} is no file; name a file of JSON lines, or a data set of the hub")
    return Data(str(path.resolve()), style)


def local_model(name: str) -> str:
    """A hub id as it is; a config.json or its folder as the folder's absolute path."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return str((path.parent if path.is_file() else path).resolve())

"""One case of the campaign by its three sources: estimated by the planner, traced on the meta device, measured on the device."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from tuneplan.hardware_profiles.loader import Gpu
from tuneplan.planner.errors import TuneplanError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import devices
from tuneplan.profiling.cases import Case, config_of
from tuneplan.profiling.measure import measure
from tuneplan.profiling.quiet import quiet
from tuneplan.profiling.ranks import ALONE
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import trace

WARMUP_STEPS, STEPS = 2, 5


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the campaign runs.

    Attributes:
        device: of the measured steps.
        compute_capability: of the card; None on a CPU.
        memory_bytes: of the card; None on a CPU.
        gpu: the planner's card, if it was named.
        tiny: models are made small, and traced in this process.
    """

    device: torch.device
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    gpu: Gpu | None = None
    tiny: bool = False


def machine_of(device: str, gpu: str | None) -> Machine:
    """This machine. Raises InputError for a GPU that is not there or not known."""
    chosen = devices.choose(device, ALONE)
    if chosen.type == "cpu":
        return Machine(chosen, tiny=True)
    card = torch.cuda.get_device_properties(chosen)
    known = targets([gpu], None)[0].gpu if gpu else None
    return Machine(chosen, (card.major, card.minor), card.total_memory, known)


def settings_of(case: Case, capability: tuple[int, int] | None) -> Settings:
    """The planner's settings of a case."""
    settings = Settings(
        micro_batch_size=case.micro_batch_size,
        seq_len=case.seq_len,
        dtype=case.dtype,
        precision=case.precision,
        attention=case.attention,
        loss=case.loss,
        gradient_checkpointing=case.gradient_checkpointing,
        accumulating=case.gradient_accumulation_steps > 1,
        padded=case.padded,
    )
    return settings if capability is None else replace(settings, compute_capability=capability)


def subject_of(case: Case, capability: tuple[int, int] | None, tiny: bool) -> Subject:
    """The case as it is traced and measured."""
    return Subject(
        id=case.model,
        config=config_of(case.model, tiny),
        method=parse(case.method),
        settings=settings_of(case, capability),
        optimizer=find_optimizer(case.optimizer),
        gradient_accumulation_steps=case.gradient_accumulation_steps,
    )


def estimate_of(case: Case, machine: Machine) -> Estimate:
    """The case as it is planned. Raises InputError for a model or a method that the planner does not know."""
    request = Request(
        spec=read_spec(case.model, ConfigReader(config_of(case.model, machine.tiny), case.model)),
        method=parse(case.method),
        settings=settings_of(case, machine.compute_capability),
        optimizer=find_optimizer(case.optimizer),
        gradient_accumulation_steps=case.gradient_accumulation_steps,
        gpu=machine.gpu,
    )
    return estimate(request, advice=False)


def figures(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a row keeps of a document of the common schema."""
    names = ("parameters", "peak", "phases", "components", "step_seconds", "tokens_per_second", "failure")
    return {name: document[name] for name in names if name in document}


def refused(error: Exception) -> dict[str, Any]:
    """Why a source has no figures, in one line; a defect with the name of its class."""
    name = "" if isinstance(error, TuneplanError) else f"{type(error).__name__}: "
    return {"refused": name + " ".join(str(error).split())[:300]}


def estimated(case: Case, machine: Machine) -> dict[str, Any]:
    """The planner's figures, or why there are none."""
    try:
        found = estimate_of(case, machine)
    except Exception as error:  # a defect in one case must not end an unattended campaign
        return refused(error)
    return {**figures(found.to_json()), "attention_kernel": found.network.notes.get("attention_kernel", "")}


def traced(case: Case, capability: tuple[int, int] | None, tiny: bool) -> dict[str, Any]:
    """The trace's figures, or why there are none. Runs without a GPU, in a process of its own."""
    quiet()
    try:
        return figures(trace(subject_of(case, capability, tiny), capability).to_json())
    except Exception as error:
        return refused(error)


def measured(case: Case, machine: Machine, steps: int = STEPS) -> dict[str, Any]:
    """The device's figures; a run that broke off says so, a case that cannot run here says why."""
    try:
        seen = measure(subject_of(case, machine.compute_capability, machine.tiny), machine.device, WARMUP_STEPS, steps)
    except Exception as error:
        return refused(error)
    finally:
        gc.collect()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
    found = seen.to_json()
    return {**figures(found), "attention": seen.attention, "timing": found["timing"]}

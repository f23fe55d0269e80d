"""Estimate and trace of one configuration side by side; used by the tests that hold the ledger against real code."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import reference  # noqa: E402

from tuneplan.planner.memory import StepMemory, step_memory  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.network import Network, build  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.training.optimizers import OPTIMIZERS  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import attention, small_models  # noqa: E402
from tuneplan.profiling.build import Built  # noqa: E402
from tuneplan.profiling.build import build as build_real  # noqa: E402
from tuneplan.profiling.step import StepTrace, trace_step  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402
from tuneplan.profiling.trace import count  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One configuration, in the planner's words; `real`: the config of the model that is run, where it is another one."""

    config: Mapping[str, Any]
    method: str = "full"
    settings: Settings = field(default_factory=Settings)
    optimizer: str = "adamw"
    real: Mapping[str, Any] | None = None


def estimated(case: Case) -> tuple[Network, StepMemory]:
    """The ledger's answer."""
    spec = read_spec("test", ConfigReader(dict(case.config), "test"))
    network = build(spec, parse(case.method), case.settings)
    return network, step_memory(network, case.settings, OPTIMIZERS[case.optimizer])


def traced(case: Case, device: str = "meta") -> tuple[Any, StepTrace]:
    """The real code's answer; what PEFT does not have is put in as plain PyTorch.

    `device`: "cpu" for code that asks for values.
    """
    ready = built(case, device)
    trace = trace_step(ready, case.settings, accumulation=2 if case.settings.accumulating else 1)
    return ready.model, trace


def built(case: Case, device: str) -> Built:
    """The real model with its batch."""
    attention.register()
    method = parse(case.method)

    def adapt(model: Any) -> None:
        reference.install(model, method)
        if any(part.fuses_update() for part in method.parts):
            reference.update_in_backward(model)

    subject = Subject("test", case.real or case.config, method, settings=case.settings, optimizer=OPTIMIZERS[case.optimizer])
    return build_real(subject, attention.NAMES[case.settings.attention], device, adapt)


def check(case: Case, device: str = "meta", tolerance: float = 0.001, phases: float = 0.005) -> None:
    """Phase by phase and at the peak, and the parameter counts exactly."""
    network, memory = estimated(case)
    model, trace = traced(case, device)
    counts = count(model)
    assert (counts.total, counts.trainable) == (network.total_parameters, network.trainable_parameters)
    for name, phase in trace.phases.items():
        assert phase.peak_bytes == pytest.approx(memory.phases[name].peak_bytes, rel=phases), name
    assert trace.peak_bytes == pytest.approx(max(memory.phases[name].peak_bytes for name in trace.phases), rel=tolerance)


def small(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config small enough to trace in a second: the sizes of the small Llama under another name, with changes."""
    sizes = small_models.config("llama")
    del sizes["tie_word_embeddings"]
    return {**sizes, "model_type": model_type, **changes}


def with_settings(case: Case, **changes: Any) -> Case:
    """The case with other settings."""
    return replace(case, settings=replace(case.settings, **changes))

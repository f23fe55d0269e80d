"""The same step estimated, traced on the meta device and run on real CPU tensors: live bytes agree.

Attention is eager, or the stand-in that allocates what the flash kernel does: the CPU's own fused kernels keep other things than
a GPU's, so they would compare two machines and not two ways of counting.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from traced import Case, estimated, small, traced  # noqa: E402

from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.training.optimizers import OPTIMIZERS  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import attention  # noqa: E402
from tuneplan.profiling.measure import measure  # noqa: E402
from tuneplan.profiling.measured import Measured  # noqa: E402
from tuneplan.profiling.step import STEP_PHASES  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402

pytestmark = pytest.mark.traced
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite")
METHODS = ("full", "lora", "qlora")
STEP = Settings(micro_batch_size=2, seq_len=64, attention="eager", gradient_checkpointing="off")
CLOSE = 0.005


def case_of(family: str, method: str, **changes: Any) -> Case:
    """A model of two layers; the size of a head is said, since qwen3's default is not hidden_size over heads."""
    return Case(small(family, num_hidden_layers=2, head_dim=64), method, replace(STEP, **changes))


@cache
def measured(family: str, method: str, **changes: Any) -> Measured:
    """A real step, on the CPU."""
    case = case_of(family, method, **changes)
    attention.register()
    subject = Subject("test", case.config, parse(method), settings=case.settings, optimizer=OPTIMIZERS["adamw"])
    return measure(subject, torch.device("cpu"), 1, 1, attention=attention.NAMES[case.settings.attention])


def compare(family: str, method: str, **changes: Any) -> None:
    """All three peaks within 0.5 %, and each phase of the trace within 0.5 % of what was measured."""
    case, real = case_of(family, method, **changes), measured(family, method, **changes)
    _, planned = estimated(case)
    _, trace = traced(case)
    assert real.failure is None
    assert real.allocated_bytes == pytest.approx(trace.peak_bytes, rel=CLOSE)
    assert real.allocated_bytes == pytest.approx(max(int(planned.phases[name].peak_bytes) for name in STEP_PHASES), rel=CLOSE)
    for name in STEP_PHASES:
        assert real.phases[name].peak_bytes == pytest.approx(trace.phases[name].peak_bytes, rel=CLOSE), name
        assert real.phases[name].end_bytes == pytest.approx(trace.phases[name].end_bytes, rel=CLOSE), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, method: str) -> None:
    """Every family, trained in full, with LoRA and with QLoRA through bitsandbytes' CPU backend."""
    compare(family, method)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_checkpointing(method: str) -> None:
    """Layers are run again in the backward."""
    compare("llama", method, gradient_checkpointing="non-reentrant")


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_memory_of_the_flash_kernel(method: str) -> None:
    """The stand-in for flash attention keeps on real tensors what it keeps on the meta device."""
    compare("mistral", method, attention="flash")


def test_qlora_is_packed() -> None:
    """A 4-bit base takes less than LoRA's 16-bit one after loading, and was really packed."""
    packed, dense = (measured("llama", method).phases["load"].end_bytes for method in ("qlora", "lora"))
    assert packed < 0.7 * dense

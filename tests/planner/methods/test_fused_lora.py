"""LoRA layers of a patched model against the trace of the real ones."""

from dataclasses import replace
from typing import Any

import pytest
from traced import Case, check, estimated, small

import tuneplan.kernels.patch as patching
from tuneplan.planner.errors import InputError
from tuneplan.planner.training.settings import Settings

PLAIN = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off", kernels="tuneplan")
CHECKPOINTED = replace(PLAIN, gradient_checkpointing="non-reentrant")
CONFIG = small(num_hidden_layers=2)
METHODS = {
    "fp32 adapters": "lora(r=8,target_modules=all-linear)",
    "narrow adapters": "lora(r=8,target_modules=all-linear,autocast_adapter_dtype=false)",
    "4-bit": "qlora(r=8)",
    "4-bit, narrow adapters": "qlora(r=8,autocast_adapter_dtype=false)",
    "4-bit, dropout": "qlora(r=8,lora_dropout=0.1)",
}
TOLERANCE = 0.004
"""Not counted: copies of A in another dtype, gradients of S; up to 0.33 % of these small models."""


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are patched without sharing their input, as they are counted."""
    whole = patching.patch
    monkeypatch.setattr(patching, "patch", lambda model: whole(model, share=False))


@pytest.mark.traced
@pytest.mark.parametrize("settings", [PLAIN, CHECKPOINTED], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.usefixtures("one_by_one")
def test_against_the_trace(method: str, settings: Settings) -> None:
    """Peaks of all phases, and parameters exactly."""
    check(Case(CONFIG, method, settings), tolerance=TOLERANCE)


@pytest.mark.traced
def test_autocast_is_not_traced() -> None:
    """Patched layers do not see the autocast that traces play."""
    from traced import traced

    with pytest.raises(InputError, match="which patched layers do not see"):
        traced(Case(CONFIG, METHODS["4-bit"], replace(PLAIN, precision="autocast")))


@pytest.mark.traced
def test_sharing_holds_no_more() -> None:
    """Layers that share an input stay below what is counted for each by itself, by little."""
    from traced import traced

    case = Case(CONFIG, METHODS["4-bit"], CHECKPOINTED)
    _, memory = estimated(case)
    _, trace = traced(case)
    counted = max(memory.phases[name].peak_bytes for name in trace.phases)
    assert 0.93 * counted < trace.peak_bytes < 1.004 * counted


def peak(method: str, settings: Settings, **changes: Any) -> int:
    """Largest allocated bytes of a step."""
    _, memory = estimated(Case(small(**changes), method, settings))
    return max(int(phase.peak_bytes) for phase in memory.phases.values())


def test_fp32_adapters_hold_no_wide_inputs() -> None:
    """PEFT keeps an fp32 copy of each module's input for fp32 adapters; a patched model keeps the input."""
    theirs = peak(METHODS["fp32 adapters"], replace(PLAIN, kernels="bitsandbytes"))
    assert 0.8 * theirs > peak(METHODS["fp32 adapters"], PLAIN)


@pytest.mark.parametrize("method", ["lora(use_dora=true)", "lora(lora_bias=true)", "ia3", "full"])
def test_what_is_left_alone_costs_the_same(method: str) -> None:
    """DoRA, adapters with a bias and other methods run PEFT's code."""
    assert peak(method, replace(PLAIN, kernels="bitsandbytes")) == peak(method, PLAIN)

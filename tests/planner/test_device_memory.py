"""Memory outside the allocator, in host memory and on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.device_memory import (
    checkpoint_bytes,
    runtime_bytes,
    usable_bytes,
    workspace_bytes,
)
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.models import lookup, network, registry
from tuneplan.planner.models.network import Network
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB

LLAMA_2_7B_PARAMETERS = 6_738_415_616
RANK_8_ALL_LINEAR = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


def _network(model: str, *parts: Part) -> Network:
    name, config = lookup.load(model)
    return network.build(registry.read_spec(name, config), Method("test", parts), Settings())


def test_components_add_up() -> None:
    """The total is the sum of what it is made of."""
    runtime = runtime_bytes("nvidia", (8, 0), 8, quantized=True)
    assert runtime.context_bytes + runtime.library_bytes + runtime.nccl_bytes == runtime.total_bytes


def test_an_a100_stays_below_what_was_measured() -> None:
    """On one A100 nvidia-smi showed at most 0.92 GiB beyond torch's peak, and a context alone takes 0.3 GiB or more."""
    assert 0.3 * GIB < runtime_bytes("nvidia", (8, 0), 1, quantized=False).total_bytes < 0.92 * GIB


def test_a_single_gpu_has_no_nccl_buffers() -> None:
    """Communication buffers come with the second GPU and grow with their number."""
    assert 0 == runtime_bytes("nvidia", (9, 0), 1, quantized=False).nccl_bytes
    two, eight = (runtime_bytes("nvidia", (9, 0), n, quantized=False).nccl_bytes for n in (2, 8))
    assert 0 < two < eight


def test_quantized_bases_load_more_kernels() -> None:
    """The library bitsandbytes brings kernels of its own."""
    plain, quantized = (runtime_bytes("nvidia", (8, 9), 1, quantized=q).library_bytes for q in (False, True))
    assert plain < quantized


def test_the_basis_names_its_rows() -> None:
    """Every figure says that it is calibrated, on what, and in which range."""
    for vendor, capability in (("nvidia", (8, 0)), ("NVIDIA", (8, 9)), ("nvidia", None), ("amd", None)):
        basis = runtime_bytes(vendor, capability, 2, quantized=False).basis
        assert basis.startswith("calibrated")
        assert "range" in basis
        assert "NCCL" in basis


def test_an_unknown_vendor_is_an_error() -> None:
    """No silent default for a vendor without figures."""
    with pytest.raises(InputError, match="'cerebras'"):
        runtime_bytes("cerebras", None, 1, quantized=False)


def test_no_gpu_is_an_error() -> None:
    """A process needs a card."""
    with pytest.raises(InputError, match="0 GPUs"):
        runtime_bytes("nvidia", (8, 0), 0, quantized=False)


def test_workspaces() -> None:
    """Each handle takes 8.125 MiB, and 32 MiB on Hopper and Blackwell."""
    assert 8_519_680 == workspace_bytes((8, 0)) == workspace_bytes((8, 9)) == workspace_bytes((7, 5))
    assert 33_554_432 == workspace_bytes((9, 0)) == workspace_bytes((10, 0)) == workspace_bytes((12, 0))


@given(st.integers(0, 2**40), st.floats(0, 0.99))
def test_usable_is_never_more_than_there_is(memory: int, margin: float) -> None:
    """A margin takes away, and none takes nothing."""
    assert 0 <= usable_bytes(memory, margin) <= memory == usable_bytes(memory, 0.0)


@pytest.mark.parametrize("margin", [-0.01, 1.0, 2.0])
def test_a_margin_is_a_share(margin: float) -> None:
    """Below nothing or the whole card makes no sense."""
    with pytest.raises(InputError, match="safety margin"):
        usable_bytes(1, margin)


def test_a_full_checkpoint_is_the_weights() -> None:
    """Llama-2-7B in bf16: two bytes a parameter."""
    assert 2 * LLAMA_2_7B_PARAMETERS == checkpoint_bytes(_network("7b", Full()))


def test_tied_weights_are_saved_once() -> None:
    """Qwen2.5-0.5B ties its head to its embeddings: 494,032,768 parameters."""
    assert 2 * 494_032_768 == checkpoint_bytes(_network("qwen2.5-0.5b", Full()))


def test_an_adapter_checkpoint_is_the_adapter() -> None:
    """Rank 8 on all linear layers, kept in fp32 by PEFT: four bytes a weight, quantized base or not."""
    assert 4 * RANK_8_ALL_LINEAR == checkpoint_bytes(_network("7b", Lora(r=8)))
    assert 4 * RANK_8_ALL_LINEAR == checkpoint_bytes(_network("7b", QuantizedBase(), Lora(r=8)))

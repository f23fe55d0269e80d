"""Optimizer states, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.graph.tensor import BITS, WEIGHTS, Storage, Tensor, elements, round_block
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.training.optimizers import ALIASES, OPTIMIZERS, find, state_bytes, step_scratch


def parameter(shape: tuple[int, ...], storage: str = "bf16", count: int = 1, trainable: bool = True) -> Parameter:
    """A weight of a shape."""
    size = round_block(elements(shape) * BITS[storage] // 8)
    tensor = Tensor(Storage(size, WEIGHTS), shape, storage, trainable, "w")
    return Parameter("w", shape, storage, trainable, adapter=False, stored_bytes=size, count=count, tensor=tensor)


BIG = (4096, 4096)
N = 4096 * 4096


@pytest.mark.parametrize(
    ("name", "storage", "master", "expected"),
    [
        ("adamw", "bf16", False, 2 * 2 * N),
        ("adamw", "fp32", False, 2 * 4 * N),
        ("adamw", "bf16", True, (4 + 2 * 4) * N),
        ("adamw", "fp32", True, 2 * 4 * N),
        ("adamw_fused", "bf16", False, 2 * 2 * N),
        ("adamw_8bit", "bf16", False, 2 * (N + N // 256 * 4)),
        ("adamw_8bit", "bf16", True, 4 * N + 2 * (N + N // 256 * 4)),
        ("sgd", "bf16", False, 0),
        ("sgd_momentum", "bf16", False, 2 * N),
        ("lion", "bf16", False, 4 * N),
        ("adafactor", "bf16", False, 2 * 4 * 4096 + 512),
        ("paged_adamw_32bit", "bf16", False, 0),
    ],
)
def test_states_of_a_matrix(name: str, storage: str, master: bool, expected: int) -> None:
    """Bytes on the device for a 4096 x 4096 weight, as states x elements x bytes of a state."""
    assert expected == state_bytes(OPTIMIZERS[name], [parameter(BIG, storage)], master).device


def test_8_bit_keeps_small_tensors_in_fp32() -> None:
    """Below 4096 elements bitsandbytes keeps both states in fp32 (`optimizer.py`, min_8bit_size); from there on in a byte."""
    optimizer = OPTIMIZERS["adamw_8bit"]
    assert 2 * round_block(4 * 4095) == state_bytes(optimizer, [parameter((4095,))], False).device
    assert 2 * (round_block(4096) + round_block(4 * 16)) == state_bytes(optimizer, [parameter((4096,))], False).device


def test_paged_states_are_in_host_memory() -> None:
    """From 100,000 elements on states are in host memory, below on the device (`get_state_buffer`)."""
    optimizer = OPTIMIZERS["paged_adamw_32bit"]
    small, large = (state_bytes(optimizer, [parameter((n,))], False) for n in (99_999, 100_000))
    assert (2 * round_block(4 * 99_999), 0) == (small.device, small.host)
    assert (0, 2 * 4 * 100_000) == (large.device, large.host)


def test_paged_8_bit_keeps_scales_on_the_device() -> None:
    """One float for 256 states stays on the device."""
    states = state_bytes(OPTIMIZERS["paged_adamw_8bit"], [parameter(BIG)], False)
    assert (2 * 4 * N // 256, 2 * N) == (states.device, states.host)


def test_frozen_weights_have_no_states() -> None:
    """What is not trained costs the optimizer nothing."""
    for optimizer in OPTIMIZERS.values():
        frozen = [parameter(BIG, trainable=False)]
        states = state_bytes(optimizer, frozen, True)
        assert (0, 0, 0) == (states.device, states.host, step_scratch(optimizer, frozen, True))


def test_twelve_bytes_a_parameter() -> None:
    """16-bit weights with fp32 master weights and states: twelve bytes a parameter beside the model (the reference study)."""
    assert 12 * N == state_bytes(OPTIMIZERS["adamw_fused"], [parameter(BIG)], True).device


def test_foreach_holds_a_copy_of_all_parameters() -> None:
    """Torch's default AdamW holds the root of all second moments at once; the fused one holds nothing."""
    weights = [parameter(BIG, count=3), parameter((4096,), count=5)]
    assert 2 * (3 * N + 5 * 4096) == step_scratch(OPTIMIZERS["adamw"], weights, False)
    assert 0 == step_scratch(OPTIMIZERS["adamw_fused"], weights, False)
    assert 3 * 2 * N == step_scratch(OPTIMIZERS["adamw_forloop"], [parameter(BIG)], False)


@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    shapes=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=2).map(tuple), min_size=1, max_size=4),
    count=st.integers(1, 9),
    storage=st.sampled_from(["bf16", "fp32"]),
    master=st.booleans(),
)
def test_states_are_a_sum(name: str, shapes: list[tuple[int, ...]], count: int, storage: str, master: bool) -> None:
    """States of several weights are the sum of each one's, and `count` alike ones are that many times one."""
    optimizer = OPTIMIZERS[name]
    ones = [state_bytes(optimizer, [parameter(shape, storage)], master) for shape in shapes]
    together = state_bytes(optimizer, [parameter(shape, storage, count) for shape in shapes], master)
    assert (count * sum(s.device for s in ones), count * sum(s.host for s in ones)) == (together.device, together.host)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *ALIASES])
def test_every_name_is_found(name: str) -> None:
    """Names and aliases are found in any case."""
    assert ALIASES.get(name, name) == find(f" {name.upper()} ").name


def test_unknown_optimizers() -> None:
    """Another name is an error with close matches."""
    with pytest.raises(UnknownNameError, match="adamw_8bit"):
        find("adamw8bit")


def test_every_optimizer_says_whose_it_is() -> None:
    """Each entry names the upstream file it mirrors."""
    for name, optimizer in OPTIMIZERS.items():
        assert name == optimizer.name
        assert ".py" in optimizer.source or "bitsandbytes" in optimizer.source

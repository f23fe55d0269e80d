"""Several values of one option, and the largest that fit."""

from dataclasses import replace

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.sweep import MOST_POINTS, Axis, axis, fits, limits, sweep
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB

OPTIONS = ("seq-len", "rank")
REQUEST = Request(
    read_spec(*load("qwen2.5-0.5b")),
    parse("lora"),
    Settings(micro_batch_size=1, seq_len=512, gradient_checkpointing="off"),
    OPTIMIZERS["adamw"],
    gpu=find_gpu("rtx-4090"),
    capacity_bytes=8 * GIB,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seq-len=512..4096", (512, 1024, 2048, 4096)),
        ("seq-len=512..4000", (512, 1024, 2048)),
        ("--seq_len=7..7", (7,)),
        ("rank=64,8,8", (8, 64)),
        ("rank=8..32:8", (8, 16, 24, 32)),
    ],
)
def test_axes(text: str, values: tuple[int, ...]) -> None:
    """Doubling, steps and lists; the option as on the command line."""
    assert values == axis(text, OPTIONS).values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seqlen=1..2", "Unknown option to sweep 'seqlen'. Did you mean 'seq-len'"),
        ("rank", "names no values"),
        ("rank=8..", "names no values"),
        ("rank=a,b", "names no values"),
        ("rank=-8,8", "names no values"),
        ("rank=16..8", "goes nowhere"),
        ("rank=0..8", "goes nowhere"),
        ("rank=1..8:0", "goes nowhere"),
        ("rank=1..999999999:1", f"more than {MOST_POINTS} values"),
        ("rank=" + ",".join(map(str, range(1, 99))), "98 values"),
    ],
)
def test_axes_that_cannot_be(text: str, message: str) -> None:
    """The option and its form are named."""
    with pytest.raises(InputError, match=message):
        axis(text, OPTIONS)


def test_a_point_is_what_one_estimate_gives() -> None:
    """Every point equals the single answer; one that cannot be carries its reason."""

    def answer(value: int) -> int:
        if value > 8:
            raise InputError(f"{value} is too much")
        return 2 * value

    points = sweep(Axis("rank", (2, 8, 16)), answer)
    assert [(2, 4, ""), (8, 16, ""), (16, None, "16 is too much")] == [(p.value, p.answer, p.reason) for p in points]
    with pytest.raises(InputError, match="16 is too much"):
        sweep(Axis("rank", (16, 32)), answer)


def test_limits_are_the_largest_that_fit() -> None:
    """The limit fits, and one step of the search's grain beyond it does not; a larger card has larger limits."""
    found = limits(REQUEST)
    assert found is not None
    settings = REQUEST.settings
    for name, value in (("micro_batch_size", found.micro_batch_size), ("seq_len", found.seq_len)):
        for size, expected in ((value, True), (value + max(2, value // 128), False)):
            changed = replace(REQUEST, settings=replace(settings, **{name: size}))
            assert fits(estimate(changed, advice=False)) == expected
    wider = limits(replace(REQUEST, capacity_bytes=20 * GIB))
    assert wider is not None
    assert wider.micro_batch_size > found.micro_batch_size
    assert wider.seq_len > found.seq_len


def test_limits_at_the_ends() -> None:
    """Nothing fits: 0. Everything fits: the model's context. No memory named: no limits."""
    none = limits(replace(REQUEST, capacity_bytes=GIB))
    assert none is not None
    assert (0, 0) == (none.micro_batch_size, none.seq_len)
    checkpointed = replace(REQUEST.settings, gradient_checkpointing="non-reentrant", loss="liger", attention="flash")
    all_of_it = limits(replace(REQUEST, settings=checkpointed, capacity_bytes=200 * GIB))
    assert all_of_it is not None
    assert all_of_it.seq_len == all_of_it.context == REQUEST.spec.max_position_embeddings
    assert limits(replace(REQUEST, capacity_bytes=None)) is None

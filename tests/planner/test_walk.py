"""Layers alike are walked once, wherever they stand, but for those that must know of others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuneplan.planner.memory import stands_alone, walk
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.step import Piece
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models


@pytest.mark.parametrize(
    ("name", "alone"),
    [("gemma3_text", [False, True, True, True, True, False]), ("gemma4_text-edge", [False] * 6)],
)
def test_which_layers_stand_alone(name: str, alone: list[bool]) -> None:
    """Those that read keys of others, or an input that all layers share, do not; nor do the blocks before and behind."""
    network = build(read_spec("x", ConfigReader(small_models.config(name), "x")), parse("full"), Settings(seq_len=256))
    assert alone == [stands_alone(run) for run in network.runs]


def test_a_layer_that_comes_again_has_the_same_segment() -> None:
    """Its forward and its backward are those of its first walk."""
    settings = Settings(seq_len=256, gradient_checkpointing="non-reentrant")
    config = ConfigReader(small_models.config("gemma3_text"), "x")
    walked = walk(build(read_spec("x", config), parse("full"), settings), settings)
    for pieces in (walked.forward, walked.backward):
        by_run = {piece.run: piece.segment for piece in pieces if piece.run >= 0}
        assert by_run[1] is by_run[3]
        assert by_run[1] is not by_run[2]


@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("method", ["full", "lora", "lomo"])
@pytest.mark.parametrize("name", ["llama", "gemma4_text-edge", "qwen3_moe"])
def test_both_kinds_of_backward_in_one_walk(name: str, method: str, checkpointing: str) -> None:
    """A walk of arrays has the backward that finds gradients beside the one that finds none: each as a walk of its own has it."""
    spec = read_spec("x", ConfigReader(small_models.config(name), "x"))
    sizes: Any = np.array([1, 2, 8])
    settings = Settings(seq_len=64, gradient_checkpointing=checkpointing)
    many = replace(settings, micro_batch_size=sizes)
    walked = walk(build(spec, parse(method), many), many)
    for found, accumulating in ((walked, False), (walked.other, True)):
        assert found is not None
        assert accumulating == found.accumulating
        for index, size in enumerate((1, 2, 8)):
            one = replace(settings, micro_batch_size=size, accumulating=accumulating)
            alone = walk(build(spec, parse(method), one), one)
            for pieces, expected in ((found.forward, alone.forward), (found.backward, alone.backward)):
                assert [figures(piece, 0) for piece in expected] == [figures(piece, index) for piece in pieces]


def figures(piece: Piece, index: int) -> tuple[Any, ...]:
    """What a piece says of one configuration."""
    segment = piece.segment
    sizes = [*segment.delta, *segment.peak, segment.peak_total]
    return piece.count, piece.run, [int(np.broadcast_to(size, (3,))[index]) for size in sizes]

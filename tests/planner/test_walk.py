"""Layers alike are walked once, wherever they stand, but for those that must know of others."""

import pytest

from tuneplan.planner.memory import stands_alone, walk
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
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

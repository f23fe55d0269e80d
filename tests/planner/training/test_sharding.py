"""Sharding: what each stage splits, exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.memory import gradient_bytes, step_memory, weight_bytes
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS, state_bytes
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import STAGES, Sharding, share

RUN = Settings(seq_len=16, precision="master-weights")
NETWORK = build(read_spec(*load("7b")), parse("full"), RUN)
ADAM = OPTIMIZERS["adamw_fused"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", STAGES)
def test_shares(stage: int, ranks: int) -> None:
    """Stage 1 splits optimizer states, stage 2 gradients too, stage 3 weights too (Rajbhandari et al. 2020, figure 1)."""
    phase = step_memory(NETWORK, RUN, ADAM, Sharding(ranks, stage)).phases["optimizer_step"]
    buckets = gradient_bytes(NETWORK.parameters) if stage == 0 and ranks > 1 else 0
    parts = [ranks if stage >= least else 1 for least in (3, 2, 1)]
    assert share(weight_bytes(NETWORK.parameters), parts[0]) == phase.levels[WEIGHTS]
    assert share(gradient_bytes(NETWORK.parameters), parts[1]) + buckets == phase.levels[GRADIENTS]
    assert share(state_bytes(ADAM, NETWORK.parameters, True).device, parts[2]) == phase.levels[OPTIMIZER_STATES]


@pytest.mark.parametrize("stage", [-1, 4, 7])
def test_stages_that_do_not_exist(stage: int) -> None:
    """There are four stages."""
    with pytest.raises(InputError, match=f"zero-stage {stage}"):
        Sharding(2, stage).check()


@pytest.mark.parametrize("ranks", [0, -1])
def test_no_ranks(ranks: int) -> None:
    """There is at least one rank."""
    with pytest.raises(InputError, match=f"data-parallel {ranks}"):
        Sharding(ranks).check()


@given(st.integers(0, 2**50), st.integers(1, 4096))
def test_a_share_is_rounded_up(size: int, ranks: int) -> None:
    """All shares together hold everything, with less than a byte to spare on each rank."""
    assert size <= share(size, ranks) * ranks < size + ranks


@pytest.mark.parametrize(
    ("sharding", "label"),
    [(Sharding(), "single GPU"), (Sharding(1, 3), "single GPU"), (Sharding(4), "DDP x 4"), (Sharding(8, 3), "ZeRO-3 x 8")],
)
def test_labels(sharding: Sharding, label: str) -> None:
    """The report's short names."""
    assert label == sharding.label

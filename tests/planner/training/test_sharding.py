"""Sharding: what each stage splits, exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import GRADIENTS, OPTIMIZER_STATES, WEIGHTS
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.shards import gradient_bytes, split, weight_bytes
from tuneplan.planner.training.optimizers import OPTIMIZERS, state_bytes
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Buckets, Sharding, share

RUN = Settings(seq_len=16, precision="master-weights")
NETWORK = build(read_spec(*load("7b")), parse("full"), RUN)
ADAM = OPTIMIZERS["adamw_fused"]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_shares(stage: int, ranks: int) -> None:
    """Stage 1 splits optimizer states, stage 2 gradients too, stage 3 weights too (Rajbhandari et al. 2020, figure 1)."""
    layout = Sharding(ranks, stage, engine="deepspeed", buckets=Buckets(reduce_elements=0, persistent_elements=0))
    phase = step_memory(NETWORK, RUN, ADAM, layout).phases["optimizer_step"]
    count = share(sum(p.numel for p in NETWORK.parameters), ranks)
    assert 12 * count == pytest.approx(phase.levels[OPTIMIZER_STATES], abs=4096)
    whole = weight_bytes(NETWORK.parameters)
    assert (whole if stage < 3 else whole // ranks) == pytest.approx(phase.levels[WEIGHTS], rel=1e-4)


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("stage", [2, 3])
def test_fsdp_shares(stage: int, ranks: int) -> None:
    """FSDP2 splits each weight, its gradient and its states along the first dimension, rounded up, in fp32 where asked."""
    phase = step_memory(NETWORK, RUN, ADAM, Sharding(ranks, stage)).phases["optimizer_step"]
    parts = [split(p, ranks, wide=True) for p in NETWORK.parameters]
    assert weight_bytes(parts) == phase.levels[WEIGHTS]
    assert gradient_bytes(parts) == phase.levels[GRADIENTS]
    assert state_bytes(ADAM, parts, False).device == phase.levels[OPTIMIZER_STATES]
    assert sum(
        4 * -(-p.shape[0] // ranks) * p.shape[-1] * p.count for p in NETWORK.parameters if len(p.shape) == 2
    ) < weight_bytes(parts)


def test_one_gpu_and_ddp_hold_everything() -> None:
    """A rank of DDP has the single GPU's weights and states, and a second copy of the gradients in buckets."""
    alone, rank = (step_memory(NETWORK, RUN, ADAM, Sharding(n)).phases["optimizer_step"].levels for n in (1, 4))
    assert (alone[WEIGHTS], alone[OPTIMIZER_STATES]) == (rank[WEIGHTS], rank[OPTIMIZER_STATES])
    assert 2 * alone[GRADIENTS] == rank[GRADIENTS]


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

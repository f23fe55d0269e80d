"""FSDP2's real step, one rank of several in this process, against the ledger: what is gathered, reduced and kept."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from torch import distributed  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.planner.training.sharding import Sharding  # noqa: E402
from tuneplan.profiling.parallel_cases import TINY, Case, estimated, traced  # noqa: E402
from tuneplan.profiling.ranks import Ranks  # noqa: E402

RANKS = 4
TIED = {**TINY, "num_hidden_layers": 2, "tie_word_embeddings": True}
LORA = "lora(r=8,target_modules=all-linear)"


@pytest.fixture(scope="module", autouse=True)
def four_ranks() -> Iterator[None]:
    """This process is one of four, between which nothing is sent: what is alive does not depend on values."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "case",
    [
        Case("full", Sharding(RANKS, 3), Settings(seq_len=64, gradient_checkpointing="non-reentrant", accumulating=True)),
        Case("full", Sharding(RANKS, 2), Settings(seq_len=64, gradient_checkpointing="off", precision="master-weights")),
        Case("full", Sharding(RANKS, 3, reduce_dtype="fp32"), Settings(seq_len=64, precision="master-weights"), config=TIED),
        Case(
            "full",
            Sharding(RANKS, 3, shard_group=2),
            Settings(seq_len=64, gradient_checkpointing="off", precision="master-weights", accumulating=True),
        ),
        Case(LORA, Sharding(RANKS, 3), Settings(seq_len=64, gradient_checkpointing="off")),
        Case(LORA, Sharding(RANKS, 3), Settings(seq_len=64, gradient_checkpointing="reentrant", precision="master-weights")),
        Case(LORA, Sharding(RANKS, 2), Settings(seq_len=64, gradient_checkpointing="non-reentrant")),
    ],
    ids=lambda case: f"{case.method[:4]}-{case.sharding.label}-{case.settings.gradient_checkpointing}-{case.settings.precision}",
)
def test_a_rank_of_fsdp(case: Case) -> None:
    """Phase by phase within 0.15 % and 32 KiB: the CPU holds Adam's step counts, of 512 bytes a weight, which a GPU does not."""
    memory = estimated(case)
    for name, phase in traced(case, Ranks(0, 0, RANKS)).phases.items():
        assert phase.peak_bytes == pytest.approx(memory.phases[name].peak_bytes, rel=0.0015, abs=2**15), name
        assert phase.end_bytes == pytest.approx(memory.phases[name].end_bytes, rel=0.0015, abs=2**15), name

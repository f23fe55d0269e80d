"""FSDP2's real step, one rank of several in this process, against the ledger: what is gathered, reduced and kept."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import tensor_parallel  # noqa: E402
from torch import distributed  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.network import build as build_network  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.parallel.layout import rank_memory  # noqa: E402
from tuneplan.planner.training.optimizers import OPTIMIZERS  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.planner.training.sharding import Sharding  # noqa: E402
from tuneplan.profiling import attention  # noqa: E402
from tuneplan.profiling.build import Built, build  # noqa: E402
from tuneplan.profiling.optimizers import make_optimizer  # noqa: E402
from tuneplan.profiling.parallel_cases import TINY, Case, estimated, traced  # noqa: E402
from tuneplan.profiling.ranks import Ranks  # noqa: E402
from tuneplan.profiling.step import trace_step  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402

RANKS = 4
EVEN = {**TINY, "intermediate_size": 1376, "vocab_size": 1024}
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


@pytest.mark.parametrize(("sequence", "checkpointing"), [(False, "off"), (True, "non-reentrant")])
def test_a_rank_of_tensor_parallelism(sequence: bool, checkpointing: str) -> None:
    """Forward and backward within 2 % of torch's DTensors, which make the embedding's gradient whole."""
    attention.register()
    optimizer = OPTIMIZERS["adamw_forloop"]  # which alone takes split and plain weights together
    settings = Settings(seq_len=64, micro_batch_size=2, gradient_checkpointing=checkpointing, max_grad_norm=0.0)
    layout = Sharding(tensor_parallel=RANKS, sequence_parallel=sequence)
    spec = read_spec("tiny", ConfigReader(dict(EVEN), "tiny"))
    full = parse("full")
    memory = rank_memory(spec, full, settings, optimizer, layout, build_network(spec, full, settings)).memory

    made = build(Subject("tiny", EVEN, full, settings=settings, optimizer=optimizer), attention.NAMES["sdpa"], "cpu")
    tensor_parallel.split(made.model, RANKS, sequence)
    batch = {
        "input_ids": made.batch["input_ids"],
        "labels": made.batch["labels"] % made.model.vocab_size,
        "position_ids": torch.arange(64)[None],
    }
    trained = list(made.model.parameters())
    trace = trace_step(Built(made.model, make_optimizer(optimizer.name, trained), batch), settings)
    for name in ("forward", "backward"):
        assert trace.phases[name].peak_bytes == pytest.approx(memory.phases[name].peak_bytes, rel=0.02), name

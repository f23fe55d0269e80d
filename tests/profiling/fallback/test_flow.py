"""Networks of traced models laid beside those that the ledger makes of the same model."""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.step import sequence
from tuneplan.planner.replay import replay
from tuneplan.planner.target import targets
from tuneplan.planner.timing.step_time import step_time
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding
from tuneplan.profiling import small_models
from tuneplan.profiling.fallback.prepare import traced_spec

pytestmark = pytest.mark.traced

CASES = [("llama", "full", "off"), ("llama", "qlora", "non-reentrant"), ("qwen3_moe", "lora", "off")]
LAYOUTS = [
    (SINGLE, "adamw", 1, False),
    (SINGLE, "adamw_8bit", 3, True),
    (Sharding(8), "adamw_fused", 4, True),
    (Sharding(8, 2), "adamw", 4, False),
    (Sharding(8, 3), "adamw", 2, True),
]


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def both(model: str) -> tuple[ModelSpec, ModelSpec]:
    """A small model as its family has it, and as it is traced."""
    config = ConfigReader(small_models.config(model, num_hidden_layers=2), model)
    return read_spec(model, config), traced_spec(model, config, "", "no family")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Any:
    """Networks of one configuration, by micro-batch and accumulation."""
    model, method, checkpointing = request.param
    known, traced = both(model)

    def networks(sharding: Sharding, batch: int, accumulating: bool) -> tuple[Network, Network, Settings]:
        plain = Settings(micro_batch_size=batch, seq_len=192, gradient_checkpointing=checkpointing, accumulating=accumulating)
        settings = sharding.settings(plain)
        return build(known, parse(method), settings), build(traced, parse(method), settings), settings

    return networks


def test_memory_of_every_layout(pair: Any) -> None:
    """Peaks agree within 0.1 % on one card and where ranks hold all, split gradients, or split weights.

    The trace counts buffers (rotary tables) that the ledger leaves out, which is 0.01 % of these small models.
    """
    for sharding, optimizer, batch, accumulating in LAYOUTS:
        known, traced, settings = pair(sharding, batch, accumulating)
        ours, theirs = (step_memory(network, settings, find(optimizer), sharding) for network in (known, traced))

        assert (known.total_parameters, known.trainable_parameters) == (traced.total_parameters, traced.trainable_parameters)
        assert theirs.peak.peak_bytes == pytest.approx(ours.peak.peak_bytes, rel=0.001), sharding.label
        assert ours.peak_phase == theirs.peak_phase


def test_components_and_reserved_memory(pair: Any) -> None:
    """Weights, states and gradients at the peak are the same; reserved memory is within 4 %, a segment of 20 MiB or two."""
    known, traced, settings = pair(SINGLE, 3, True)
    ours, theirs = (step_memory(network, settings, find("adamw")) for network in (known, traced))
    a, b = (replay(network, settings, find("adamw")) for network in (known, traced))

    assert ours.peak.levels[1:3] == theirs.peak.levels[1:3]
    assert theirs.peak.levels[0] == pytest.approx(ours.peak.levels[0], rel=0.001)
    assert b.reserved_bytes == pytest.approx(a.reserved_bytes, rel=0.04)
    assert b.reserved_bytes >= b.allocated_bytes


def test_work(pair: Any) -> None:
    """FLOPs of forward, recomputation and backward are the ledger's; seconds of a large step within 20 % (see test_clock)."""
    known, traced, settings = pair(SINGLE, 64, False)
    gpu = targets(["a100-80g"], None)[0].gpu
    assert gpu is not None
    ours, theirs = (step_time(network, settings, find("adamw"), gpu) for network in (known, traced))

    assert ours.flops == theirs.flops
    assert theirs.seconds == pytest.approx(ours.seconds, rel=0.25)


def test_pieces_make_up_the_step(pair: Any) -> None:
    """Layers cut out of the log leave nothing out: forward and backward together leave only gradients and what was there."""
    _, traced, _ = pair(SINGLE, 2, False)
    walked = traced.recorded.walked(False)
    forward, backward = sequence(walked.forward), sequence(walked.backward)
    gradients = sum(p.stored_bytes * p.count for p in traced.parameters if p.trainable)
    stays = sum(storage.nbytes for run in traced.runs for storage in run.block.stays)

    assert 2 == sum(run.count for run in traced.runs if run.layered)
    assert gradients + stays == sum(forward.delta) + sum(backward.delta)
    assert gradients == backward.delta[1]


def test_a_batch_beyond_the_traces_is_refused_when_nothing_more_is_traced() -> None:
    """The domain is stated; a method that was not traced is named."""
    _, traced = both("llama")
    settings = Settings(micro_batch_size=1, seq_len=192, gradient_checkpointing="off")
    build(traced, parse("full"), settings)
    traced.source.closed = True  # type: ignore[union-attr]
    far = traced.source.refusal(parse("full"), replace(settings, micro_batch_size=4096))  # type: ignore[union-attr]

    assert "traces of full hold for micro-batches of 1 to 128 and lengths of" in far
    assert "ia3 was not traced under these settings; name it with --method" == traced.source.refusal(parse("ia3"), settings)  # type: ignore[union-attr]
    assert not traced.allows(parse("ia3"), settings)

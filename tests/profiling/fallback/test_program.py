"""The step as a function of batch and length, against direct traces and against the ledger."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.memory import step_memory
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling.fallback.program import Program, program
from tuneplan.profiling.fallback.recorder import record
from tuneplan.profiling.fallback.recording import Recording
from tuneplan.profiling.replay import replay
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import trace

pytestmark = pytest.mark.traced

Made = tuple[Subject, Program]


@pytest.mark.parametrize("fixture", ["lora", "windowed"])
def test_a_point_that_was_not_traced(fixture: str, request: pytest.FixtureRequest) -> None:
    """Peaks, components, ends and ops of all phases, and reserved memory, are those of a direct trace, to the byte."""
    subject, found = request.getfixturevalue(fixture)
    batch, length = 3, 200
    assert found.residual == 0
    assert found.domain.covers(batch, length)
    step = found.step(batch, length)
    direct = trace(replace(subject, settings=replace(subject.settings, micro_batch_size=batch, seq_len=length)))

    assert {name: direct.phases[name] for name in step.phases} == step.phases
    assert direct.reserved is not None
    assert direct.reserved.reserved_bytes == replay(step.timeline).reserved_bytes
    assert direct.counts == found.counts


def test_against_the_ledger(lora: Made) -> None:
    """Where a family mirrors the model, the way without a family gives the same peak within 0.1 %."""
    subject, found = lora
    spec = read_spec("llama", ConfigReader(subject.config, "llama"))
    for batch, length in ((2, 256), (5, 111)):
        settings = replace(subject.settings, micro_batch_size=batch, seq_len=length)
        network = build(spec, subject.method, settings)
        memory = step_memory(network, settings, subject.optimizer)

        assert network.trainable_parameters == found.counts.trainable
        assert found.step(batch, length).peak_bytes == pytest.approx(memory.peak.peak_bytes, rel=0.001)


def test_the_domain_ends_where_the_code_takes_another_way(lora: Made, windowed: Made) -> None:
    """A third of the length for Llama; where windows are not filled, Gemma's trace is another, so only down to three quarters."""
    assert (69, 256) == lora[1].domain.lengths
    assert (197, 256) == windowed[1].domain.lengths
    assert not windowed[1].domain.covers(2, 128)
    assert not lora[1].domain.covers(2, 257)
    assert not lora[1].domain.covers(1, 256)


def test_a_step_that_cannot_be_fitted_stays_a_point(lora: Made) -> None:
    """Where sizes follow no form (here: noise), the program is the one trace and holds there alone."""
    subject, _ = lora
    seen: list[tuple[int, int]] = []

    def noisy(batch: int, length: int) -> Recording:
        seen.append((batch, length))
        recording = record(subject, batch, length)
        return replace(recording, sizes=(*recording.sizes[:-1], 1000 + len(seen) ** 3))

    found = program(noisy, 2, 48)

    assert found.residual is None
    assert (((2, 48),), (2, 2), (48, 48)) == (found.points, found.domain.batches, found.domain.lengths)
    assert seen[0] == (2, 48)


def test_code_whose_way_depends_on_the_length(lora: Made) -> None:
    """A loop over tokens: the program holds at that length alone, for batches from one on; to the byte at one not traced."""
    subject, _ = lora
    seen: list[tuple[int, int]] = []

    def looping(batch: int, length: int) -> Recording:
        seen.append((batch, length))
        recording = record(subject, batch, length)
        return replace(recording, operators=recording.operators * (1 if length == 48 else 2))

    found = program(looping, 2, 48, from_one=True)
    direct = record(subject, 5, 48)

    assert ((1, 128), (48, 48)) == (found.domain.batches, found.domain.lengths)
    assert [(2, 48), (4, 48), (1, 48)] == [point for point in seen if point[1] == 48]
    assert found.residual is not None
    assert abs(found.residual) < 0.001
    assert direct.sizes == tuple(form.at(5, 48) for form in found.sizes)


def test_a_program_from_one_sequence_on(lora: Made) -> None:
    """The trace that is held out is of one sequence, whose step has another operator, and whose peak is met within 0.1 %."""
    subject, _ = lora
    found = program(lambda batch, length: record(subject, batch, length), 2, 96, from_one=True)
    direct = trace(replace(subject, settings=replace(subject.settings, micro_batch_size=1, seq_len=80)))

    assert (1, 128) == found.domain.batches
    assert 1 == found.points[-1][0]
    assert found.step(1, 80).peak_bytes == pytest.approx(direct.step.peak_bytes, rel=0.001)

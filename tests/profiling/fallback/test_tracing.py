"""Programs for a search: one from one sequence on, or two."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.errors import InputError
from tuneplan.profiling.fallback import tracing
from tuneplan.profiling.fallback.program import Program
from tuneplan.profiling.fallback.recorder import record
from tuneplan.profiling.fallback.recording import Recording
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import CannotRunError

pytestmark = pytest.mark.traced


def test_one_sequence_that_takes_a_way_of_its_own(lora: tuple[Subject, Program], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its peak is not that of the fit, it gets a program of its own; each point is traced once, and one thing is told."""
    subject = replace(lora[0], gradient_accumulation_steps=2)
    told: list[bool] = []
    points: list[tuple[int, int]] = []

    def heavier(of: Subject, batch: int, length: int, steps: int) -> Recording:
        points.append((batch, length))
        recording = record(of, batch, length, steps)
        return recording if batch > 1 else replace(recording, sizes=tuple(2 * size for size in recording.sizes))

    monkeypatch.setattr(tracing, "record", heavier)
    made, refusal = tracing.traced(subject, 1, 96, lambda: told.append(True))
    domains = [program["domain"] for program in made]

    assert ("", [True]) == (refusal, told)
    assert [[1, 1], [2, 128]] == [batches for batches, _ in domains]
    assert all(lengths[1] == 96 for _, lengths in domains)
    assert len(points) == len(set(points))


@pytest.mark.parametrize("error", [InputError("no such layer"), CannotRunError("no values")])
def test_what_cannot_be_traced(lora: tuple[Subject, Program], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program, the reason, and nothing is told."""
    told: list[bool] = []

    def fail(*_: object) -> Recording:
        raise error

    monkeypatch.setattr(tracing, "record", fail)
    made, refusal = tracing.traced(lora[0], 1, 96, lambda: told.append(True))

    assert ([], []) == (made, told)
    assert str(error) in refusal

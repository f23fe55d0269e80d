"""Runs on machines that are paid for: none overlaps, none is early, late ones ask for a machine."""

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from workload_files import BUY, HEAD, TRAINING, answer

from tuneplan.planner.capacity.options import Option
from tuneplan.planner.capacity.schedule import in_time


def bought(text: str, folder: Path) -> Option:
    """The option to buy."""
    found = answer(text, folder)
    return next(option for option in found.options if option.kind == "buy")


def test_runs_do_not_overlap_and_meet_their_deadlines(tmp_path: Path) -> None:
    """Sixty jobs on a few slots: in each slot one after the other, none before its release, none late."""
    jobs = "".join(
        TRAINING.removeprefix("training:\n").replace("tune", f"tune{i}").replace("1/week", f"{i % 5 + 1}/week") for i in range(20)
    )
    option = bought(HEAD + BUY + "training:\n" + jobs, tmp_path)
    runs = option.schedule.runs
    assert len(runs) > 200
    for slot in {run.slot for run in runs}:
        own = sorted((run for run in runs if run.slot == slot), key=lambda run: run.start)
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(own))
    assert all(run.start >= run.released for run in runs)
    assert not any(run.late_hours for run in runs)
    assert option.schedule.lower_bound_hours <= option.schedule.makespan_hours


def test_a_deadline_can_cost_a_machine(tmp_path: Path) -> None:
    """Four jobs that start together and must be done soon need more cards than their hours do."""
    job = TRAINING.removeprefix("training:\n")
    jobs = "".join(job.replace("tune", f"tune{i}").replace("1/week", "1/month") for i in range(6))
    calm = bought(HEAD + BUY + "training:\n" + jobs, tmp_path)
    hours = calm.schedule.runs[0].end - calm.schedule.runs[0].start
    soon = jobs.replace("48 hours", f"{hours * 1.1:.3f} hours")
    hasty = bought(HEAD + BUY + "training:\n" + soon, tmp_path)
    assert sum(hasty.months[-1].machines.values()) > sum(calm.months[-1].machines.values())
    assert hasty.complete
    assert not any(run.late_hours for run in hasty.schedule.runs)


def test_runs_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    """A hundred thousand jobs a day are not placed one by one, and the report says how many."""
    text = HEAD + BUY + TRAINING.replace("1/week", "10/day").replace("name: tune", "name: tune\n    count: 1000")
    assert bought(text, tmp_path).schedule.left_out > 0


RUN = st.tuples(st.floats(0, 700), st.floats(0.1, 60), st.floats(1, 4))


@given(st.lists(RUN, min_size=1, max_size=40), st.integers(1, 5))
def test_laws_of_placing(drawn: list[tuple[float, float, float]], slots: int) -> None:
    """Whatever the runs: each once, after its release, none late, and one at a time in a slot."""
    runs = [(release, release + slack * hours, hours, slack * hours, str(i)) for i, (release, hours, slack) in enumerate(drawn)]
    placed = in_time(runs, slots, "machine", 1)
    assert sorted(run[4] for run in runs) == sorted(run.workload for run in placed)
    assert all(run.start >= run.released for run in placed)
    assert all(run.late_hours < 1e-9 for run in placed)
    for slot in {run.slot for run in placed}:
        own = sorted((run for run in placed if run.slot == slot), key=lambda run: run.start)
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(own))

"""The integer program against trying every assignment, and its bound."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_files import BUY, HEAD, TODAY

from tuneplan.planner.capacity.assign import GAP, assign, groups
from tuneplan.planner.capacity.demand import Demand, Need
from tuneplan.planner.capacity.fleet import machines_for, project
from tuneplan.planner.capacity.machines import market
from tuneplan.planner.capacity.read import read_workloads

LOADS = """serving:
""" + "".join(
    f"""  - name: s{i}
    model: 7b
    requests: {rate}/s
    prompt_tokens: {{mean: 100, p95: 200}}
    output_tokens: {{mean: 100, p95: 200}}
"""
    for i, rate in enumerate((1, 2, 3, 5))
)


def read(folder: Path, growth: str = "0%/month", horizon: str = "3 months") -> Any:
    """A file with four loads, and its market."""
    path = folder / "w.yaml"
    text = HEAD.replace("12 months", horizon).replace("version: 1", f"version: 1\ngrowth: {growth}")
    path.write_text(text + BUY + LOADS)
    workloads, _ = read_workloads(path)
    return workloads, market(workloads.hardware, TODAY).machines


def with_needs(workloads: Any, machines: Any, sizes: list[int], rates: list[float]) -> list[Demand]:
    """Demands with needs that are not those of any model."""
    found = []
    for load, size, rate in zip(workloads.serving, sizes, rates, strict=True):
        needs = {m: Need(size, 0.0, rate * (m + 1), "", "") for m, machine in enumerate(machines) if size <= machine.gpu_count}
        found.append(Demand(load, ("serving", 0), needs, ""))
    return found


def total(workloads: Any, demands: list[Demand], machine: dict[int, int], machines: Any) -> float:
    """Dollars of an assignment over the horizon."""
    return sum(month.total for month in project(workloads, demands, machine, machines, {}))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
    st.lists(st.floats(0.2, 8.0), min_size=4, max_size=4),
    st.sampled_from(["0%/month", "10%/month", "-10%/month"]),
)
def test_no_assignment_is_cheaper(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rates: list[float], growth: str
) -> None:
    """The program's cost is within its gap of the best of all assignments, and its bound below it."""
    workloads, machines = read(tmp_path_factory.mktemp("w"), growth)
    demands = with_needs(workloads, machines, sizes, rates)
    found = assign(workloads, demands, machines, set(range(len(machines))))
    assert found is not None
    assert found.lower_bound is not None
    ways = product(*(demand.needs for demand in demands))
    best = min(total(workloads, demands, dict(enumerate(way)), machines) for way in ways)
    cost = total(workloads, demands, found.machine, machines)
    assert found.lower_bound <= best * (1 + 1e-6)
    assert cost <= best * (1 + 2 * GAP)


def test_limits_on_machines_can_leave_no_plan(tmp_path: Path) -> None:
    """One box of two cards does not hold four loads that each need its two cards."""
    workloads, machines = read(tmp_path)
    box = next(m for m, machine in enumerate(machines) if machine.kind == "buy")
    demands = with_needs(workloads, machines, [2, 2, 2, 2], [5.0] * 4)
    limited = list(machines)
    limited[box] = replace(limited[box], most=1)
    assert assign(workloads, demands, limited, {box}) is None
    assert assign(workloads, demands, machines, {box}) is not None


def test_months_are_grouped(tmp_path: Path) -> None:
    """Without growth one group; with growth a month each, or a few groups where there is much to decide."""
    workloads, machines = read(tmp_path, "5%/month", "12 months")
    demands = with_needs(workloads, machines, [1] * 4, [1.0] * 4)
    assert [[i] for i in range(1, 13)] == groups(workloads, demands, 10)
    assert [3, 3, 3, 3] == [len(group) for group in groups(workloads, demands, 10**6)]
    steady, _ = read(tmp_path)
    assert [[1, 2, 3]] == groups(steady, demands, 10)


@pytest.mark.parametrize(
    ("taken", "cards", "expected"),
    [
        ({}, 8, 0),
        ({1: 8}, 8, 1),
        ({1: 9}, 8, 2),
        ({4: 1, 2: 1, 1: 2}, 8, 1),
        ({4: 2}, 6, 2),
        ({4: 1, 2: 1}, 6, 1),
        ({4: 2, 2: 2}, 6, 2),
        ({4: 2, 2: 3}, 6, 3),
        ({2: 0.3}, 2, 1),
        ({8: 1, 1: 1}, 8, 2),
    ],
)
def test_machines_that_hold_slots(taken: dict[int, float], cards: int, expected: int) -> None:
    """Sizes that divide each other pack without loss but for what a machine's own size leaves."""
    assert expected == machines_for(taken, cards)


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.integers(0, 6)), st.sampled_from([8, 10, 12, 16]))
def test_first_fit_decreasing_needs_as_many(taken: dict[int, int], cards: int) -> None:
    """The closed form is what packing the largest first gives."""
    free: list[int] = []
    for size in sorted(taken, reverse=True):
        for _ in range(taken[size]):
            place = next((i for i, room in enumerate(free) if room >= size), None)
            if place is None:
                free.append(cards)
                place = len(free) - 1
            free[place] -= size
    assert len(free) == machines_for({size: float(count) for size, count in taken.items()}, cards)

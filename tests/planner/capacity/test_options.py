"""Options: what each costs, and laws between them."""

from pathlib import Path

import pytest
from workload_files import BUY, HEAD, SERVING, TRAINING, answer

from tuneplan.planner.capacity.options import CapacityAnswer, Option

RESERVED = """  reserved:
    - {instance: g6e.xlarge, price: 1.10 USD/hour, source: an example, date: 2026-06-01}
"""
ALL = HEAD + RESERVED + BUY + TRAINING + SERVING


def option(found: CapacityAnswer, kind: str) -> Option:
    """The option of a kind."""
    return next(option for option in found.options if option.kind == kind)


def test_every_kind_places_everything(tmp_path: Path) -> None:
    """On demand, reserved, bought and mixed; the recommended one is the cheapest, and mixed is none of the others' dearer."""
    found = answer(ALL, tmp_path)
    kinds = {o.kind: o for o in found.options}
    assert {"on_demand", "reserved", "buy", "mixed"} == set(kinds)
    assert all(o.complete for o in found.options)
    assert found.recommended is found.options[0]
    assert min(o.total for o in found.options) * 1.01 >= kinds["mixed"].total
    for o in found.options:
        assert o.lower_bound is not None
        assert o.lower_bound <= o.total * 1.000001
        assert 0 < o.utilisation <= 1


def test_rent_by_hand(tmp_path: Path) -> None:
    """One load on one card rented all year: 12 months of 730 hours at the instance's price."""
    found = answer(HEAD + SERVING, tmp_path)
    rent = option(found, "on_demand")
    machine = found.market.machines[rent.machine[0]]
    assert 12 * 730 * machine.usd_per_hour == pytest.approx(rent.total)
    assert rent.total == rent.cash
    assert rent.break_even_month is None


def test_buying_by_hand(tmp_path: Path) -> None:
    """Price, depreciation, hosting and power of one box, and the cash of its purchase."""
    found = answer(HEAD + BUY + SERVING, tmp_path)
    buy = option(found, "buy")
    machine = found.market.machines[buy.machine[0]]
    count = buy.months[-1].machines[buy.machine[0]]
    kilowatts = (300 + 2 * 450) / 1000
    overhead = 150 * kilowatts + 0.3 * 730 * 0.13 * 1.5
    assert (6000 / 36, overhead) == (pytest.approx(machine.depreciation), pytest.approx(machine.overhead))
    assert 0.45 * 0.13 * 1.5 == pytest.approx(machine.busy_gpu_hour)
    busy = sum(month.busy_gpu_hours for month in buy.months)
    running = 12 * count * overhead + busy * machine.busy_gpu_hour
    assert running + 12 * count * 6000 / 36 == pytest.approx(buy.total)
    assert running + count * 6000 == pytest.approx(buy.cash)


def test_break_even_is_where_the_money_spent_meets(tmp_path: Path) -> None:
    """From that month on buying has cost no more; the month before it had."""
    found = answer((HEAD + BUY + SERVING).replace("12 months", "36 months"), tmp_path)
    buy, rent = option(found, "buy"), option(found, "on_demand")
    month = buy.break_even_month
    assert month is not None
    spent = [sum(m.cash for m in o.months[:month]) for o in (buy, rent)]
    before = [sum(m.cash for m in o.months[: month - 1]) for o in (buy, rent)]
    assert spent[0] <= spent[1]
    assert before[0] > before[1] or month == 1


def test_a_machine_is_bought_again_after_its_lifetime(tmp_path: Path) -> None:
    """A lifetime of six months in a horizon of twelve pays twice, less what is left of the first."""
    text = (HEAD + BUY + SERVING).replace("36 months", "6 months").replace("source:", "residual: 25%\n      source:")
    buy = option(answer(text, tmp_path), "buy")
    count = buy.months[0].machines[buy.machine[0]]
    running = sum(m.usd["overhead"] + m.usd["power"] for m in buy.months)
    assert count * (6000 + 6000 - 1500) == pytest.approx(buy.cash - running)
    assert 2 * count * 6000 * 0.75 == pytest.approx(buy.total - running)


def test_growth_needs_more_machines(tmp_path: Path) -> None:
    """Demand that doubles every few months ends with more machines than it begins, and costs more than steady demand."""
    steady = option(answer(HEAD + SERVING, tmp_path), "on_demand")
    growing = option(answer(HEAD.replace("version: 1", "version: 1\ngrowth: 40%/month") + SERVING, tmp_path), "on_demand")
    assert sum(growing.months[-1].machines.values()) > sum(growing.months[0].machines.values())
    assert growing.total > steady.total


def test_months_without_work_cost_nothing_to_rent(tmp_path: Path) -> None:
    """A load that runs from month 4 to month 6 is paid for three months."""
    text = HEAD + SERVING + "    first_month: 4\n    last_month: 6\n"
    rent = option(answer(text, tmp_path), "on_demand")
    assert [4, 5, 6] == [month.number for month in rent.months if month.total]


def test_sensitivities_are_ordered(tmp_path: Path) -> None:
    """A higher price or more demand never costs less."""
    for o in answer(ALL, tmp_path).options:
        assert o.sensitivities
        assert all(s.low_usd <= o.total + 0.01 <= s.high_usd + 0.02 for s in o.sensitivities)


def test_spot_takes_only_what_may_be_interrupted(tmp_path: Path) -> None:
    """A spot price of 2026: the training job goes there if it says so, the service never does."""
    head = HEAD.replace("[g6e.xlarge, g6e.12xlarge]", "[a2-highgpu-1g]")
    plain = answer(head + TRAINING + SERVING, tmp_path)
    assert "spot" not in {o.kind for o in plain.options}
    spot = answer(head + TRAINING + "    interruptible: true\n" + SERVING, tmp_path)
    kinds = {spot.demands[w].workload.name: spot.market.machines[m].kind for w, m in option(spot, "spot").machine.items()}
    assert {"tune": "spot", "chat": "on_demand"} == kinds


def test_impossible_loads_are_not_served_and_say_by_how_much(tmp_path: Path) -> None:
    """A deadline that no machine meets, a model that no card holds, and a latency below one step."""
    text = (
        HEAD
        + TRAINING.replace("48 hours", "1 min")
        + TRAINING.removeprefix("training:\n").replace("tune", "huge").replace("qlora", "full").replace("7b", "70b")
        + SERVING
        + "    token_p95: 1 ms\n"
    )
    found = answer(text, tmp_path)
    reasons = {demand.workload.name: demand.reason for demand in found.unserved}
    assert {"tune", "huge", "chat"} == set(reasons)
    assert "too long" in reasons["tune"]
    assert "short by" in reasons["huge"]
    assert "token latency" in reasons["chat"]
    assert found.recommended is None


def test_limits_that_hold_nothing_are_noted(tmp_path: Path) -> None:
    """One box at most, for a load of many."""
    text = HEAD + BUY.rstrip("\n") + "\n      max: 1\n" + SERVING.replace("3/s", "900/s")
    found = answer(text, tmp_path)
    assert "buy" not in {o.kind for o in found.options}
    assert any("`max`" in note for note in found.notes)


def test_headroom_is_what_still_fits(tmp_path: Path) -> None:
    """Demand that grows by the head-room needs no machine more, and by a little beyond it does."""
    rent = option(answer(HEAD + SERVING, tmp_path), "on_demand")
    assert rent.headroom is not None
    machines = sum(rent.months[0].machines.values())
    for growth, more in ((0.98, False), (1.1, True)):
        rate = 3 * (1 + rent.headroom) * growth
        found = answer(HEAD + SERVING.replace("peak: 3/s", f"peak: {rate:.4f}/s"), tmp_path)
        assert more == (sum(option(found, "on_demand").months[0].machines.values()) > machines)


@pytest.mark.parametrize(("day", "word"), [("2024-01-01", "days old"), ("2099-01-01", "in the future")])
def test_dates_of_prices_that_cannot_be_trusted(tmp_path: Path, day: str, word: str) -> None:
    """An old price and one of tomorrow are noted."""
    found = answer(HEAD + BUY.replace("2026-06-01", day) + SERVING, tmp_path)
    assert any(word in note for note in found.notes)

"""A capacity plan in words and tables, ready for a terminal, Markdown or HTML. Figures come ready; here they get units."""

from dataclasses import dataclass
from decimal import Decimal

from tuneplan.planner.capacity.fleet import MOST_GROWTH
from tuneplan.planner.capacity.machines import BUY, MachineType
from tuneplan.planner.capacity.options import SWING, CapacityAnswer, Option
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH
from tuneplan.planner.report.capacity_json import machines_of
from tuneplan.planner.units import format_usd

MOST_ROWS = 40
FIRST_RUNS = 12
NAMES = {
    "on_demand": "rent on demand",
    "spot": "rent spot",
    "reserved": "reserve",
    "buy": "buy",
    "mixed": "mixed",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; the first `left` columns are words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """The page: a headline, facts, tables, and what to know."""

    headline: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def summary(answer: CapacityAnswer) -> Summary:
    """The page of an answer."""
    tables = [_options(answer)]
    best = answer.recommended
    if best is not None:
        tables += [_machines(answer, best), _sensitivity(best)]
    tables.append(_placement(answer))
    if best is not None:
        tables.append(_schedule(best))
    if answer.unserved:
        rows = tuple((d.workload.name, str(answer.file.line(d.path)), d.reason) for d in answer.unserved[:MOST_ROWS])
        tables.append(Table("Not served", ("workload", "line", "why"), rows, 3))
    tables.append(_prices(answer))
    return Summary(_headline(answer), _facts(answer), tuple(table for table in tables if table.rows), _notes(answer))


def _usd(amount: float) -> str:
    return format_usd(Decimal(f"{amount:.2f}"))


def _headline(answer: CapacityAnswer) -> str:
    best = answer.recommended
    if not answer.options:
        return "No listed machine can take any of the workloads"
    if best is None:
        return "No option places every workload that could run"
    rest = f"; {len(answer.unserved)} workloads cannot be served" if answer.unserved else ""
    return f"Recommended: {NAMES[best.kind]}, {_usd(best.total)} over {answer.workloads.horizon} months{rest}"


def _facts(answer: CapacityAnswer) -> tuple[tuple[str, str], ...]:
    w = answer.workloads
    facts = [
        ("workloads", f"{len(w.training)} training, {len(w.serving)} serving (entries of {answer.file.name})"),
        ("horizon", f"{w.horizon} months of {HOURS_PER_MONTH} hours, growth {w.growth:+.1%} a month"),
        ("head-room", f"at most {w.max_utilisation:.0%} of a machine's capacity is planned for"),
        ("money", "US dollars; totals count depreciation (straight line), cash counts purchases"),
    ]
    best = answer.recommended
    if best is not None:
        last = best.months[-1]
        busy = last.busy_gpu_hours / HOURS_PER_MONTH
        facts.append(
            (
                "peak and average",
                f"last month: {last.peak_gpus:,.1f} GPUs on all month at the peak, {busy:,.1f} working on average",
            )
        )
        facts.append(("binding", best.binding))
        if best.headroom is not None:
            least = "at least " if best.headroom > MOST_GROWTH - 1.1 else ""
            facts.append(("room to grow", f"{least}{best.headroom:.0%} more than the last month's demand fits the same machines"))
        plan = best.schedule
        if plan.runs:
            ends = f"{plan.makespan_hours:,.1f} h, no earlier than {plan.lower_bound_hours:,.1f} h in any order"
            facts.append(("schedule", f"{len(plan.runs)} runs in month {plan.month}, the last ends after {ends}"))
    return tuple(facts)


def _options(answer: CapacityAnswer) -> Table:
    rows = []
    for option in answer.options:
        even = "-" if option.break_even_month is None else str(option.break_even_month)
        bound = "-" if option.lower_bound is None else _usd(option.lower_bound)
        state = "" if option.complete else f"{len(option.unplaced)} not placed"
        rows.append(
            (
                NAMES[option.kind],
                _usd(option.total),
                bound,
                _usd(option.cash),
                f"{option.utilisation:.0%}",
                even,
                state or "all placed",
            )
        )
    columns = ("option", "total", "lower bound", "cash", "GPUs working", "break-even month", "workloads")
    return Table("Options", columns, tuple(rows))


def _machines(answer: CapacityAnswer, option: Option) -> Table:
    rows = []
    for machine in machines_of(answer, option):
        name = machine.get("instance") or machine["machine"]
        hours = "all" if machine["hours_per_month"] is None else f"{machine['hours_per_month']:,.1f}"
        once = "-" if machine["purchase_usd_each"] is None else _usd(machine["purchase_usd_each"])
        cards = f"{machine['gpus_each']} x {machine['gpu']}"
        rows.append((name, cards, NAMES[machine["kind"]], str(machine["count"]), hours, _usd(machine["usd_per_month"]), once))
    columns = ("machine", "GPUs", "how", "count", "hours a month", "USD a month", "price of one")
    return Table(f"Machines of the option {NAMES[option.kind]}, at the end", columns, tuple(rows), 3)


def _sensitivity(option: Option) -> Table:
    rows = tuple((s.what, _usd(s.low_usd), _usd(option.total), _usd(s.high_usd)) for s in option.sensitivities)
    return Table("What the total depends on", ("what moves", f"-{SWING:.0%}", "as given", f"+{SWING:.0%}"), rows)


def _placement(answer: CapacityAnswer) -> Table:
    best = answer.recommended
    rows = []
    for w, m in sorted(best.machine.items()) if best is not None else ():
        demand = answer.demands[w]
        need, machine = demand.needs[m], answer.market.machines[m]
        speed = f"{need.hours:,.2f} h a run" if need.hours else f"{need.rate:,.2f} requests/s a replica"
        rows.append((demand.workload.name, f"{need.gpus} of {machine.label}", need.detail, speed, need.binding))
    shown = rows[:MOST_ROWS]
    if len(rows) > MOST_ROWS:
        shown.append((f"... and {len(rows) - MOST_ROWS} more (--json has all)", "", "", "", ""))
    return Table("Where the workloads run", ("workload", "GPUs", "how", "speed (modelled)", "limited by"), tuple(shown), 5)


def _schedule(option: Option) -> Table:
    plan = option.schedule
    rows = [
        (run.workload, f"{run.gpus} of {run.machine}", f"{run.start:,.1f} h", f"{run.end:,.1f} h")
        for run in plan.runs[:FIRST_RUNS]
    ]
    if len(plan.runs) > FIRST_RUNS:
        rows.append((f"... and {len(plan.runs) - FIRST_RUNS} more (--json has up to 1,000)", "", "", ""))
    return Table(
        f"Training runs of month {plan.month}, on machines that are paid for",
        ("workload", "GPUs", "start", "end"),
        tuple(rows),
        2,
    )


def _price_text(machine: MachineType) -> str:
    return _usd(machine.purchase) if machine.kind == BUY else f"{_usd(machine.usd_per_hour)}/h"


def _prices(answer: CapacityAnswer) -> Table:
    rows = []
    for machine in answer.market.machines:
        age = "unknown" if machine.age_days is None else f"{machine.age_days} days"
        named = machine.instance.id if machine.instance else machine.label
        rows.append((named, NAMES[machine.kind], _price_text(machine), machine.date or "no date", age, machine.source))
    return Table("Prices", ("machine", "how", "price", "date", "age", "source"), tuple(rows[:MOST_ROWS]), 6)


def _notes(answer: CapacityAnswer) -> tuple[str, ...]:
    notes = [f"With {what} {change}, {NAMES[kind]} is cheapest." for what, change, kind in answer.turning_points]
    if answer.recommended is not None and not answer.turning_points and len(answer.options) > 1:
        notes.append(f"No single change of {SWING:.0%} in prices or demand changes the recommendation.")
    best = answer.recommended
    if best is not None and best.schedule.left_out:
        notes.append(
            f"The schedule places {len(best.schedule.runs):,} runs; {best.schedule.left_out:,} more count by their hours alone."
        )
    if any(job.setup is None for job in answer.workloads.training):
        notes.append("Starting machines and loading models is not counted for training jobs without `setup`.")
    notes += answer.notes
    notes.append("Memory is counted, times are modelled; check prices and run one job of each kind before you sign.")
    return tuple(notes)

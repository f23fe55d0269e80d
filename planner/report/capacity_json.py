"""A capacity plan as the JSON document of `plan capacity --json`, and as CSV by month."""

import csv
import io
from typing import Any

from tuneplan.planner.capacity.demand import Demand
from tuneplan.planner.capacity.fleet import PARTS, Month
from tuneplan.planner.capacity.machines import MachineType
from tuneplan.planner.capacity.options import CapacityAnswer, Option

LARGEST_SCHEDULE = 1000


def capacity_json(answer: CapacityAnswer) -> dict[str, Any]:
    """The whole answer; money in US dollars."""
    options = [_option(answer, option) for option in answer.options]
    best = next((shown for shown, option in zip(options, answer.options, strict=True) if option is answer.recommended), None)
    return {
        "months": answer.workloads.horizon,
        "currency": "USD",
        "growth_per_month": answer.workloads.growth,
        "max_utilisation": answer.workloads.max_utilisation,
        "workloads": [_workload(answer, demand) for demand in answer.demands],
        "options": options,
        "recommended": best,
        "unserved": [_unserved(answer, demand) for demand in answer.unserved],
        "turning_points": [{"what": w, "change": c, "then_cheapest": k} for w, c, k in answer.turning_points],
        "prices": [_price(machine) for machine in answer.market.machines],
        "notes": list(answer.notes),
        "basis": {"memory": "counted; activations and runtime calibrated", "time": "modelled", "prices": "as dated"},
    }


def _workload(answer: CapacityAnswer, demand: Demand) -> dict[str, Any]:
    machines = answer.market.machines
    return {
        "name": demand.workload.name,
        "kind": demand.kind,
        "model": demand.workload.model,
        "count": demand.workload.count,
        "line": answer.file.line(demand.path),
        "machines": [
            {
                "machine": machines[m].label,
                "kind": machines[m].kind,
                "gpus": need.gpus,
                "hours_per_run": need.hours or None,
                "requests_per_second": need.rate or None,
                "detail": need.detail,
                "binding": need.binding,
            }
            for m, need in demand.needs.items()
        ],
    }


def _option(answer: CapacityAnswer, option: Option) -> dict[str, Any]:
    return {
        "kind": option.kind,
        "complete": option.complete,
        "machines": machines_of(answer, option),
        "usd_total": _cents(option.total),
        "usd_cash": _cents(option.cash),
        "lower_bound_usd": None if option.lower_bound is None else _cents(option.lower_bound),
        "utilisation": option.utilisation,
        "headroom": option.headroom,
        "binding": option.binding,
        "break_even_month": option.break_even_month,
        "placement": {answer.demands[w].workload.name: answer.market.machines[m].label for w, m in option.machine.items()},
        "unplaced": [answer.demands[w].workload.name for w in option.unplaced],
        "sensitivity": [
            {"what": s.what, "low_usd": _cents(s.low_usd), "high_usd": _cents(s.high_usd)} for s in option.sensitivities
        ],
        "monthly": [_month(answer, month) for month in option.months],
        "schedule": _schedule(option),
    }


def machines_of(answer: CapacityAnswer, option: Option) -> list[dict[str, Any]]:
    """The machines of the last month in which each is used; those rented by the hour with their hours."""
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for month in option.months:
        for m, count in month.machines.items():
            machine = answer.market.machines[m]
            found[m, False] = _machine(machine, count, count * machine.monthly, None)
        for m, hours in month.hours.items():
            machine = answer.market.machines[m]
            found[m, True] = _machine(machine, max(1, -(-int(hours) // 730)), hours * machine.usd_per_hour, hours)
    return [found[key] for key in sorted(found)]


def _machine(machine: MachineType, count: int, usd: float, hours: float | None) -> dict[str, Any]:
    named = {"instance": machine.instance.id} if machine.instance else {"machine": machine.label}
    return {
        **named,
        "gpu": machine.gpu.id,
        "gpus_each": machine.gpu_count,
        "kind": machine.kind,
        "count": count,
        "hours_per_month": hours,
        "usd_per_month": _cents(usd),
        "purchase_usd_each": machine.purchase or None,
    }


def _month(answer: CapacityAnswer, month: Month) -> dict[str, Any]:
    return {
        "month": month.number,
        "usd": _cents(month.total),
        "usd_cash": _cents(month.cash),
        "parts": {part: _cents(month.usd[part]) for part in PARTS},
        "machines": {
            f"{answer.market.machines[m].label} ({answer.market.machines[m].kind})": n for m, n in month.machines.items()
        },
        "gpu_hours": month.gpu_hours,
        "busy_gpu_hours": month.busy_gpu_hours,
        "peak_gpus": month.peak_gpus,
        "utilisation": month.utilisation,
    }


def _schedule(option: Option) -> dict[str, Any]:
    plan = option.schedule
    return {
        "month": plan.month,
        "makespan_hours": plan.makespan_hours,
        "lower_bound_hours": plan.lower_bound_hours,
        "not_shown": max(0, len(plan.runs) - LARGEST_SCHEDULE) + plan.left_out,
        "runs": [
            {
                "workload": run.workload,
                "machine": run.machine,
                "slot": run.slot,
                "gpus": run.gpus,
                "start_hour": round(run.start, 3),
                "end_hour": round(run.end, 3),
                "deadline_hour": None if run.deadline is None else round(run.deadline, 3),
            }
            for run in plan.runs[:LARGEST_SCHEDULE]
        ],
    }


def _unserved(answer: CapacityAnswer, demand: Demand) -> dict[str, Any]:
    return {"name": demand.workload.name, "line": answer.file.line(demand.path), "reason": demand.reason}


def _price(machine: MachineType) -> dict[str, Any]:
    return {
        "machine": machine.label,
        "instance": machine.instance.id if machine.instance else None,
        "kind": machine.kind,
        "usd_per_hour": machine.usd_per_hour or None,
        "purchase_usd": machine.purchase or None,
        "date": machine.date,
        "age_days": machine.age_days,
        "source": machine.source,
    }


def _cents(usd: float) -> float:
    return round(usd, 2)


def capacity_csv(answer: CapacityAnswer) -> str:
    """A row for each option and month; money in US dollars."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "option",
            "month",
            "usd",
            "usd_cash",
            *(f"usd_{part}" for part in PARTS),
            "machines",
            "gpu_hours",
            "busy_gpu_hours",
            "utilisation",
        ]
    )
    for option in answer.options:
        for month in option.months:
            writer.writerow(
                [
                    option.kind,
                    month.number,
                    f"{month.total:.2f}",
                    f"{month.cash:.2f}",
                    *(f"{month.usd[part]:.2f}" for part in PARTS),
                    "; ".join(f"{count} x {answer.market.machines[m].label}" for m, count in month.machines.items()),
                    f"{month.gpu_hours:.1f}",
                    f"{month.busy_gpu_hours:.1f}",
                    f"{month.utilisation:.4f}",
                ]
            )
    return stream.getvalue()

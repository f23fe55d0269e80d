"""Print the table of docs/capacity.md: the reference study's three models on each kind of machine alone, and on all together.

PYTHONPATH=src python docs/worked_case.py    a few seconds
"""

from datetime import date
from pathlib import Path

from tuneplan.planner.capacity.options import Option, plan_capacity
from tuneplan.planner.capacity.read import read_workloads
from tuneplan.planner.report.capacity_json import machines_of

EXAMPLE = Path(__file__).parent / "examples" / "reference_study.yaml"
TODAY = date(2026, 11, 23)
RENTED = {"p4de": ["p4de.24xlarge"], "g5": ["g5.12xlarge", "g5.48xlarge"], "g6e": ["g6e.12xlarge", "g6e.48xlarge"]}


def row(label: str, option: Option, machines: str) -> None:
    """A row of the table."""
    print(
        f"| {label} | {option.kind.replace('_', ' ')} | {machines} | {option.total:,.0f} | {option.cash:,.0f} | "
        f"{100 * option.utilisation:.0f} % | {option.binding} |"
    )


if __name__ == "__main__":
    workloads, file = read_workloads(EXAMPLE)
    hardware = workloads.hardware
    sets = {label: hardware.model_copy(update={"rent": rent, "buy": []}) for label, rent in RENTED.items()}
    sets |= {f"own {owned.name}": hardware.model_copy(update={"rent": [], "buy": [owned]}) for owned in hardware.buy}
    sets["all of them"] = hardware
    print("| machines allowed | best option | machines at the end | USD, 36 months | cash | GPUs working | binding |")
    print("|---|---|---|---:|---:|---:|---|")
    for label, allowed in sets.items():
        answer = plan_capacity(workloads.model_copy(update={"hardware": allowed}), file, TODAY)
        best = answer.recommended
        if best is None:
            print(f"| {label} | none: {answer.unserved[0].reason if answer.unserved else ''} | | | | | |")
            continue
        shown = []
        for machine in machines_of(answer, best):
            name = machine.get("instance") or machine["machine"]
            hours = machine["hours_per_month"]
            shown.append(f"{machine['count']} x {name}" if hours is None else f"{name} for {hours:.0f} h a month")
        row(label, best, ", ".join(shown))

"""What can be timed here, and what cannot and why: `plan bench --list`."""

from typing import Any

from tuneplan.kernels.bench.cases import Case, cpu_cases, gpu_cases
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.registry import KERNELS


def default_cases(machine: Machine) -> list[Case]:
    """The cases of a device where none is asked for."""
    return gpu_cases() if machine.on_gpu else cpu_cases()


def listing(machine: Machine, cases: list[Case]) -> list[dict[str, Any]]:
    """Each kernel with its cases, its implementations and why one cannot run the first of the cases here."""
    found = []
    for name, kernel in KERNELS.items():
        own = [case for case in cases if case.kernel == name]
        if not own:
            continue
        implementations = [
            {"name": key, "basis": one.basis, "missing": one.missing(own[0], machine.device)}
            for key, one in kernel.implementations.items()
        ]
        found.append({"kernel": name, "cases": [case.label for case in own], "implementations": implementations})
    return found

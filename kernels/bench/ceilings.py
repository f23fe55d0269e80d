"""What the device can do at best, measured in the process that times the kernels: copy, matrix products, a launch.

Random data: products of zeros draw less power and run at higher clocks than real ones.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from tuneplan.kernels.bench.clocks import CallClock, GraphClock, free
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.rows import MEASURED, Row, row

COPY_BYTES = 2 * 2**30
"""Of the tensor that is copied on a GPU: far beyond any cache."""
PRODUCT = 8192
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CPU_COPY_BYTES, _CPU_PRODUCT, _CPU_TOKENS = 2**26, 1024, (1, 64, 1024)
_ROUNDS = 7
_LAUNCHES = 200


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of one device.

    Args:
        copy_bytes_per_second: of a large copy; bytes read and written both count.
        copy_bytes: of the tensor that was copied.
        product_flops_per_second: of a square product in bf16.
        product_size: of its matrices.
        tokens: rows of activations of further products, with a square weight of `product_size`.
        tokens_flops_per_second: their rates.
        launch_seconds: from the start of one tiny kernel to that of the next, in a CUDA graph; None on a CPU.
        event_seconds: what two events around a tiny kernel show, the least that can be timed; None on a CPU.
    """

    copy_bytes_per_second: float
    copy_bytes: int
    product_flops_per_second: float
    product_size: int
    tokens: tuple[int, ...] = ()
    tokens_flops_per_second: tuple[float, ...] = ()
    launch_seconds: float | None = None
    event_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self)

    def least_seconds(self, moved_bytes: int, flops: int) -> float:
        """Of work that moves some bytes and counts some FLOPs, at the rates measured (a roofline)."""
        return max(moved_bytes / self.copy_bytes_per_second, flops / self.product_flops_per_second)


def measure(machine: Machine, curve: bool = True) -> Ceilings:
    """Measure them.

    Args:
        machine: the device.
        curve: products over their tokens too.
    """
    size = PRODUCT if machine.on_gpu else _CPU_PRODUCT
    copy_bytes = COPY_BYTES if machine.on_gpu else _CPU_COPY_BYTES
    copied = _copy(machine, copy_bytes)
    square = _product(machine, size, [size])[0]
    numbers = (TOKENS if machine.on_gpu else _CPU_TOKENS) if curve else ()
    rates = _product(machine, size, numbers)
    launch, event = _launch(machine) if machine.on_gpu else (None, None)
    free(machine.device)
    return Ceilings(copied, copy_bytes, square, size, tuple(numbers), tuple(rates), launch, event)


def ceilings_row(machine: Machine, best: Ceilings) -> Row:
    """The ceilings as a row."""
    return row("ceilings", machine.name, machine.provenance, on_gpu=machine.on_gpu, ceilings=best.as_json(), state=MEASURED)


def _seconds(machine: Machine, calls: Sequence[Any]) -> float:
    """The median of the rounds, on the device where it is a GPU."""
    clock = GraphClock(calls, machine.device) if machine.on_gpu else CallClock(calls, machine.device)
    return median(clock.round() for _ in range(_ROUNDS))


def _copy(machine: Machine, size: int) -> float:
    source = torch.randint(0, 2**31 - 1, (size // 4,), dtype=torch.int32, device=machine.device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(machine, [lambda: target.copy_(source)])


def _product(machine: Machine, size: int, tokens: Sequence[int]) -> list[float]:
    """FLOPs a second of `[tokens, size] @ [size, size]`, weights in turn so that none stays in the cache."""
    weights = [torch.randn(size, size, dtype=torch.bfloat16, device=machine.device) for _ in range(2)]
    found = []
    for number in tokens:
        x = torch.randn(number, size, dtype=torch.bfloat16, device=machine.device)
        out = torch.empty_like(x)
        calls = [lambda w=w, x=x, out=out: torch.mm(x, w.t(), out=out) for w in weights]
        found.append(2 * number * size * size / _seconds(machine, calls))
    return found


def _launch(machine: Machine) -> tuple[float, float]:
    one = torch.zeros(1, device=machine.device)

    def many() -> None:
        for _ in range(_LAUNCHES):
            one.add_(1)

    event = _seconds(machine, [lambda: one.add_(1)])
    return (_seconds(machine, [many]) - event) / (_LAUNCHES - 1), event

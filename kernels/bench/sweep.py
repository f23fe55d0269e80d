"""The constants of the Triton programs, each choice checked and timed on the card: which tile, how many warps.

All choices of one kernel and shape run in interleaved rounds, beside the constants that the code has now (the first contestant).
A choice that does not compile or gives a wrong result is a row that says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from types import FunctionType
from typing import Any

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.clocks import GraphClock, free, sets_for
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rounds import AGAIN, Ratio, Summary, interleaved
from tuneplan.kernels.bench.rows import FAILED, MEASURED, WRONG, Row, ratio_json, row, seconds_json
from tuneplan.kernels.bench.run import SEED
from tuneplan.kernels.bench.shapes import Shape

ROUNDS = 5
NOW = "now"
"""The name of the constants that the code has."""
Choice = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The choices of one kernel.

    Args:
        module: of `tuneplan.kernels.gpu`, whose constants are tried.
        cases: at which they are tried.
        choices: values of each constant; all combinations are run.
    """

    module: str
    cases: Sequence[Case]
    choices: Mapping[str, Sequence[Any]]


_WIDE, _LARGE, _SQUARE, _SHORT = Shape(11008, 4096), Shape(28672, 8192), Shape(4096, 4096), Shape(1024, 8192)
SWEEPS = (
    Sweep(
        "dequantize_4bit",
        [Case("dequantize_4bit", shape) for shape in (_WIDE, _LARGE, _SQUARE)],
        {"WORDS": (256, 512, 1024, 2048, 4096), "WARPS": (2, 4, 8)},
    ),
    Sweep(
        "linear_4bit",
        [Case("linear_4bit", _WIDE, tokens=1)],
        {"VECTOR_ROWS": (8, 16, 32), "VECTOR_WORDS": (64, 128, 256), "VECTOR_WARPS": (2, 4, 8)},
    ),
    Sweep(  # 32 of its rows a program would not fill a card, and would be halved
        "linear_4bit",
        [Case("linear_4bit", _SQUARE, tokens=1)],
        {"VECTOR_ROWS": (4, 8, 16), "VECTOR_WORDS": (64, 128, 256), "VECTOR_WARPS": (2, 4, 8)},
    ),
    Sweep(  # the keys and values of a 70B model, whose rows are halved until they fill the card or are this few
        "linear_4bit",
        [Case("linear_4bit", _SHORT, tokens=1)],
        {"FEWEST_ROWS": (4, 8, 16), "VECTOR_WORDS": (64, 128), "VECTOR_WARPS": (4, 8)},
    ),
    Sweep(
        "dequantize_8bit",
        [Case("dequantize_8bit", _WIDE, "int8_rows", nested=False, blocksize=0)],
        {"ROWS": (1, 2, 4, 8), "COLUMNS": (1024, 2048, 4096), "WARPS": (2, 4, 8)},
    ),
    Sweep(
        "dequantize_8bit",
        [Case("dequantize_8bit", _WIDE, "int8_blocks", nested=False, blocksize=256)],
        {"VALUES": (4096, 8192, 16384), "WARPS": (2, 4, 8)},
    ),
    Sweep(
        "lora_grad",
        [Case("lora_linear", _SQUARE, tokens=4096, rank=16)],
        {"ROWS": (64, 128, 256), "WARPS": (4, 8), "COLUMNS": (32, 64, 128)},
    ),
    Sweep(
        "linear_4bit",
        [Case("linear_4bit", _WIDE, tokens=number) for number in (16, 64)],
        {"MATRIX_ROWS": (32, 64, 128), "MATRIX_WARPS": (2, 4, 8), "PROGRAMS": (132, 264, 528)},
    ),
)


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of values."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def choice_name(choice: Choice) -> str:
    """Such as `WORDS=1024 WARPS=4`."""
    return " ".join(f"{key}={value}" for key, value in choice.items()) or NOW


@contextmanager
def constants(module: Any, choice: Choice) -> Iterator[None]:
    """A module with other constants, which its launches read; also those that are defaults of a launch's parameters."""
    before = {key: getattr(module, key) for key in choice}
    launches = [one for one in vars(module).values() if isinstance(one, FunctionType) and one.__defaults__]
    defaults = {launch: launch.__defaults__ for launch in launches}
    try:
        for key, value in choice.items():
            setattr(module, key, value)
        for launch in launches:
            launch.__defaults__ = _defaults(launch, choice)
        yield
    finally:
        for key, value in before.items():
            setattr(module, key, value)
        for launch, values in defaults.items():
            launch.__defaults__ = values


def _defaults(launch: FunctionType, choice: Choice) -> tuple[Any, ...]:
    """A launch's defaults, those named as a constant (in small letters) with its value."""
    code, values = launch.__code__, launch.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][-len(values) :]
    return tuple(choice.get(name.upper(), value) for name, value in zip(names, values, strict=True))


def key_of(case: Case, choice: Choice) -> str:
    """Of a row."""
    return f"{case.label} / {choice_name(choice)}"


def run_sweep(sweep: Sweep, case: Case, machine: Machine, ceilings: Ceilings) -> list[Row]:
    """A row of each choice at one case, and of the constants as they are; on a GPU."""
    kernel = KERNELS[case.kernel]
    module = import_module(f"tuneplan.kernels.gpu.{sweep.module}")
    count = sets_for(kernel.minimum_bytes(case), machine.device)
    inputs = [kernel.inputs(case, machine.device, SEED + 10 * number) for number in range(count)]
    outputs = [kernel.output(case, machine.device) for _ in inputs]
    expected = kernel.expected(case, inputs[0])
    own = kernel.implementations["tuneplan"]
    calls = [partial(own.prepare(case, one), out) for one, out in zip(inputs, outputs, strict=True)]
    clocks: dict[str, GraphClock] = {}
    rows: list[Row] = []
    choices: list[dict[str, Any]] = [{}, *combinations(sweep.choices)]
    for choice in choices:
        name = choice_name(choice)
        try:
            with constants(module, choice):
                if outputs[0] is not None:
                    outputs[0].fill_(float("nan"))
                checked = kernel.check(case, "tuneplan", calls[0](), expected)
                if checked.reason:
                    rows.append(_row(case, choice, machine, WRONG, checked.reason))
                    continue
                clocks[name] = GraphClock(calls, machine.device)
        except Exception as error:  # a tile that the compiler cannot make
            rows.append(_row(case, choice, machine, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    rounds = interleaved({name: clock.round for name, clock in clocks.items()}, ROUNDS)
    for choice in choices:
        name = choice_name(choice)
        if name in rounds:
            seconds = Summary.of(rounds[name])
            ratio = Ratio.of(rounds[name], rounds[NOW], rounds[NOW + AGAIN]) if NOW in rounds and name != NOW else None
            share = ceilings.least_seconds(kernel.minimum_bytes(case), kernel.flops(case)) / seconds.median
            more = {"device_seconds": seconds_json(seconds), "versus_now": ratio_json(ratio), "share_of_roofline": share}
            rows.append(_row(case, choice, machine, MEASURED, None, **more))
    clocks.clear()
    free(machine.device)
    return rows


def _row(case: Case, choice: Choice, machine: Machine, state: str, reason: str | None, **more: Any) -> Row:
    body = {"kernel": case.kernel, "case": case.as_json(), "choice": dict(choice), "state": state, "reason": reason, **more}
    return row("sweep", key_of(case, choice), machine.provenance, **body)

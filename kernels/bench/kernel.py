"""What the harness must know of a kernel and of an implementation of it."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tuneplan.kernels.backend import why_not
from tuneplan.kernels.bench.cases import Case

Prepared = Callable[[torch.Tensor | None], Any]
"""A call on one set of inputs; given a buffer it writes its result there where it can, given None it allocates."""


def nothing(case: Case, device: torch.device) -> str | None:
    """No reason against any case."""
    return None


def needs_triton(case: Case, device: torch.device) -> str | None:
    """On a GPU our kernels are Triton's; their plain torch is timed on a CPU only."""
    return why_not(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to run a kernel.

    Args:
        prepare: makes the call for one set of inputs; may raise.
        packages: that must be installed.
        on_gpu_only: cannot run on a CPU.
        refuses: why a case cannot be run on a device, or None.
        moved_bytes: that it reads and writes itself, or None where that is not known.
        bound: relative error (Frobenius norm) that its result may have to the reference; None: the kernel's own bound.
        compiles: what it runs is compiled first, which takes its time.
        basis: of `moved_bytes`, and whatever else a reader of its rows must know.
    """

    prepare: Callable[[Case, Any], Prepared]
    packages: tuple[str, ...] = ()
    on_gpu_only: bool = False
    refuses: Callable[[Case, torch.device], str | None] = nothing
    moved_bytes: Callable[[Case], int | None] = field(default=lambda case: None)
    bound: float | None = None
    compiles: bool = False
    basis: str = ""

    def missing(self, case: Case, device: torch.device) -> str | None:
        """Why it is not run, or None."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} is not installed"
        if self.on_gpu_only and device.type != "cuda":
            return "it runs on a GPU only"
        return self.refuses(case, device)


@dataclass(frozen=True, slots=True)
class Checked:
    """A result beside what it must be.

    Args:
        error: relative, in the Frobenius norm; 0 where every value is equal.
        bound: the largest that is let through; 0: every value must be equal.
        reason: what is wrong, or None.
    """

    error: float
    bound: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """An op with its implementations.

    Args:
        inputs: one random set of them on a device, from a seed.
        output: a buffer for the result, or None where calls allocate it.
        expected: the right result, or several, of a set of inputs.
        bound: relative error that a result may have, by the case; 0: none, every value is equal.
        minimum_bytes: that any implementation must read and write; charged to each alike.
        flops: that the case needs; 0 where bytes are all that counts.
        implementations: by name; the first one that can run is what others are compared with.
    """

    inputs: Callable[[Case, torch.device, int], Any]
    output: Callable[[Case, torch.device], torch.Tensor | None]
    expected: Callable[[Case, Any], Sequence[torch.Tensor]]
    bound: Callable[[Case], float]
    minimum_bytes: Callable[[Case], int]
    flops: Callable[[Case], int]
    implementations: Mapping[str, Implementation]

    def check(self, case: Case, name: str, result: Any, expected: Sequence[torch.Tensor]) -> Checked:
        """Whether an implementation's result is right."""
        own = self.implementations[name].bound
        bound = self.bound(case) if own is None else own
        results = result if isinstance(result, tuple | list) else [result]
        if len(results) != len(expected):
            return Checked(float("inf"), bound, f"{len(results)} results, {len(expected)} are expected")
        worst = 0.0
        for got, right in zip(results, expected, strict=True):
            if got.shape != right.shape:
                return Checked(float("inf"), bound, f"the shape is {list(got.shape)}, not {list(right.shape)}")
            if bound == 0 and not same(got, right):
                wrong = int((got != right).sum())
                return Checked(error_of(got, right), bound, f"{wrong} of {got.numel()} values differ from the reference")
            error = error_of(got, right) if bound else 0.0
            # not a number is no error within a bound
            if not error <= bound:
                return Checked(error, bound, f"relative error {error:.3g} is above {bound:.3g}")
            worst = max(worst, error)
        return Checked(worst, bound)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal value by value; 0 and -0 are alike (tables of FP4 differ in them), not a number is unlike."""
    return one.dtype == other.dtype and torch.equal(one, other)


def error_of(got: torch.Tensor, right: torch.Tensor) -> float:
    """Relative error in the Frobenius norm, counted in fp64, in parts so that it takes little memory."""
    difference = size = 0.0
    for a, b in zip(got.detach().reshape(-1).split(2**24), right.reshape(-1).split(2**24), strict=True):
        difference += float((a.double() - b.double()).square().sum())
        size += float(b.double().square().sum())
    return float((difference / size) ** 0.5) if size else difference


_COMPILED: dict[str, Callable[..., Any]] = {}


def compiled(case: Case, make: Callable[[], Callable[..., Any]], fullgraph: bool = True) -> Callable[..., Any]:
    """A function through torch.compile, once for a case and all of its inputs; `fullgraph`: without breaks."""
    key = case.label
    if key not in _COMPILED:
        torch.compiler.reset()
        _COMPILED.clear()
        _COMPILED[key] = torch.compile(make(), dynamic=False, fullgraph=fullgraph)
    return _COMPILED[key]

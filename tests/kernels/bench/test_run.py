"""A case on the CPU: what is wrong is not timed, what is missing says why, and rows hold all that repeats them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from tuneplan.kernels.bench import run as running
from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.kernel import Implementation, Kernel
from tuneplan.kernels.bench.machine import machine_of
from tuneplan.kernels.bench.registry import KERNELS
from tuneplan.kernels.bench.rows import append, newest, read_rows
from tuneplan.kernels.bench.session import Budget, run_cases
from tuneplan.kernels.bench.shapes import Shape
from tuneplan.kernels.errors import KernelInputError

CASE = Case("dequantize_4bit", Shape(64, 256))
CEILINGS = Ceilings(1e10, 1, 1e11, 1)
CPU = machine_of("cpu")


def with_implementations(monkeypatch: pytest.MonkeyPatch, **added: Implementation) -> None:
    """The kernel with further implementations."""
    kernel = KERNELS["dequantize_4bit"]
    table: dict[str, Kernel] = {
        **KERNELS,
        "dequantize_4bit": replace(kernel, implementations={**kernel.implementations, **added}),
    }
    monkeypatch.setattr(running, "KERNELS", table)
    monkeypatch.setattr("tuneplan.kernels.bench.session.KERNELS", table)


def wrong(change: Any) -> Implementation:
    """The right result, changed; it writes into a buffer where it is given one."""

    def prepare(case: Case, packed: Any) -> Any:
        right = KERNELS["dequantize_4bit"].expected(case, packed)[0]

        def call(out: Any) -> Any:
            result = out if out is not None else torch.empty_like(right)
            change(result, right)
            return result

        return call

    return Implementation(prepare)


def all_but_one(result: Any, right: Any) -> None:
    """One value stays what it was."""
    result.view(-1)[1:] = right.view(-1)[1:]


def one_bit_off(result: Any, right: Any) -> None:
    """The last bit of a value is another."""
    result.copy_(right)
    result.view(torch.int16)[3, 5] ^= 1


def broken(case: Case, packed: Any) -> Any:
    """Another project's code that cannot run."""
    raise OSError("no such\nkernel")


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value left out, a bit off and an error are rows with a reason and without times; the right ones are timed."""
    with_implementations(monkeypatch, hole=wrong(all_but_one), bit=wrong(one_bit_off), broken=Implementation(broken))
    rows = {row["implementation"]: row for row in running.run_case(CASE, CPU, CEILINGS, ["tuneplan", "hole", "bit", "broken"], 2)}
    assert {"tuneplan": "measured", "hole": "wrong", "bit": "wrong", "broken": "failed"} == {
        name: row["state"] for name, row in rows.items()
    }
    assert "1 of 16384 values differ from the reference" == rows["hole"]["reason"] == rows["bit"]["reason"]
    assert "OSError: no such kernel" == rows["broken"]["reason"]
    assert [None] * 3 == [rows[name]["call_seconds"] for name in ("hole", "bit", "broken")]
    own = rows["tuneplan"]
    assert ("wall", None, None) == (own["clock"], own["device_seconds"], own["versus"])
    assert 2 == len(own["call_seconds"]["rounds"])
    assert own["minimum_bytes"] / own["call_seconds"]["median"] / 1e10 == pytest.approx(own["share_of_copy"])
    assert {"date", "git_commit", "device", "libraries", "command"} <= set(own["provenance"])


def test_not_a_number_is_no_small_error() -> None:
    """Within a bound, a result without numbers is wrong."""
    case = replace(CASE, kernel="linear_4bit", tokens=1)
    kernel = KERNELS["linear_4bit"]
    right = torch.ones(1, 64, dtype=torch.float64)
    assert kernel.check(case, "tuneplan", right * (1 + 1e-4), [right]).reason is None
    for result in (right * float("nan"), right * 1.1, right[:, :3]):
        assert kernel.check(case, "tuneplan", result, [right]).reason
    assert "2 results, 1 are expected" == kernel.check(case, "tuneplan", [right, right], [right]).reason


def test_every_kernel_runs_here() -> None:
    """Forward and backward, with an adapter and without one: our own results pass the gate, and others' that are installed."""
    shape = Shape(64, 128)
    cases = [
        Case("dequantize_8bit", shape, "int8_rows", nested=False, blocksize=0),
        Case("dequantize_8bit", shape, "int8_blocks", nested=False, blocksize=256),
        Case("linear_4bit", shape, tokens=2),
        Case("lora_linear", shape, tokens=8, rank=4),
        Case("lora_linear", shape, tokens=8, rank=0),
        replace(CASE, format="fp4"),
        replace(CASE, nested=False, dtype="fp32"),
    ]
    for case in cases:
        rows = running.run_case(case, CPU, CEILINGS, ["tuneplan", "bitsandbytes"], 2)
        states = {row["implementation"]: (row["state"], row["reason"]) for row in rows}
        assert ("measured", None) == states["tuneplan"], case.label
        assert "wrong" != states["bitsandbytes"][0], states
        json.dumps(rows, allow_nan=False)


def test_what_cannot_run_says_why() -> None:
    """A GPU's, one that is slow to compile, and a case that another project gets wrong."""
    rows = running.run_case(replace(CASE, shape=Shape(4, 96)), CPU, CEILINGS, None, 2)
    reasons = {row["implementation"]: row["reason"] for row in rows if row["state"] == "not run"}
    assert "compiling takes long on a CPU" in reasons["torch_compile"]
    assert reasons["unsloth"] in ("unsloth is not installed", "it runs on a GPU only")
    assert reasons["bitsandbytes"] in (
        "bitsandbytes is not installed",
        "bitsandbytes' code for CPUs is wrong where rows are not whole blocks",
    )
    with pytest.raises(KernelInputError, match="unknown device 'tpu'"):
        machine_of("tpu")


def test_a_case_that_does_not_fit_is_not_begun() -> None:
    """A weight of a tebibyte is a row that says what it needs and what is free."""
    rows = running.run_case(replace(CASE, shape=Shape(2**20, 2**20)), CPU, CEILINGS, ["tuneplan"], 2)
    assert [("not run", True)] == [(row["state"], "GiB are free" in row["reason"]) for row in rows]


def test_a_session_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Rows are written as they come; a case with rows is skipped, one that the time does not reach is left."""
    file = tmp_path / "rows.jsonl"
    cases = [CASE, replace(CASE, format="fp4")]
    session = run_cases(cases[:1], CPU, CEILINGS, Budget(60), names=["tuneplan"], rounds=2, file=file)
    assert 1 == len(session.rows) == len(read_rows(file))
    with file.open("a", encoding="utf-8") as cut:
        cut.write('{"kind": "bench", "key"')
    append(file, [{"kind": "check", "key": "x", "provenance": {}}])
    assert 2 == len(read_rows(file))
    again = run_cases(cases, CPU, CEILINGS, Budget(0), names=["tuneplan"], rounds=2, done=read_rows(file), file=file)
    assert (1, [cases[1]], []) == (again.done_before, again.left, again.rows)


def test_the_newest_row_counts(tmp_path: Path) -> None:
    """A case that was measured twice is there once, with what came last."""
    rows = [{"kind": "bench", "key": key, "provenance": {}, "value": value} for key, value in (("a", 1), ("b", 2), ("a", 3))]
    append(tmp_path / "x.jsonl", rows)
    assert [3, 2] == [row["value"] for row in newest(read_rows(tmp_path))]


def test_budget() -> None:
    """Nothing begins that may end too late, judged by the longest of its kind."""
    times = iter([0.0, 1.0, 2.0, 5.0, 6.0, 8.0])
    budget = Budget(10, clock=lambda: next(times))
    assert budget.allows("a", expected=8)
    assert [] == budget.spend("a", list)
    assert budget.allows("a")
    assert not budget.allows("a", expected=99)

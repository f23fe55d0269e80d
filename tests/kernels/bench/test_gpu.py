"""The one command for a GPU, on a CPU with tiny shapes: rows as they come, resumed, and never stopped by what is missing."""

from pathlib import Path
from typing import Any

import bare_machine
import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

from played_cuda import PlayedCuda

from tuneplan.kernels.bench import catalog, checks, gpu, sweep, train_step
from tuneplan.kernels.bench import ceilings as limits
from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.fit import fit
from tuneplan.kernels.bench.machine import Machine, machine_of
from tuneplan.kernels.bench.rows import ROWS, newest, read_rows
from tuneplan.kernels.bench.shapes import Shape, models
from tuneplan.kernels.bench.table import render, updated

ROOT = Path(__file__).parents[3]
CASES = [Case("dequantize_4bit", Shape(64, 128)), Case("linear_4bit", Shape(64, 128), tokens=2)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that are given, two cases, two checks, one of which cannot run here."""
    best = Ceilings(1e10, 1, 1e11, 1, (1,), (1e9,))
    monkeypatch.setattr(limits, "measure", lambda machine, curve=True: best)
    monkeypatch.setattr(gpu, "default_cases", lambda machine: CASES)
    monkeypatch.setattr(gpu, "CHECKS", {name: checks.CHECKS[name] for name in ("rows_apart", "captured")})
    monkeypatch.setattr(train_step, "steps", lambda machine: [train_step.Step(1, 16, True)])
    monkeypatch.setattr(train_step, "ROUNDS", 2)
    monkeypatch.setattr(gpu, "FIRST_CASES", 1)


@pytest.mark.usefixtures("quick")
def test_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of row is there, a second call runs nothing but the ceilings, and the table shows them."""
    words = ["--out", str(tmp_path / "cpu-x"), "--device", "cpu", "--seconds", "600"]
    assert gpu.main(words) == 0
    assert "all done" in capsys.readouterr().out
    rows = read_rows(tmp_path / "cpu-x" / ROWS)
    states = {(row["kind"], row["key"]): (row["state"], row.get("reason")) for row in rows}
    assert ("measured", None) == states["check", "rows_apart"]
    assert ("not run", "it needs a GPU") == states["check", "captured"]
    plain = next(row for row in rows if row["kind"] == "step" and row["implementation"] == "bitsandbytes")
    assert ("measured", None, "tuneplan") == (plain["state"], plain["reason"], plain["versus"]["implementation"])
    assert 0 < plain["gradients_error"] < train_step.GRADIENTS_BOUND
    assert {case.label for case in CASES} == {row["key"].rpartition(" / ")[0] for row in rows if row["kind"] == "bench"}
    assert gpu.main(words) == 0
    assert len(rows) + 1 == len(read_rows(tmp_path / "cpu-x" / ROWS))
    assert len(newest(read_rows(tmp_path / "cpu-x" / ROWS))) == len(rows)
    table = render(tmp_path)
    assert "not measured yet" in table
    assert all(case.label in table for case in CASES)
    assert "1 of 1 checks hold" in table


@pytest.mark.usefixtures("quick")
def test_a_library_that_is_missing_costs_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that cannot be built is a row with the reason, and what follows is run."""

    def no_model(machine: Any) -> Any:
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(train_step, "build", no_model)
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu"]) == 0
    rows = read_rows(tmp_path / ROWS)
    failed = [row for row in rows if row["kind"] == "step"]
    assert [("failed", "ImportError: No module named 'transformers'")] * 2 == [(row["state"], row["reason"]) for row in failed]
    assert CASES[1].label in rows[-1]["key"]


@pytest.mark.usefixtures("quick")
def test_it_stops_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without time nothing is begun, and what is left is said."""
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "0"]) == 0
    assert ["ceilings"] == [row["kind"] for row in read_rows(tmp_path / ROWS)]
    assert "left; run the same command again" in capsys.readouterr().out


class PlayedCard(Machine):
    """This CPU, under the name of a card: what runs on GPUs alone runs on a clock that is played."""

    __slots__ = ()

    @property
    def on_gpu(self) -> bool:
        """It says so."""
        return True


@pytest.mark.usefixtures("quick")
def test_a_card_that_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs, sweeps and device times as on a GPU, then the speeds that the planner reads."""
    pytest.importorskip("tuneplan.kernels.gpu.linear_4bit")
    PlayedCuda(lambda number: 1e-4).install(monkeypatch)
    here = machine_of("cpu")
    card = PlayedCard(here.device, "NVIDIA Played", {**here.provenance, "device": {"name": "NVIDIA Played"}})
    monkeypatch.setattr(gpu, "machine_of", lambda name: card)
    monkeypatch.setattr(gpu, "_steps", lambda campaign: None)
    monkeypatch.setattr(gpu, "names", lambda: ["tuneplan", "bitsandbytes"])
    monkeypatch.setattr(gpu, "default_cases", lambda machine: CASES[1:])
    swept = sweep.Sweep("linear_4bit", CASES[1:], {"VECTOR_ROWS": (2, 4)})
    monkeypatch.setattr(sweep, "SWEEPS", (swept, sweep.Sweep("linear_4bit", CASES[1:], {"VECTOR_WARPS": (2,)})))
    assert gpu.main(["--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / ROWS)
    timed = [row for row in rows if row["kind"] == "bench"]
    assert ["cuda graph"] * 2 == [row["clock"] for row in timed]
    assert 1e-4 == pytest.approx(timed[0]["device_seconds"]["median"])
    assert "no difference" == timed[1]["versus"]["verdict"]
    choices = [row["choice"] for row in rows if row["kind"] == "sweep"]
    assert [{}, {"VECTOR_ROWS": 2}, {"VECTOR_ROWS": 4}] == choices[:3]
    assert {"VECTOR_WARPS": 2} in choices
    speeds = fit(rows, ["rows.jsonl"])
    assert (1e10, (1,)) == (speeds.copy_bytes_per_second, speeds.gemm and speeds.gemm.tokens)


def test_checks_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel that rounds once, or leaves a value, the checks fail; without a GPU those that need one are not run."""
    cpu = machine_of("cpu")
    real = checks.dequantize_4bit

    def leaves_one(data: Any, packed: Any, out: Any = None, **more: Any) -> Any:
        before = out[0, 0].clone()
        real(data, packed, out=out, **more)
        out[0, 0] = before
        return out

    assert "measured" == checks.run_check("rounded_step_by_step", cpu)[0]["state"]
    monkeypatch.setattr(checks, "dequantize_4bit", leaves_one)
    for name in ("rounded_step_by_step", "rows_apart", "tiny_scales"):
        found = checks.run_check(name, cpu)[0]
        assert "wrong" == found["state"], found
    assert "not run" == checks.run_check("beyond_32_bits", cpu)[0]["state"]


def test_rows_of_a_weight() -> None:
    """A part of a weight decodes to the same rows; one that begins within a group of scales is refused."""
    packed = checks.packed_4bit(Case("dequantize_4bit", Shape(64, 1024)), machine_of("cpu").device, 1)
    whole = checks.reference(packed, checks.torch.float32)
    assert checks.same(whole[16:32], checks.reference(checks.rows_of(packed, 16, 32), checks.torch.float32))
    with pytest.raises(ValueError, match="row 3"):
        checks.rows_of(packed, 3, 8)


def test_constants_are_put_back() -> None:
    """A sweep's choice reaches the module and the defaults of its launches, and both are as before afterwards."""
    module = pytest.importorskip("tuneplan.kernels.gpu.dequantize_4bit")
    before = module.WORDS, module.dequantize.__defaults__
    with sweep.constants(module, {"WORDS": 256, "WARPS": 16}):
        assert (256, (256, 16)) == (module.WORDS, module.dequantize.__defaults__)
    assert before == (module.WORDS, module.dequantize.__defaults__)


def test_constants_of_sweeps_exist() -> None:
    """Every swept name is a constant of its module, and no choice is tried twice."""
    for one in sweep.SWEEPS:
        module = pytest.importorskip(f"tuneplan.kernels.gpu.{one.module}")
        assert all(isinstance(getattr(module, name), int) for name in one.choices), one.module
        names = [sweep.choice_name(choice) for choice in sweep.combinations(one.choices)]
        assert len(names) == len(set(names))


def test_swept_rows_are_those_that_run() -> None:
    """The launch halves rows that would not fill a card: a sweep that offered them would time others under their name."""
    module = pytest.importorskip("tuneplan.kernels.gpu.linear_4bit")
    swept = [one for one in sweep.SWEEPS if "VECTOR_ROWS" in one.choices]
    for case, rows in [(case, rows) for one in swept for case in one.cases for rows in one.choices["VECTOR_ROWS"]]:
        assert -(-case.shape.out_features // rows) >= module.PROGRAMS // 2, (case.label, rows)


def test_the_step_has_the_shapes_of_the_model() -> None:
    """Transformers' default of a Llama is the 7B model whose shapes the catalog has."""
    config = pytest.importorskip("transformers").LlamaConfig()
    hidden, inner = config.hidden_size, config.intermediate_size
    assert {Shape(hidden, hidden), Shape(inner, hidden), Shape(hidden, inner)} == set(models()[train_step.MODEL])


def test_the_table_is_up_to_date() -> None:
    """`python -m tuneplan.kernels.bench.table` writes it again."""
    from tuneplan.kernels.bench.table import README

    text = README.read_text(encoding="utf-8")
    assert text == updated(text, render())


def test_listing() -> None:
    """Every kernel with its cases and, for what cannot run here, the reason."""
    found = catalog.listing(machine_of("cpu"), catalog.default_cases(machine_of("cpu")))
    unsloth = {one["missing"] for kernel in found for one in kernel["implementations"] if one["name"] == "unsloth"}
    assert unsloth <= {"unsloth is not installed", "it runs on a GPU only"}
    assert all(kernel["cases"] for kernel in found)


def test_it_runs_without_the_report_libraries(tmp_path: Path) -> None:
    """On a bare machine: no click, rich, pydantic or NVML, no bitsandbytes, PEFT or transformers, no install."""
    code = (
        "import sys\n"
        "for name in ('click', 'rich', 'pydantic', 'pynvml', 'bitsandbytes', 'peft', 'transformers'): sys.modules[name] = None\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if sys.modules.get(name, 0) is None else real(name, *more)\n"
        "from tuneplan.kernels.bench import ceilings, fit, gpu, sweep, table\n"
        "ceilings.measure = lambda machine, curve=True: ceilings.Ceilings(1e10, 1, 1e11, 1)\n"
        "gpu.default_cases = lambda machine: gpu.gpu_cases()[:0]\n"
        "gpu.CHECKS = {'rows_apart': gpu.CHECKS['rows_apart']}\n"
        "sys.exit(gpu.main(['--out', sys.argv[1], '--device', 'cpu']))"
    )
    bare_machine.run(code, tmp_path)
    states = {(row["kind"], row["state"]) for row in read_rows(tmp_path / ROWS)}
    assert {("ceilings", "measured"), ("check", "measured"), ("step", "failed")} == states

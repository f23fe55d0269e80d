"""The GPU campaign's script, run on this machine's CPU with tiny models, and the tables made of its rows."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bare_machine
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from tuneplan.planner.units import GIB  # noqa: E402
from tuneplan.profiling import campaign, three_sources  # noqa: E402
from tuneplan.profiling.cases import UNPLANNED, Case, config_of, cpu_cases, gpu_cases  # noqa: E402
from tuneplan.profiling.evidence import peak_error, promised, tables  # noqa: E402
from tuneplan.profiling.largest_batch import largest  # noqa: E402

ROOT = Path(__file__).parents[2]
CARD = three_sources.Machine(torch.device("cpu"), (9, 0), 140 * GIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole campaign on the CPU."""
    place: Path = tmp_path_factory.mktemp("campaign")
    assert 0 == campaign.main(["--out", str(place), "--device", "cpu"])
    return place


def test_three_sources_side_by_side(folder: Path) -> None:
    """Every case has a row; what was traced is within 0.5 % of what was measured, for models whose every small tensor shows."""
    rows = campaign.read_rows(folder)

    assert [case.key for case in cpu_cases()] == [Case(**row["case"]).key for row in rows]
    for row in rows:
        assert row["measured"]["failure"] is None
        assert 0.5 > abs(peak_error(row, "traced", "allocated") or 100)
        assert {"device", "libraries", "date"} <= set(row["provenance"])
        if row["case"]["method"] in ("full", "lora", "qlora") and row["case"]["model"] not in UNPLANNED:
            assert 0.5 > abs(peak_error(row, "estimated", "allocated") or 100)


def test_a_model_that_the_planner_does_not_know(folder: Path) -> None:
    """It is traced and measured, and the row says why there is no estimate."""
    row = next(row for row in campaign.read_rows(folder) if row["case"]["model"] in UNPLANNED)
    assert "peak" in row["estimated"] or "gemma2" in row["estimated"]["refused"]


def test_finished_cases_are_skipped(folder: Path) -> None:
    """A campaign that was interrupted goes on where it stopped."""
    before = (folder / campaign.ROWS).read_text(encoding="utf-8")
    campaign.main(["--out", str(folder), "--device", "cpu"])
    assert before == (folder / campaign.ROWS).read_text(encoding="utf-8")


def test_a_line_that_was_cut_off_is_run_again(folder: Path, tmp_path: Path) -> None:
    """The last line of a killed campaign is no row."""
    lines = (folder / campaign.ROWS).read_text(encoding="utf-8").splitlines()
    (tmp_path / campaign.ROWS).write_text("\n".join([lines[0], lines[1][:50]]), encoding="utf-8")
    first, second, *_ = cpu_cases()
    rows = campaign.read_rows(tmp_path)

    assert (True, False) == (campaign.is_done(first, rows), campaign.is_done(second, rows))


def test_no_case_starts_after_the_time(tmp_path: Path) -> None:
    """The script stops by itself."""
    assert 0 == campaign.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "-1"])
    assert [] == campaign.read_rows(tmp_path)


def test_a_defect_does_not_end_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one case meets is a line in its row."""

    def broken(*_: Any) -> None:
        raise IndexError("pop from\nempty list")

    monkeypatch.setattr(three_sources, "measure", broken)
    machine = three_sources.Machine(torch.device("cpu"), tiny=True)
    assert {"refused": "IndexError: pop from empty list"} == three_sources.measured(next(cpu_cases()), machine)


def test_traces_run_in_processes_of_their_own() -> None:
    """Beside the GPU's work, without seeing the GPU."""
    with campaign.tracing(CARD) as tracers:
        assert tracers is not None
        assert (
            tracers.submit(three_sources.traced, next(cpu_cases()), (9, 0), True).result(timeout=120)["peak"]["allocated_bytes"]
            > 0
        )


def test_a_lost_device_ends_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is kept, the exit code says so, and the case is tried once more by the next part."""
    failure = {"kind": "device_lost", "phase": "backward", "reason": "CUDA error"}
    monkeypatch.setattr(campaign, "measured", lambda *_: {"failure": failure, "peak": {}, "phases": {}})
    arguments = ["--out", str(tmp_path), "--device", "cpu"]
    first, second, *_ = cpu_cases()

    assert 1 == campaign.main(arguments)
    assert not campaign.is_done(first, campaign.read_rows(tmp_path))
    assert 1 == campaign.main(arguments)
    assert campaign.is_done(first, campaign.read_rows(tmp_path))
    assert not campaign.is_done(second, campaign.read_rows(tmp_path))


@pytest.mark.parametrize("device", ["cuda"])
def test_no_gpu(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 2 == campaign.main(["--out", str(tmp_path), "--device", device])
    assert "sees no GPU" in capsys.readouterr().err


def test_cases() -> None:
    """At least 40 steps and some searches, each once, with every model and method that a campaign must have."""
    cases = list(gpu_cases())
    steps = [case for case in cases if case.micro_batch_size]

    assert 40 <= len(steps) < len(cases)
    assert len(cases) == len({case.key for case in cases})
    assert {"7b", "13b", "70b", "8b", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-0.5b", "qwen2.5-7b"} <= {c.model for c in cases}
    assert {"full", "lora", "qlora", "dora", "ia3", "prompt_tuning", "prefix_tuning"} <= {c.method for c in cases}
    assert {"eager", "sdpa", "flash"} == {c.attention for c in cases}


@pytest.mark.parametrize("model", sorted({case.model for case in gpu_cases()} - set(UNPLANNED)))
def test_every_planned_model_can_be_estimated(model: str) -> None:
    """Each model of the campaign is one that the planner knows."""
    case = next(case for case in gpu_cases() if case.model == model)
    found = three_sources.estimate_of(replace(case, method="lora", micro_batch_size=1), CARD)
    assert found.request.spec.num_hidden_layers == config_of(model)["num_hidden_layers"]


@pytest.mark.parametrize("most", [0, 1, 2, 7, 31, 32, 33, 100])
@pytest.mark.parametrize("start", [1, 3, 32, 64])
def test_the_search_finds_the_largest(most: int, start: int) -> None:
    """Wherever it starts; no batch is tried twice, and none outside the range."""
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= most

    assert min(most, 64) == largest(fits, start, 64)
    assert len(tried) == len(set(tried))
    assert all(1 <= batch <= 64 for batch in tried)


def test_the_largest_batch_against_the_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that holds less than was predicted: the search says so, and every trial is kept."""

    def seen(case: Case, *_: Any, **__: Any) -> dict[str, Any]:
        failure = None if case.micro_batch_size <= 20 else {"kind": "out_of_memory"}
        return {"peak": {}, "failure": failure}

    monkeypatch.setattr(campaign, "measured", seen)
    case = Case("8b", "lora", 0, 2048, "non-reentrant")
    found = campaign.largest_batch(case, CARD, float("inf"))

    assert 20 == found["measured"]
    assert 20 < found["predicted_with_margin"] <= found["predicted"] == found["trials"][0]["micro_batch_size"]
    assert promised({"largest_batch": found})
    with pytest.raises(campaign.OutOfTimeError):
        campaign.largest_batch(case, CARD, float("-inf"))


def row(case: Case, measured: int, estimated: int, failure: str = "") -> dict[str, Any]:
    """A row whose figures are all alike."""

    def figures(size: int) -> dict[str, Any]:
        peak = {"allocated_bytes": size, "reserved_bytes": size, "device_bytes": size}
        phases = {name: {"peak_bytes": size} for name in ("forward", "backward", "optimizer_step")}
        return {"peak": peak, "phases": phases, "step_seconds": 1.0, "failure": None}

    seen = {**figures(measured), "failure": {"kind": failure, "phase": "forward", "reason": "no"} if failure else None}
    device = {"name": "a card", "memory_bytes": 1000}
    provenance = {"device": device}
    return {
        "case": asdict(case),
        "measured": seen,
        "estimated": figures(estimated),
        "traced": figures(measured),
        "provenance": provenance,
    }


def test_tables() -> None:
    """Median and worst are of the known errors, signed; what did not run is named and does not count."""
    cases = list(gpu_cases())[:4]
    rows = [row(cases[0], 1000, 1010), row(cases[1], 1000, 970), row(cases[2], 1, 900, "out_of_memory")]
    text = "\n".join(tables(rows))

    assert "| allocated | estimated | 2 | 2.00 % | -3.00 % |" in text
    assert "| allocated | traced | 2 | 0.00 % | +0.00 % |" in text
    assert f"Called fitting and ran out of memory: {cases[2].label} (of 3 rows)." in text
    assert f"- {cases[3].label}: not measured yet" in text
    assert f"- {cases[0].label}: not measured yet" not in text


def test_tables_of_nothing() -> None:
    """Without rows every figure is "not measured yet", and all cases are missing."""
    text = "\n".join(tables([]))
    assert "| allocated | estimated | 0 | not measured yet | not measured yet |" in text
    assert f"0 of {len(list(gpu_cases()))} cases" in text


def test_it_runs_without_the_command_line_and_the_report_libraries(tmp_path: Path) -> None:
    """On a bare machine: no click, no rich, no pydantic, no NVML, no matplotlib, no install."""
    code = (
        "import sys\n"
        "for name in ('click', 'rich', 'pydantic', 'pynvml', 'matplotlib'): sys.modules[name] = None\n"
        "from tuneplan.profiling import campaign, evidence\n"
        "case = next(campaign.cpu_cases())\n"
        "campaign.cpu_cases = lambda: [case]\n"
        "sys.exit(campaign.main(['--out', sys.argv[1], '--device', 'cpu']))"
    )
    bare_machine.run(code, tmp_path)
    assert "peak" in json.loads((tmp_path / campaign.ROWS).read_text(encoding="utf-8"))["measured"]

"""`plan diff`: two configurations side by side, limits, and a page for a pull request."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

OLD = Path(__file__).parents[2] / "golden" / "configs" / "trl_sft_lora.yaml"


@pytest.fixture
def new(tmp_path: Path) -> str:
    """The old file with twice the batch and twice the rank."""
    text = OLD.read_text(encoding="utf-8")
    path = tmp_path / "new.yaml"
    path.write_text(text.replace("batch_size: 2", "batch_size: 4").replace("lora_r: 16", "lora_r: 32"), encoding="utf-8")
    return str(path)


def test_component_by_component(plan: Any, new: str) -> None:
    """The document holds both sides; components sum to the peaks, and what differs is named."""
    outcome = plan("diff", str(OLD), new, "--gpu", "a100-80g", "--json")
    body = outcome.json()
    assert (0, 1) == (outcome.code, body["schema_version"])
    for side in ("old", "new"):
        assert body["peak"][side] == sum(change[side] for change in body["components"].values())
        assert body[side]["peak"]["device_bytes"] == body["peak"][side]
    assert [("micro_batch_size", 2, 4), ("lora.r", 16, 32)] == [(s["name"], s["old"], s["new"]) for s in body["settings"]]
    assert body["peak"]["change"] == body["peak"]["new"] - body["peak"]["old"] > 0
    assert body["usd_per_million_tokens"]["new"] < body["usd_per_million_tokens"]["old"]
    assert body["step_seconds"]["new"] > body["step_seconds"]["old"]
    estimated = plan("estimate", "--config", new, "--gpu", "a100-80g", "--json").json()
    assert estimated["peak"] == body["new"]["peak"]


def test_a_file_against_itself_changes_nothing(plan: Any) -> None:
    """No difference, and no limit is broken."""
    body = plan("diff", str(OLD), str(OLD), "--max-increase", "0%", "--json").json()
    assert ([], [], 0) == (body["settings"], body["breaches"], body["peak"]["change"])
    assert {0} == {change["change"] for change in body["components"].values()}


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (("--max-increase", "5%"), 1),
        (("--max-increase", "500%"), 0),
        (("--max-increase", "1MiB"), 1),
        (("--max-increase", "80GiB"), 0),
        (("--max-increase", "0"), 1),
        (("--gpu", "a100-80g", "--max-slower", "10%"), 0),
        (("--gpu-memory", "1.4GiB"), 1),
    ],
)
def test_exit_code_past_a_limit(plan: Any, new: str, limits: tuple[str, ...], code: int) -> None:
    """1 where the peak grows by more, a token takes longer, or the new one does not fit; and the report says which."""
    outcome = plan("diff", str(OLD), new, *limits)
    assert code == outcome.code
    assert bool(code) == ("! " in outcome.out)


def test_slower_is_a_limit_too(plan: Any, new: str) -> None:
    """The other way round a token takes longer."""
    outcome = plan("diff", new, str(OLD), "--gpu", "a100-80g", "--max-slower", "1%")
    assert 1 == outcome.code
    assert "a token takes" in outcome.out


def test_markdown(plan: Any, new: str, tmp_path: Path) -> None:
    """A page with the verdict, tables, and names that cannot break them; `-` prints it."""
    page = tmp_path / "diff.md"
    outcome = plan("diff", str(OLD), new, "--max-increase", "1%", "--markdown", str(page))
    text = page.read_text(encoding="utf-8")
    assert 1 == outcome.code
    assert text.startswith("## Training configuration")
    assert "| **peak on each GPU** |" in text
    assert "> **the peak grows by" in text
    assert "| micro\\_batch\\_size | 2 | 4 |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("| load")} == {5}
    printed = plan("diff", str(OLD), new, "--max-increase", "1%", "--markdown", "-")
    assert (1, text) == (printed.code, printed.out)


def test_models_and_adapters(plan: Any, tmp_path: Path) -> None:
    """Sides may be models, or adapter configs on a model that is named."""
    body = plan("diff", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M", "--seq-len", "128", "--json").json()
    assert body["peak"]["change"] > 0
    files = []
    for rank in (8, 64):
        path = tmp_path / f"adapter_{rank}.json"
        path.write_text(f'{{"peft_type": "LORA", "r": {rank}, "target_modules": ["q_proj"]}}', encoding="utf-8")
        files.append(str(path))
    body = plan("diff", *files, "--model", "HuggingFaceTB/SmolLM2-135M", "--seq-len", "128", "--json").json()
    assert [("lora.r", 8, 64)] == [(s["name"], s["old"], s["new"]) for s in body["settings"]]


def test_several_files_on_a_side(plan: Any) -> None:
    """Commas put files together; --config is common to both sides."""
    fsdp, zero = (str(OLD.with_name(name)) for name in ("accelerate_fsdp2.yaml", "accelerate_zero2.yaml"))
    one = plan("diff", f"{OLD},{zero}", f"{OLD},{fsdp}", "--json").json()
    other = plan("diff", zero, fsdp, "--config", str(OLD), "--json").json()
    assert one["peak"] == other["peak"]
    assert ("zero_stage", 2, 3) in [(s["name"], s["old"], s["new"]) for s in one["settings"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((str(OLD), str(OLD), "--max-increase", "5"), "write a number and a unit"),
        ((str(OLD), str(OLD), "--max-increase", "-5%"), "is no limit"),
        ((str(OLD), str(OLD), "--max-increase", "nan%"), "is no limit"),
        ((str(OLD), str(OLD), "--max-slower", "5MiB"), "is no limit; write a share such as 5%"),
        ((str(OLD), str(OLD), "--max-slower", "5%"), "add --gpu"),
        ((str(OLD), "/nonexistent.yaml"), "Cannot read '/nonexistent.yaml'"),
        ((str(OLD), "nope-7b"), "Unknown model 'nope-7b'"),
        ((str(OLD), ""), "a side of the comparison is empty"),
        ((str(OLD), str(OLD), "--markdown", ""), "--markdown is empty"),
        ((str(OLD), str(OLD), "--markdown", "/no/such/folder/x.md"), "cannot be written"),
    ],
)
def test_refusals(plan: Any, arguments: tuple[str, ...], message: str) -> None:
    """Wrong limits, files and names: one line, exit code 2."""
    outcome = plan("diff", *arguments)
    assert (2, "", 1) == (outcome.code, outcome.out, outcome.err.count("\n"))
    assert message in outcome.err

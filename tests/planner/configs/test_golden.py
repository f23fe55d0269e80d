"""Example configs of every tool: what they are read as, their estimates, and the real code's trace of some of them."""

import json
from typing import Any

import pytest
from config_examples import CASES, EXPECTED, FOLDER, request_of, result_of

from tuneplan.planner.configs.read import read_configs
from tuneplan.planner.configs.registry import FORMATS

TOLERANCE = 0.005
"""A formula may move by this much before the recorded estimates have to be recorded anew and shown in a pull request."""
RECORDED: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_every_example_is_recorded() -> None:
    """Each file of the folder is in a case, and each case in the record."""
    files = {path.name for path in FOLDER.iterdir()} - {EXPECTED.name}
    assert files == {name for case in CASES for name in case.split(",")}
    assert list(CASES) == list(RECORDED)


def test_every_tool_has_examples() -> None:
    """Two files for each tool; TRL's trainers share theirs."""
    kinds = [kind for name in {n for case in CASES for n in case.split(",")} for kind in _formats(name)]
    tools = {kind.split("-")[0] if kind.startswith("trl") else kind for kind in FORMATS}
    assert dict.fromkeys(tools, True) == {tool: sum(kind.startswith(tool) for kind in kinds) >= 2 for tool in tools}


def _formats(name: str) -> list[str]:
    return list(read_configs([FOLDER / name], model="7b").formats.values())


@pytest.mark.parametrize("files", list(CASES))
def test_requests_and_estimates_are_the_recorded_ones(files: str) -> None:
    """Every option exactly, the peak and its components within what a formula may move unseen."""
    now, then = result_of(files), RECORDED[files]
    assert then["request"] == now["request"]
    assert ("allocated_bytes" in then) == ("allocated_bytes" in now)
    if "allocated_bytes" not in then:
        return
    assert then["allocated_bytes"] == pytest.approx(now["allocated_bytes"], rel=TOLERANCE)
    slack = TOLERANCE * then["allocated_bytes"]
    assert then["components"] == pytest.approx({k: now["components"][k] for k in then["components"]}, abs=slack)


@pytest.mark.parametrize("files", list(CASES))
def test_every_key_is_accounted_for(files: str) -> None:
    """As many entries as keys, at their lines; what is not modelled is also a warning."""
    config = read_configs([FOLDER / name for name in files.split(",")], model="7b")
    assert {entry.status for entry in config.entries} <= {"used", "irrelevant", "not_modelled"}
    for entry in config.entries:
        assert entry.note
        if entry.status == "not_modelled":
            assert any(f"line {entry.line} " in warning for warning in config.warnings)
    for name in files.split(","):
        found = {e.key.split(".")[0] for e in config.entries if e.file.endswith(name)}
        text = (FOLDER / name).read_text(encoding="utf-8")
        keys = (
            set(json.loads(text)) if name.endswith(".json") else {k.split(":")[0] for k in text.splitlines() if k[:1].isalpha()}
        )
        assert keys == found | (keys & {"data", "training", "lora", "logging"})


@pytest.mark.traced
@pytest.mark.parametrize("files", ["trl_sft_lora.yaml", "torchtune_qlora.yaml", "llama_factory_full.yaml"])
def test_the_trace_confirms(files: str) -> None:
    """The real code with the settings that the file was read as; shorter sequences and two layers, so that it is quick."""
    side_by_side = pytest.importorskip("traced")
    from dataclasses import replace

    from tuneplan.planner.methods.compose import explicit
    from tuneplan.planner.models.lookup import load

    request = request_of(files, {**CASES[files], "seq_len": 256})
    config = {**load(request.spec.id)[1].mapping, "num_hidden_layers": 2}
    method = explicit(request.method)
    settings = replace(request.settings, accumulating=False)
    optimizer = request.optimizer.name.removeprefix("paged_")
    side_by_side.check(side_by_side.Case(config, method, settings, "adamw_fused" if "8bit" in optimizer else optimizer))

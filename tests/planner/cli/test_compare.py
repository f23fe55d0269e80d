"""`plan compare`: the document, the report, the picture, and what is wrong input."""

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = ("compare", "--model", "7b", "--gpu", "a100-80g", "--gpus", "1", "--seq-len", "512")
ROW = {
    "method",
    "method_in_full",
    "families",
    "parameters",
    "training_compute",
    "training_memory",
    "inference",
    "checkpoint_bytes",
    "full_model_bytes",
    "adapters_per_full_model",
    "plan",
    "refused",
    "integration",
    "quality",
    "evidence",
    "papers",
    "not_modelled",
}


def test_the_document_has_every_dimension(plan: Any) -> None:
    """One JSON document; a row for each method with every key; the peak's components add up."""
    result = plan(*SMALL, "--methods", "full,lora,prompt_tuning", "--json")
    assert (0, "") == (result.code, result.err)
    document = result.json()
    assert ["schema_version", "request", "methods", "left_out", "guide", "basis"] == list(document)
    assert ["full", "lora", "prompt_tuning"] == [row["method"] for row in document["methods"]]
    for row in document["methods"]:
        assert set(row) == ROW
        memory = row["training_memory"]
        held = sum(size for name, size in memory["components"].items() if name != "runtime")
        assert memory["peak"]["allocated_bytes"] == held
        assert row["parameters"]["trainable"] / row["parameters"]["total"] == row["parameters"]["trainable_share"]
        for finding in row["evidence"]:
            assert finding["source"]
    assert document["methods"][0]["refused"]["reason"]
    assert document["methods"][2]["inference"]["token_seconds"]["merged"] is None


def test_the_report_shows_the_figures_of_the_document(plan: Any) -> None:
    """Peak, cost and number of adapters as in --json."""
    arguments = (*SMALL, "--methods", "lora,ia3")
    text = plan(*arguments).out
    for row in plan(*arguments, "--json").json()["methods"]:
        assert f"{row['training_memory']['peak']['device_bytes'] / 2**30:.2f} GiB" in text
        assert f"${row['plan']['usd']:.2f}" in text
        assert f"{row['adapters_per_full_model']:,}" in text
    assert "7b -> meta-llama/Llama-2-7b-hf" in text
    assert "Guide, from these rows" in text


def test_no_line_is_cut(plan: Any) -> None:
    """Every figure of every method is there at 100 columns."""
    text = plan(*SMALL, "--methods", "all").out
    assert "..." not in text.replace("... ", "")
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    for last in ("other", "cost", "per model", "quality"):
        assert any(line.startswith("method") and line.rstrip().endswith(last) for line in text.splitlines()), last


def test_what_has_no_evidence_says_so(plan: Any) -> None:
    """A composition without published results is not given those of its parts."""
    assert "no evidence" in plan(*SMALL, "--methods", "lora+ia3").out
    document = plan(*SMALL, "--methods", "lora+ia3", "--json").json()
    assert (None, []) == (document["methods"][0]["quality"], document["methods"][0]["evidence"])


def test_nothing_left_is_an_honest_no(plan: Any) -> None:
    """Exit code 1, with the reason for each method."""
    result = plan(*SMALL, "--methods", "prompt_tuning", "--mergeable")
    assert 1 == result.code
    assert "prompt_tuning: does not merge into the base weights" in result.out
    left = plan(*SMALL, "--methods", "prompt_tuning", "--mergeable", "--json").json()
    assert ([], ["prompt_tuning"]) == (left["methods"], [item["method"] for item in left["left_out"]])


@pytest.mark.parametrize(("name", "start"), [("methods.png", b"\x89PNG"), ("methods.SVG", b"<?xml")])
def test_the_picture_is_of_the_kind_asked_for(plan: Any, tmp_path: Path, name: str, start: bytes) -> None:
    """A PNG or an SVG that can be opened."""
    path = tmp_path / name
    assert 0 == plan(*SMALL, "--methods", "full,lora,lora+ia3", "--plot", str(path)).code
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 10_000


def test_the_picture_needs_no_prices_and_no_rates(plan: Any, tmp_path: Path) -> None:
    """A bare amount of memory is drawn too, without what it does not have."""
    path = tmp_path / "methods.png"
    arguments = ("compare", "--model", "7b", "--gpu-memory", "24GiB", "--methods", "qlora,full", "--plot", str(path))
    assert 0 == plan(*arguments).code
    assert path.exists()


def test_an_adapter_config_is_compared_with_the_others(plan: Any, tmp_path: Path) -> None:
    """Your own adapter_config.json comes first, beside the named methods."""
    config = {"peft_type": "LORA", "r": 32, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    document = plan(*SMALL, "--methods", "ia3", "--peft-config", str(path), "--json").json()
    assert 2 == len(document["methods"])
    assert document["methods"][0]["method"].startswith("lora(")
    assert document["methods"][0]["evidence"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare",), "name a model"),
        (("compare", "--model", "7b"), "name a card"),
        (("compare", "--model", "7b", "--gpu", "any"), "one card"),
        (("compare", "--model", "7b", "--gpu", "a100-80g,t4"), "one card"),
        ((*SMALL, "--methods", "lora,nonsense"), "Unknown method"),
        ((*SMALL, "--methods", "lora(r=0)"), "rank"),
        ((*SMALL, "--methods", ""), "not a method"),
        ((*SMALL, "--methods", "quantized_base"), "trains nothing"),
        ((*SMALL, "--methods", "lora+lora"), "twice"),
        ((*SMALL, "--methods", "full+lora"), "clash"),
        ((*SMALL, "--methods", "prompt_tuning(num_virtual_tokens=4000)"), "virtual tokens"),
        ((*SMALL, "--plot", "methods.jpg"), ".png or .svg"),
        ((*SMALL, "--methods", "lora", "--plot", "no/such/folder/m.png"), "cannot be written"),
        ((*SMALL, "--max-inference-overhead", "-1"), "share of time"),
        ((*SMALL, "--max-inference-overhead", "nan"), "share of time"),
        ((*SMALL, "--min-quality", "0"), "share of full"),
        ((*SMALL, "--unmerged"), "give both or neither"),
        (("compare", "--model", "7b", "--gpu-memory", "24GiB", "--max-inference-overhead", "0.1"), "needs the rates"),
        ((*SMALL, "--tokens", "0"), "between 1"),
    ],
)
def test_wrong_input_is_one_line(plan: Any, arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2, nothing on stdout, and a sentence that says what to do."""
    result = plan(*arguments)
    assert (2, "", 1) == (result.code, result.out, result.err.count("\n")), result
    assert words in result.err

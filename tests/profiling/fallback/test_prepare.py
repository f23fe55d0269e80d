"""`plan`, `plan compare` and `--sweep` of models that no family mirrors, on the command line."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.cli.main import run
from tuneplan.planner.models import registry
from tuneplan.profiling import small_models
from tuneplan.profiling.fallback import source

pytestmark = pytest.mark.traced

Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command line with Llama's family taken away and a cache of its own: exit code, JSON or text, stderr."""
    folder = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(registry, "FAMILIES", {"gemma": ("gemma",)})

        def call(*args: str, config: dict[str, Any] | None = None) -> tuple[int, Any, str]:
            path = folder / "config.json"
            path.write_text(json.dumps(config or small_models.config("llama", num_hidden_layers=2)))
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = run([*(str(path) if arg == "MODEL" else arg for arg in args)])
            text = out.getvalue()
            return code, json.loads(text) if "--json" in args and text else text, err.getvalue()

        yield call


SEARCH = ("--model", "MODEL", "--gpu", "a100-80g", "--gpus", "1,4", "--seq-len", "192", "--method", "lora,full")


def test_a_search_and_then_the_same_without_a_trace(plan: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method and number of cards has a plan that says it is traced; the second search traces nothing."""
    code, body, err = plan(*SEARCH, "--json")

    assert (0, "traced") == (code, body["source"])
    assert {("lora", 1), ("lora", 4), ("full", 1), ("full", 4)} == {(p["method"], p["gpu_count"]) for p in body["plans"]}
    assert "plan: tracing the real code of llama for 4 fits; kept for the next time" in err
    assert all("which was held out" in p["basis"]["allocated_bytes"] for p in body["plans"])
    assert all(p["hours"] > 0 and p["usd"] > 0 for p in body["plans"])
    for p in body["plans"]:
        assert sum(v for k, v in p["components"].items() if k != "runtime") == p["peak"]["allocated_bytes"]
    assert "is an architecture that tuneplan does not know yet" in body["warnings"][0]

    from tuneplan.profiling.fallback import prepare

    monkeypatch.setattr(prepare, "_sources", {})
    monkeypatch.setattr(source.TracedSource, "_keep", None)
    again = plan(*SEARCH, "--json")
    assert (0, body["plans"], "") == (again[0], again[1]["plans"], again[2])


def test_what_does_not_fit_is_an_honest_no(plan: Call) -> None:
    """Exit code 1, the closest miss, and how much is missing."""
    code, body, _ = plan(*SEARCH[:2], "--gpu-memory", "1GiB", "--gpus", "1", *SEARCH[6:], "--json")

    assert (1, None) == (code, body["recommended"])
    assert all(miss["short_by_bytes"] > 0 for miss in body["infeasible"])


def test_a_comparison(plan: Call) -> None:
    """Training memory, compute and plans are there; how the methods answer is not traced, and null."""
    code, body, _ = plan("compare", *SEARCH[:-1], "lora,full", "--json")
    text = plan("compare", *SEARCH[:-1], "lora,full")[1]
    rows = {row["method"]: row for row in body["methods"]}

    assert 0 == code
    assert rows["lora"]["training_memory"]["peak"]["allocated_bytes"] > 0
    assert rows["full"]["training_compute"]["flops_per_token"] > 0
    assert (None, None) == (rows["lora"]["inference"]["weight_bytes"], rows["lora"]["inference"]["token_seconds"])
    assert rows["full"]["checkpoint_bytes"] == rows["full"]["full_model_bytes"]
    assert "How they answer is not traced." in " ".join(text.split())


def test_sweeps(plan: Call) -> None:
    """Of an estimate and of a search, over lengths: the fit of the longest answers shorter ones."""
    words = ("--model", "MODEL", "--gpu", "a100-80g", "--sweep", "seq-len=96,192", "--json")
    plan(*words, "--gpus", "1", "--method", "lora")  # traces what is not in the cache yet
    code, body, err = plan("estimate", *words, "--method", "lora", "--gradient-checkpointing")
    first, second = body["points"]

    assert (0, "traced", "") == (code, body["source"], err)
    assert 0 < first["peak"]["allocated_bytes"] < second["peak"]["allocated_bytes"]
    code, body, err = plan(*words, "--gpus", "1", "--method", "lora")
    assert (0, "") == (code, err)
    assert [96, 192] == [point["seq_len"] for point in body["points"]]
    assert all(point["recommended"]["method"] == "lora" for point in body["points"])


def test_an_estimate_of_several_cards(plan: Call) -> None:
    """Layouts that a single process does not run are composed of the same traces."""
    words = ("estimate", "--model", "MODEL", "--seq-len", "192", "--gpu", "a100-80g", "--method", "full", "--json")
    code, one, _ = plan(*words, "--data-parallel", "4", "--zero-stage", "3", "--gradient-checkpointing")
    _, two, _ = plan(*words, "--data-parallel", "8", "--zero-stage", "3", "--gradient-checkpointing")

    assert (0, "traced") == (code, one["source"])
    assert two["components"]["optimizer_states"] < one["components"]["optimizer_states"]
    assert "is an architecture that tuneplan does not know yet" in one["warnings"][0]


def test_a_method_that_cannot_be_traced_is_left_out(plan: Call) -> None:
    """With its reason, which is kept, where others can; where none can, both reasons are named and the exit code is 2."""
    plan(*SEARCH[:-1], "lora,houlsby", "--json")  # traces what is not in the cache yet
    for _ in range(2):
        code, body, err = plan(*SEARCH[:-1], "lora,houlsby", "--json")
        assert (0, {"lora"}, "") == (code, {p["method"] for p in body["plans"]}, err)
        assert "left out: houlsby (bottleneck_adapter is in no library that could be run" in body["warnings"][0]

    code, out, err = plan(*SEARCH, config=small_models.config("llama", model_type="magic"))
    assert (2, "") == (code, out)
    assert "its real code cannot be traced either: transformers" in err


def test_training_that_no_trace_has(plan: Call) -> None:
    """A preference's trainer is TRL's."""
    code, _, err = plan(*SEARCH, "--training", "dpo")

    assert 2 == code
    assert "--training dpo is TRL's trainer, which is not traced" in err

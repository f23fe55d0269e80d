"""`plan estimate` of models that no family mirrors, on the command line."""

import builtins
import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.cli.main import run
from tuneplan.planner.models import registry
from tuneplan.profiling import small_models

pytestmark = pytest.mark.traced

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`plan estimate` of a config with a cache of its own and Llama's family taken away: code, stdout, stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "FAMILIES", {"gemma": ("gemma",)})

    def call(config: dict[str, Any], *args: str) -> tuple[int, str, str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(["estimate", "--model", str(path), "--seq-len", "256", "--micro-batch-size", "2", *args])
        return code, out.getvalue(), err.getvalue()

    return call


def test_from_the_real_code_and_then_from_the_cache(estimate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call traces; the next one, at another batch and length, does not."""
    config = small_models.config("llama", num_hidden_layers=2)
    code, out, err = estimate(config, "--gpu", "a100-80g", "--json")
    body = json.loads(out)

    assert (0, "traced") == (code, body["source"])
    assert err.startswith("plan: tracing the real code of llama")
    assert sum(v for k, v in body["components"].items() if k != "runtime") == body["peak"]["allocated_bytes"]
    assert "off by +0.0000 % at 4 x 149, which was held out; lengths 69 to 256" in body["basis"]["allocated_bytes"]
    assert body["step_seconds"] > 0
    assert body["basis"]["cache"].endswith(".json.gz")
    assert "model_type 'llama' is an architecture that tuneplan does not know yet; this is a trace" in body["warnings"][0]

    monkeypatch.setattr("tuneplan.profiling.fallback.estimate.record", None)
    code, out, err = estimate(config, "--seq-len", "200", "--micro-batch-size", "3", "--gpu-memory", "1GiB")
    assert (0, "") == (code, err)
    assert "Peak" in out
    assert "fits" in out


def test_steps_that_cannot_be_recorded_are_run_as_asked(estimate: Call) -> None:
    """Batches of several lengths: the direct trace, without a time, and said so."""
    code, out, _ = estimate(small_models.config("llama", num_hidden_layers=2), "--batch-lengths", "64,128", "--json")
    body = json.loads(out)

    assert 0 == code
    assert "traced: the real code's step as asked" == body["basis"]["allocated_bytes"]
    assert body["step_seconds"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "magic"}, "its real code cannot be traced either: transformers"),
        ({"num_attention_heads": 7}, "its real code cannot be traced either: transformers"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}, "cannot build 'evil'"),
    ],
)
def test_what_transformers_cannot_build_either(estimate: Call, changes: dict[str, Any], message: str) -> None:
    """One line that names both reasons, exit code 2; code that a config points to is never run."""
    code, out, err = estimate(small_models.config("llama", **changes))

    assert (2, "", 1) == (code, out, err.count("\n") - err.count("tracing the real code"))
    assert message in err


def test_without_the_extra(estimate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    real = builtins.__import__

    def no_torch(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tuneplan.profiling.fallback"):
            raise ImportError("no torch", name="torch")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    code, _, err = estimate(small_models.config("llama"))

    assert 2 == code
    assert "torch is not installed; pip install 'tuneplan[profile]'" in err
    assert "an architecture that tuneplan does not know yet" in err

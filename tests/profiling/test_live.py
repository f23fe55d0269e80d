"""A run while it runs: in a loop of one's own, and in the Trainer."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.profiling.live import LiveMemory, Prediction  # noqa: E402

WIDTH = 256
WEIGHT = WIDTH * WIDTH * 4


def followed(batch: int, **options: Any) -> LiveMemory:
    """Three steps of one linear layer with SGD."""
    model = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    live = LiveMemory(model, optimizer, **options)
    for _ in range(4):
        live.before_step()
        model(torch.ones(batch, WIDTH)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        live.after_step()
    return live


def test_the_peak_of_the_first_steps() -> None:
    """Weights, gradients and what the batch adds; after the verdict nothing is followed any more."""
    live = followed(512)

    assert (3, 512) == (live.done, live.largest_tokens)
    assert 2 * WEIGHT == live.fixed_bytes
    assert live.peak_bytes > WEIGHT + 512 * WIDTH * 4
    assert live.longest_peak_bytes is None
    assert not live.model._forward_pre_hooks


def test_the_longest_batch_is_a_measured_one() -> None:
    """What is said of a batch four times as long is what that batch then needs, within the part that does not grow."""
    short = followed(512, longest_tokens=2048)
    long = followed(2048)

    assert short.longest_peak_bytes == pytest.approx(long.peak_bytes, rel=0.1)


def test_an_early_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A run that fits now and will not at its longest batch is warned of, with what to do."""
    with caplog.at_level(logging.INFO, "tuneplan"):
        live = followed(512, longest_tokens=2048, capacity_bytes=4 * 2**20)

    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "will not fit at its longest batch (2048 tokens)" in warning.message
    assert "use a smaller micro-batch" in warning.message
    assert live.to_json()["fits"] is False


@pytest.mark.parametrize(("factor", "level"), [(0.5, logging.WARNING), (2, logging.INFO)])
def test_beside_the_plan(caplog: pytest.LogCaptureFixture, factor: float, level: int) -> None:
    """More than the plan says is a warning, less is a note."""
    peak = followed(512).peak_bytes
    with caplog.at_level(logging.INFO, "tuneplan"):
        followed(512, plan=int(peak * factor))

    assert level == next(record.levelno for record in caplog.records if "where the plan says" in record.message)


def test_plans(tmp_path: Path) -> None:
    """A document of `plan estimate --json`, or the path of one, gives bytes and the micro-batch's tokens."""
    document = {"peak": {"allocated_bytes": 7}, "request": {"micro_batch_size": 2, "seq_len": 512}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))

    assert Prediction(7, 1024) == Prediction.of(path) == Prediction.of(document)
    assert Prediction(7) == Prediction.of(7)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"peak": 3}', '{"peak": {"allocated_bytes": "x"}}'])
def test_plans_that_are_none(tmp_path: Path, content: str) -> None:
    """A file that is no plan is refused before training starts."""
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InputError, match="plan"):
        Prediction.of(path)


def test_one_step_shows_nothing_steady() -> None:
    """The first update makes the optimizer's states, so one step is refused."""
    with pytest.raises(InputError, match="use 2 or more"):
        LiveMemory(torch.nn.Linear(1, 1), steps=1)


def test_in_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback follows a real Trainer run and writes what was measured; a shorter training leaves what it saw."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from tuneplan.profiling.callback import MemoryCallback

    monkeypatch.chdir(tmp_path)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=200
    )
    data = [{"input_ids": list(range(64)), "labels": list(range(64))} for _ in range(16)]
    for steps in (5, 2):
        model = transformers.AutoModelForCausalLM.from_config(config)
        out = tmp_path / f"{steps}.json"
        callback = MemoryCallback(10**9, out=out, longest_tokens=1024)
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=2,
            max_steps=steps,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        found = json.loads(out.read_text())

        assert (min(steps, 3), 128, 10**9) == (found["steps"], found["largest_tokens"], found["predicted_bytes"])
        weights = sum(p.numel() * 4 for p in model.parameters())
        assert found["peak"]["allocated_bytes"] > 4 * weights
        assert found["longest_peak_bytes"] > found["peak"]["allocated_bytes"]

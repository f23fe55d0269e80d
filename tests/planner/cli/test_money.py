"""Kinds of prices, and the hours beside training, at the command line."""

from pathlib import Path
from typing import Any

import pytest

PLAN = ("--model", "8b", "--gpu", "a100-80g", "--gpus", "8", "--method", "lora", "--tokens", "100M")


def test_a_run_beside_training(plan: Any) -> None:
    """Start-up, evaluation and checkpoints are part of the hours and of the price."""
    bare = plan(*PLAN, "--json").json()["recommended"]
    more = plan(*PLAN, "--startup", "20min", "--eval-tokens", "10M", "--save-steps", "10", "--disk", "500MB/s", "--json").json()
    clock = more["recommended"]["wall_clock"]
    assert bare["wall_clock"]["training_seconds"] == clock["training_seconds"]
    assert 1200.0 == clock["startup_seconds"]
    assert clock["evaluation_seconds"] > 0
    assert clock["checkpoint_seconds"] > bare["wall_clock"]["checkpoint_seconds"]
    assert more["recommended"]["hours"] == pytest.approx(clock["total_seconds"] / 3600)
    assert more["recommended"]["usd"] > bare["usd"]
    assert more["request"]["overheads"]["startup_seconds"] == 1200.0


def test_spot_pays_for_interruptions(plan: Any) -> None:
    """Spot is timed with what interruptions cost, on demand is not; the assumption is printed."""
    spot = plan(*PLAN, "--spot", "--json").json()["recommended"]
    demand = plan(*PLAN, "--json").json()["recommended"]
    assert demand["wall_clock"]["interruption_seconds"] == 0 < spot["wall_clock"]["interruption_seconds"]
    often = plan(*PLAN, "--purchase", "spot", "--interruption-hours", "1", "--json").json()["recommended"]
    assert often["hours"] > spot["hours"] > demand["hours"]
    assert "an interruption every 24 hours is assumed" in plan(*PLAN, "--spot").out


def test_clouds(plan: Any) -> None:
    """Only the provider asked for; without a price of it the plan says so."""
    assert "AWS" == plan(*PLAN, "--cloud", "aws", "--json").json()["recommended"]["price"]["provider"]
    assert plan(*PLAN, "--cloud", "jarvislabs", "--region", "nowhere").code == 2
    assert "no price known" in plan(*PLAN, "--purchase", "reserved").out


def test_a_machine_of_ones_own(plan: Any, tmp_path: Path) -> None:
    """It is a target with its own price."""
    pytest.importorskip("yaml")
    path = tmp_path / "machine.yaml"
    path.write_text(
        "name: desk\ngpu: rtx-4090\ngpus: 2\nmachine_price: 7300 USD\nhost_power: 200 W\nelectricity: 0.25 USD/kWh\npue: 1.0\n"
        "hosting: 0 USD/kW/month\nlifetime: 36 months\nsource: invoice\ndate: 2026-10-01\nuse: 50%\n",
        encoding="utf-8",
    )
    found = plan("--model", "qwen2.5-0.5b", "--owned", str(path), "--method", "lora", "--json").json()["recommended"]
    assert ("desk", "owned", "rtx-4090") == (found["instance"], found["price"]["purchase"], found["gpu"])
    assert found["usd"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--purchase", "lease"), "Unknown purchase 'lease'"),
        (("--spot", "--purchase", "reserved"), "contradict each other"),
        (("--cloud", "asw"), "Did you mean 'aws'"),
        (("--startup", "10"), "is not a time"),
        (("--disk", "5GB"), "is not a rate"),
        (("--save-steps", "-1"), "save-steps -1"),
        (("--interruption-hours", "nan"), "interruption-hours nan"),
        (("--owned", "missing.yaml"), "Cannot read"),
        (("--eval-tokens", "0"), "sensible amount"),
    ],
)
def test_bad_input(plan: Any, arguments: tuple[str, ...], message: str) -> None:
    """Exit code 2 and one line."""
    outcome = plan(*PLAN, *arguments)
    assert (2, "") == (outcome.code, outcome.out)
    assert message in outcome.err


def test_skypilot_without_catalogs(plan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A price source that is not there is a data file that cannot be used."""
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = plan(*PLAN, "--prices", "skypilot")
    assert (3, "") == (outcome.code, outcome.out)
    assert "SkyPilot has no catalogs" in outcome.err

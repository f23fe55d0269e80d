"""A small model of a family against the real code: weights, and the matrix of methods and checkpointing at one point a cell."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.profiling import family_matrix, small_models  # noqa: E402
from tuneplan.profiling.build import task_of, transformers_model  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402

PEAK_PERCENT = 0.1
"""As in test_against_trace.py; a small model's file may say another with its reason."""


def check_weights(name: str) -> None:
    """Names and shapes of all weights are those of transformers."""
    model = small_models.load(name)
    network, _ = family_matrix.estimated(model, "full", family_matrix.Cell(name, "full", "off").settings(*model.points[1]))
    task = task_of(Subject(name, model.config, task=model.task))
    real = transformers_model(model.config, task, "eager", torch.bfloat16, "meta")

    assert {key: tuple(parameter.shape) for key, parameter in real.named_parameters()} == network.shapes()


def check_matrix(name: str) -> None:
    """Peaks within the tolerance and trained parameters exactly, every cell at one point; what the real code refuses, refused."""
    model = small_models.load(name)
    wrong = []
    for cell, (batch, length) in family_matrix.sample(name):
        allowed = model.tolerances.get(cell.method, {}).get("percent", PEAK_PERCENT)
        if cell.expected_refusal:
            said = family_matrix.refusal(cell, batch, length)
            wrong += [f"{cell}: {said}"] if "all the same" in said else []
            continue
        found = family_matrix.point(cell, batch, length)
        if abs(found.percent) > allowed or found.trained_estimated != found.trained_traced:
            wrong.append(f"{cell}: {found.percent:+.4f} % of {found}")
    assert [] == wrong, "\n".join(wrong)


def check_kernels(name: str) -> None:
    """Eager attention, FlashAttention and a cache that the model keeps, on a cell each."""
    model = small_models.load(name)
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("full", {"attention": "eager"}),
        ("qlora", {"attention": "flash"}),
        ("full", {"use_cache": True}),
    )
    for method, changes in cases:
        batch, length = model.points[0]
        settings = replace(family_matrix.Cell(name, method, "off").settings(batch, length), **changes)
        trained, peak = family_matrix.traced(model, method, settings)
        network, memory = family_matrix.estimated(model, method, settings)
        highest = max(memory.phases[phase].peak_bytes for phase in family_matrix.STEP_PHASES)
        allowed = model.tolerances.get(method, {}).get("percent", PEAK_PERCENT)
        assert trained == network.trainable_parameters
        assert peak == pytest.approx(highest, rel=allowed / 100), (name, method, changes)

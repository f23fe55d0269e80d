"""Every family on its small models against transformers and PEFT: weights, peaks, trained parameters, refusals.

The tolerance is that of test_against_trace.py, 0.1 % of the allocated peak, unless a small model's file gives another with its
reason. Each cell of (model, method, checkpointing) is run at one of three (batch, length) points; docs/accuracy.md has them all.
"""

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.registry import FAMILIES
from tuneplan.planner.replay import replay
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.profiling import family_matrix, small_models

NAMES = small_models.names()
PEAK_PERCENT = 0.5
"""The published goal, which no tolerance of a small model may exceed."""
WITHOUT_CODE = {"nemotron-nas"}
"""Architectures that transformers cannot build; their own tests hold them against parts that it has."""


def test_every_model_type_has_a_small_model() -> None:
    """And no small model is of an architecture that no family mirrors."""
    known = {model_type for model_types in FAMILIES.values() for model_type in model_types}
    assert known - WITHOUT_CODE == {small_models.load(name).model_type for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_files(name: str) -> None:
    """Named after the model type, with methods of the matrix, and a reason for every tolerance, none beyond the goal."""
    model = small_models.load(name)
    assert model.model_type == name or name.startswith(f"{model.model_type}-")
    named = [*model.refuses, *model.not_modelled, *model.tolerances, *model.methods]
    assert {key.removesuffix(" checkpointed") for key in named} <= set(family_matrix.METHODS)
    for tolerance in model.tolerances.values():
        assert tolerance["percent"] <= PEAK_PERCENT
        assert tolerance["reason"]


def test_the_sample_covers_every_point() -> None:
    """Each cell is there once, and each point of a model is used."""
    for name in NAMES:
        drawn = list(family_matrix.sample(name))
        assert family_matrix.cells(name) == [cell for cell, _ in drawn]
        assert set(small_models.load(name).points) == {point for _, point in drawn}


@pytest.mark.parametrize("name", NAMES)
def test_steps_can_be_replayed(name: str) -> None:
    """Every birth of the ledger has its death, so that the allocator can play them."""
    model = small_models.load(name)
    for method in ("full", "lora", "qlora"):
        for checkpointing in ("off", "non-reentrant"):
            settings = family_matrix.Cell(name, method, checkpointing).settings(2, model.points[1][1])
            try:
                network, memory = family_matrix.estimated(model, method, settings)
            except InputError:
                continue
            assert replay(network, settings, OPTIMIZERS["adamw"]).reserved_bytes >= memory.phases["backward"].peak_bytes


@pytest.mark.traced
@pytest.mark.parametrize("name", NAMES)
def test_weights(name: str) -> None:
    """Names and shapes are those of transformers."""
    families.check_weights(name)


@pytest.mark.traced
@pytest.mark.parametrize("name", NAMES)
def test_peaks(name: str) -> None:
    """Full, LoRA, QLoRA, prompts and prefixes, with and without checkpointing."""
    families.check_matrix(name)

"""What is wrong with a configuration that the user has in mind."""

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.plan import Answer
from tuneplan.planner.search import find
from tuneplan.planner.target import targets
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.why_not import why_not

TODAY = date(2026, 9, 1)
JOB = Job(
    spec=read_spec(*load("8b")),
    methods=(parse("full"), parse("lora"), parse("qlora")),
    targets=tuple(targets(["a100-80g"], (1, 2, 4, 8))),
    tokens=10**7,
    global_batch_size=32,
    settings=Settings(seq_len=1024),
)


@pytest.fixture(scope="module")
def answer() -> Answer:
    """The search without a wish."""
    return find(JOB, TODAY)


def test_a_dearer_plan(answer: Answer) -> None:
    """The difference in dollars and hours, and which parts of the step it comes from."""
    found = why_not(JOB, answer, "method=qlora,gpus=1", TODAY)
    assert found.plan is not None
    assert found.plan.request.method.name == "qlora"
    assert found.plan.gpu_count == 1
    text = " ".join(found.reasons)
    assert f"it costs ${found.plan.usd}, the recommended plan ${answer.plans[0].usd}" in text
    assert "more on the forward" in text


def test_one_that_does_not_fit(answer: Answer) -> None:
    """The closest configuration, by how much it is short, and what would help."""
    found = why_not(JOB, answer, "method=full,gpus=1,gradient-checkpointing=off", TODAY)
    assert found.plan is None
    assert found.rejected is not None
    assert "it does not fit" in found.reasons[0]
    assert "smallest change" in found.reasons[1]


def test_the_recommended_plan_itself(answer: Answer) -> None:
    """Asking for it gives it."""
    best = answer.plans[0]
    wish = f"method={best.request.method.name},gpus={best.gpu_count},optimizer={best.request.optimizer.name}"
    assert ("it is the recommended plan",) == why_not(JOB, answer, wish, TODAY).reasons


def test_a_limit_that_it_breaks() -> None:
    """Limits of the job are reasons, not filters of the wish."""
    job = replace(JOB, max_hours=0.2, max_usd=Decimal(1000))
    found = why_not(job, find(job, TODAY), "method=qlora,gpus=1", TODAY)
    assert "above the limit of 0.2 h" in found.reasons[0]


def test_what_was_left_out_of_the_question(answer: Answer) -> None:
    """A card that was not asked for may be better, and that is said."""
    job = replace(JOB, targets=tuple(targets(["v100-16g"], (8,))))
    found = why_not(job, find(job, TODAY), "gpu=a100-80g,gpus=8", TODAY)
    assert "it is better, and was left out of what was asked for" == found.reasons[0]


def test_a_batch_that_cannot_be_split(answer: Answer) -> None:
    """An impossible layout is an answer."""
    assert "cannot be split evenly" in why_not(JOB, answer, "gpus=3", TODAY).reasons[0]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("", "is no wish"),
        ("qlora", "is no wish"),
        ("method=", "is no wish"),
        ("methods=lora", "Did you mean 'method'"),
        ("gpus=two", "is not a number"),
        ("zero-stage=4", "not a number from 0 to 3"),
        ("gpus=1,gpus=2", "names gpus twice"),
        ("method=loraa", "Unknown"),
        ("gradient-checkpointing=maybe", "Unknown gradient-checkpointing"),
        ("optimizer=adam9", "Unknown optimizer"),
    ],
)
def test_wishes_that_are_none(answer: Answer, wish: str, message: str) -> None:
    """The part that is wrong is named."""
    with pytest.raises(InputError, match=message):
        why_not(JOB, answer, wish, TODAY)

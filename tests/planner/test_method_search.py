"""Searches over parts: candidates, budgets, and what is not bettered."""

from dataclasses import replace

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.method_search import Candidate, search_methods
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.spaces import SPACES, Choice, Space, own_space
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings

SPEC = read_spec(*load("Qwen/Qwen2.5-0.5B"))
REQUEST = Request(SPEC, parse("full"), Settings(seq_len=128, gradient_checkpointing="off"), OPTIMIZERS["adamw"])
SMALL = Space((Choice("lora", "r", (None, 4, 8)), Choice("ia3")), ("", "1/2-2/2"))


@pytest.mark.parametrize("name", list(SPACES))
def test_every_candidate_of_a_space_is_a_method(name: str) -> None:
    """Each published space walks to the end; none of its candidates repeats another."""
    names = [method.name for method in SPACES[name].candidates()]
    assert len(names) == len(set(names)) > 50


def test_candidates_are_the_combinations() -> None:
    """Three sizes of one part with and without another in two sets of layers, without the candidate of nothing."""
    assert 2 * (3 * 2 - 1) == len(list(SMALL.candidates()))


def test_figures_are_those_of_the_ledger() -> None:
    """Trained parameters of every candidate found, built one by one."""
    found = search_methods(REQUEST, SMALL, None, None)
    assert found.best
    for candidate in found.best:
        assert build(SPEC, candidate.method, REQUEST.settings).trainable_parameters == candidate.trainable


def test_no_candidate_betters_one_that_was_found() -> None:
    """The set is Pareto's: more trained parameters, less memory, less time."""
    found = search_methods(REQUEST, SMALL, None, None)
    assert not [1 for a in found.best for b in found.best if a.betters(b)]
    assert [c.trainable for c in found.best] == sorted(c.trainable for c in found.best)


def test_budgets_hold() -> None:
    """What is above a limit is counted and left out."""
    every = search_methods(REQUEST, SMALL, None, None)
    least, most = every.best[0], every.best[-1]
    found = search_methods(REQUEST, SMALL, most.trainable - 1, None)
    assert found.over_budget >= 1
    assert max(c.trainable for c in found.best) < most.trainable
    assert [least.method] == [c.method for c in search_methods(REQUEST, SMALL, None, least.peak_bytes).best][:1]
    assert () == search_methods(REQUEST, SMALL, 1, None).best


def test_better_is_in_every_respect() -> None:
    """Fewer trained parameters with less memory is no betterment, and nothing betters itself."""
    one = Candidate(parse("lora"), 100, 50, 10, None, True)
    assert replace(one, trainable=101).betters(one)
    assert not replace(one, trainable=99, peak_bytes=40).betters(one)
    assert not one.betters(one)


def test_candidates_that_do_not_fit_are_said() -> None:
    """A part that the settings refuse is left out with its reason, the others stay."""
    request = replace(REQUEST, settings=replace(REQUEST.settings, gradient_checkpointing="non-reentrant"))
    found = search_methods(request, Space((Choice("lora"), Choice("prefix_tuning"))), None, None)
    assert ["lora"] == [c.method.name for c in found.best]
    assert "gradient checkpointing" in found.misfits[0][1]


def test_a_space_of_misfits_is_an_error() -> None:
    """Nothing fits: the reason is the error."""
    with pytest.raises(InputError, match="no candidate of the space fits"):
        search_methods(REQUEST, Space((Choice("lora(target_modules=nothing)"),)), None, None)


def test_own_space() -> None:
    """A user's table gives the same candidates as the same space in data."""
    table = {
        "choice": [{"part": "lora", "option": "r", "values": [False, 4, 8]}, {"part": "ia3"}],
        "layers": ["", "1/2-2/2"],
    }
    assert [m.name for m in SMALL.candidates()] == [m.name for m in own_space(table, "mine.toml").candidates()]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "a space is a list"),
        ({"choice": []}, "a space is a list"),
        ({"choices": [{"part": "lora"}]}, "'choices' is no key"),
        ({"choice": ["lora"]}, "a choice has part"),
        ({"choice": [{"part": "lora", "option": "r"}]}, "needs both option and values"),
        ({"choice": [{"part": "lora", "option": "r", "values": [[4]]}]}, "numbers or text"),
        ({"choice": [{"part": "lora", "option": "r", "values": list(range(2001))}]}, "more than 2000"),
        ({"choice": [{"part": "lora"}], "layers": "all"}, "a space is a list"),
    ],
)
def test_a_broken_space_is_an_error(table: dict[str, object], words: str) -> None:
    """What is wrong with the user's file is said."""
    with pytest.raises(InputError, match=words):
        list(own_space(table, "mine.toml").candidates())

"""What padding, packing and grouping make of lengths: against brute force and against what must hold."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.data.batches import Batches, best_fit_decreasing, expected_longest
from tuneplan.planner.data.lengths import Lengths, distribution, of_counts
from tuneplan.planner.errors import InputError

HISTOGRAM = st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=1, max_size=12)


def of(*tokens: int) -> Lengths:
    """Lengths of a few sequences."""
    return of_counts({n: tokens.count(n) for n in tokens}, "test")


def plain_best_fit(tokens: list[int], capacity: int) -> list[int]:
    """One sequence at a time, the longest first, into the fullest pack that takes it."""
    packs: list[int] = []
    for size in sorted(tokens, reverse=True):
        fits = [index for index, held in enumerate(packs) if held + size <= capacity]
        if fits:
            packs[max(fits, key=packs.__getitem__)] += size
        else:
            packs.append(size)
    return packs


@given(counts=HISTOGRAM, capacity=st.integers(60, 200))
def test_packing_is_best_fit_decreasing(counts: dict[int, int], capacity: int) -> None:
    """The histogram's way and the plain one fill packs alike."""
    tokens = [n for n, times in counts.items() for _ in range(times)]
    assert sorted(plain_best_fit(tokens, capacity)) == sorted(best_fit_decreasing(of_counts(counts, "test"), capacity))


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_mean_of_the_longest_is_exact(multiple: int) -> None:
    """Over all batches of three of six sequences."""
    tokens = (3, 5, 5, 9, 20, 21)
    longest = [max(batch) for batch in itertools.combinations(tokens, 3)]
    padded = [-(-n // multiple) * multiple for n in longest]

    assert expected_longest(of(*tokens), 3, multiple) == pytest.approx(sum(padded) / len(padded), rel=1e-12)


@given(counts=HISTOGRAM, micro=st.sampled_from([1, 2, 4]), cut=st.integers(5, 80))
def test_ways_are_in_order(counts: dict[int, int], micro: int, cut: int) -> None:
    """No padding <= grouped <= longest of a batch <= max_length, in the mean; none of them above the longest batch."""
    lengths = of_counts(counts, "test")
    none, grouped, longest, widest = (
        Batches(lengths, cut, padding=padding, group_by_length=group)
        for padding, group in (("none", False), ("longest", True), ("longest", False), ("max_length", False))
    )
    assert none.mean_length(micro) <= grouped.mean_length(micro) + 1e-9
    assert longest.mean_length(micro) <= widest.mean_length(micro) + 1e-9
    for way in (none, grouped, longest, widest):
        assert way.mean_length(micro) <= way.longest_length(micro) + 1e-9
        assert 0 <= way.padding_share(micro) < 1
        assert way.tokens == none.tokens


def test_a_batch_of_one_has_no_padding_but_the_multiple() -> None:
    """Each sequence is its own longest."""
    lengths = of(10, 20, 30)
    assert 20 == pytest.approx(Batches(lengths, 100).mean_length(1))
    assert (16 + 24 + 32) / 3 == pytest.approx(Batches(lengths, 100, pad_to_multiple_of=8).mean_length(1))
    assert 0 == pytest.approx(Batches(lengths, 100).padding_share(1), abs=1e-12)


def test_padding_free_memory_is_that_of_the_longest_together() -> None:
    """The worst batch has the longest sequences, truncated ones included."""
    assert -(-(50 + 50 + 20) // 3) == Batches(of(10, 20, 60, 70), 50, padding="none").longest_length(3)


def test_wrapped_rows_go_on_in_the_next() -> None:
    """Nothing is cut off: 25 + 25 tokens are five rows of ten; best fit cuts each to ten."""
    lengths = of(25, 25)
    wrapped, packed = Batches(lengths, 10, packing="wrapped"), Batches(lengths, 10, packing="bfd")
    assert (5, 50, 10.0) == (wrapped.rows, wrapped.tokens, wrapped.mean_length(2))
    assert (2, 20, 10.0) == (packed.rows, packed.tokens, packed.mean_length(2))


def test_grouping_is_seeded_and_saves() -> None:
    """The same every time, and within 20 % of no padding: batches are sorted among fifty alone."""
    lengths = distribution("lognormal(mean=300, p99=2000)")
    assert lengths is not None
    first, second = (Batches(lengths, 4096, group_by_length=True).mean_length(8) for _ in range(2))
    free, plain = Batches(lengths, 4096, padding="none").mean_length(8), Batches(lengths, 4096).mean_length(8)
    assert first == second
    assert free < first < 1.2 * free < plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"padding": "longer"}, "Unknown padding 'longer'. Did you mean 'longest'"),
        ({"packing": "ffd"}, "Unknown packing-strategy 'ffd'"),
        ({"packing": "bfd", "group_by_length": True}, "nothing to group"),
        ({"padding": "none", "group_by_length": True}, "saves nothing"),
        ({"pad_to_multiple_of": 0}, "no multiple to pad to"),
    ],
)
def test_words_that_do_not_go_together(words: dict[str, object], message: str) -> None:
    """By name."""
    with pytest.raises(InputError, match=message):
        Batches(of(1), 10, **words).check()  # type: ignore[arg-type]


def test_many_sequences_stay_a_histogram() -> None:
    """A billion sequences are counted as fast as ten."""
    lengths = Lengths(np.array([100, 900]), np.array([5 * 10**8, 5 * 10**8]), "test")
    assert 10**9 == Batches(lengths, 1000).rows
    assert 100 / 4 + 3 * 900 / 4 == pytest.approx(Batches(lengths, 1000).mean_length(2), rel=1e-6)

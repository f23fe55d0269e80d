"""Distributions of lengths, and what is none."""

import math
from pathlib import Path

import pytest

from tuneplan.planner.data.length_file import read_lengths
from tuneplan.planner.data.lengths import Lengths, distribution
from tuneplan.planner.errors import InputError


def made(text: str) -> Lengths:
    """The lengths of a short form."""
    found = distribution(text)
    assert found is not None
    return found


@pytest.mark.parametrize("text", ["lognormal(mean=600, p99=4000)", "lognormal(mean=600,p99=1200)"])
def test_lognormal_has_the_mean_and_the_percentile(text: str) -> None:
    """Within 1 %: the farthest tail lies outside the quantiles."""
    lengths = made(text)
    p99 = int(text.rsplit("=", maxsplit=1)[-1].rstrip(")"))
    assert lengths.total / lengths.sequences == pytest.approx(600, rel=0.01)
    assert lengths.quantile(0.99) == pytest.approx(p99, rel=0.01)


def test_other_forms() -> None:
    """Constant, uniform, normal, by median and by percentiles."""
    assert ([512], 512) == (made("constant(tokens=512)").tokens.tolist(), made("constant(tokens=512)").quantile(0.5))
    assert made("uniform(low=100, high=300)").total / 10_000 == pytest.approx(200, rel=0.001)
    assert made("normal(mean=800, std=100)").quantile(0.84) == pytest.approx(900, rel=0.01)
    assert made("lognormal(median=500, p99=4000)").quantile(0.5) == pytest.approx(500, rel=0.01)
    marks = made("percentiles(p50=400, p90=1500, p100=8000)")
    assert [pytest.approx(n, rel=0.01) for n in (400, 1500, 8000)] == [marks.quantile(q) for q in (0.5, 0.9, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lognormal(mean=600)", "lognormal needs 'p99'|lognormal needs p99"),
        ("lognormal(mean=600, p99=60000)", "no such distribution has mean=600 and p99=60000"),
        ("lognormal(mean=600, p99=500)", "no such distribution"),
        ("lognormal(mean=0, p99=0)", "no such distribution"),
        ("lognormal(median=0, p99=5)", "must be median=0 or more"),
        ("lognormal(mean=600, p99=4000, p50=3)", "has no option p50"),
        ("lognormal(mean=six)", "is not a name and a number"),
        ("lognormal(mean=nan, p99=3)", "is not a name and a number"),
        ("uniform(low=3, high=2)", "exchange them"),
        ("uniform(low=1, low=2)", "gives low twice"),
        ("gamma(mean=3)", "Unknown distribution 'gamma'"),
        ("percentiles(p50=400)", "two percentiles at least, and p100"),
        ("percentiles(p50=400, p100=100)", "a higher percentile has a lower value"),
        ("normal(mean=1e30, std=1)", "more than 16777216 tokens"),
    ],
)
def test_what_no_distribution_is(text: str, message: str) -> None:
    """The message shows what can be written."""
    with pytest.raises(InputError, match=message):
        distribution(text)


def test_a_file_of_lengths(tmp_path: Path) -> None:
    """A number a line, or with a count; comments and empty lines are passed over."""
    path = tmp_path / "lengths.txt"
    path.write_text("# tokens\n100\n\n200,3\n100\n")
    lengths = read_lengths(str(path))
    assert ([100, 200], [2, 3]) == (lengths.tokens.tolist(), lengths.counts.tolist())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"100\nabc\n", "line 2: 'abc' is no length"),
        (b"100,2,3\n", "line 1: '100,2,3' is no length"),
        (b"0\n", "line 1: '0' is no length from 1"),
        (b"-5\n", "line 1"),
        (b"1" * 5000, "line 1"),
        (b"", "holds no sequence"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_file_of_lengths(tmp_path: Path, content: bytes, message: str) -> None:
    """With the line."""
    path = tmp_path / "lengths.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lengths(str(path))


def test_neither_a_file_nor_a_distribution() -> None:
    """Both ways are named."""
    with pytest.raises(InputError, match="neither a file nor a distribution"):
        read_lengths("no/such/file")


def test_cutting_keeps_the_number_of_sequences() -> None:
    """Longer ones become as long as the limit."""
    whole = made("uniform(low=100, high=300)")
    cut = whole.cut(200)
    assert (whole.sequences, 200) == (cut.sequences, int(cut.tokens[-1]))
    assert math.isclose(0.5, cut.counts[-1] / cut.sequences, abs_tol=0.01)

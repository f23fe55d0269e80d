"""Workloads files with something wrong: the line, the place, and what to do."""

from pathlib import Path

import pytest
from workload_files import BUY, HEAD, SERVING, TRAINING

from tuneplan.planner.capacity.read import read_workloads
from tuneplan.planner.capacity.schema import MOST_WORKLOADS
from tuneplan.planner.errors import InputError

GOOD = HEAD + BUY + TRAINING + SERVING


def read(text: str, folder: Path) -> None:
    """Read a file of this text."""
    path = folder / "w.yaml"
    path.write_text(text, encoding="utf-8")
    read_workloads(path)


def test_a_whole_file(tmp_path: Path) -> None:
    """Everything that is used below can be read, and the examples of the documentation too."""
    read(GOOD, tmp_path)
    examples = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))
    assert len(examples) >= 2
    for example in examples:
        read_workloads(example)


def swap(old: str, new: str) -> str:
    """The good file with one piece exchanged."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def line_of(text: str, piece: str) -> int:
    """The line of a piece."""
    return text[: text.index(piece)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "at", "word"),
    [
        ("    requests: 1/s", "    reqests: 1/s", "reqests", "Did you mean 'requests'"),
        ("horizon:", "horizn:", "horizn", "Did you mean 'horizon'"),
        ("  rent:", "  rents:", "rents", "Did you mean 'rent'"),
        ("{mean: 300, p95: 900}", "{mean: 300, p95: 900, p99: 1}", "p99", "unknown key 'p99'"),
        ("    requests: 1/s", "    requests: 1", "requests: 1\n", "has no unit"),
        ("    deadline: 48 hours", "    deadline: 48", "deadline", "has no unit"),
        ("machine_price: 6000 USD", "machine_price: 6000", "machine_price", "has no unit"),
        ("machine_price: 6000 USD", "machine_price: 6000 EUR", "machine_price", "convert other currencies"),
        ("      machine_price: 6000 USD\n", "", "- name: box", "either machine_price"),
        ("machine_price: 6000 USD", "host_price: 1 USD\n      machine_price: 6000 USD", "- name: box", "either machine_price"),
        ("      electricity: 0.13 USD/kWh\n", "", "- name: box", "'electricity' is missing"),
        ("      source: an example\n", "", "- name: box", "'source' is missing"),
        ("date: 2026-06-01", "date: 2026-13-01", "date", "not a date"),
        ("pue: 1.5", "pue: 0.5", "pue", "greater than or equal to 1"),
        ("gpu: rtx-4090", "gpu: rtx-4091", "gpu: rtx-4091", "Did you mean 'rtx-4090'"),
        ("g6e.xlarge,", "g6e.xlarg,", "rent", "Did you mean 'g6e.xlarge'"),
        ("g6e.xlarge,", "g6e.12xlarge,", "rent", "listed twice"),
        ("method: qlora", "method: qlorra", "method", "Did you mean 'qlora'"),
        ("    requests: 1/s", "    requests: 1/s\n    weights: nf5", "weights", "nf4"),
        ("    requests: 1/s", "    requests: 1/s\n    kv_dtype: fp9", "kv_dtype", "fp8"),
        ("    requests: 1/s", "    requests: 1/s\n    only_on: [box, moon]", "only_on", "'moon' is not listed"),
        ("    requests: 1/s", "    requests: 1/s\n    adapters: 3", "- name: chat", "of which kind"),
        ("    requests: 1/s", "    requests: 1/s\n    adapter: lora", "- name: chat", "how many"),
        ("    requests: 1/s", "    requests: 1/s\n    first_month: 13", "first_month", "beyond the horizon"),
        ("    requests: 1/s", "    requests: 1/s\n    first_month: 5\n    last_month: 2", "- name: chat", "exchange"),
        ("peak: 3/s", "peak: 0.5/s", "- name: chat", "below the mean rate"),
        ("{mean: 300, p95: 900}", "{mean: 300, p95: 200}", "prompt_tokens", "below the mean"),
        ("{mean: 300, p95: 900}", "300", "prompt_tokens", "mean"),
        ("name: chat", "name: tune", "serving", "already"),
        ("horizon: 12 months", "horizon: 48 months", "version", "longer than 36"),
        ("horizon: 12 months", "horizon: 12", "horizon", "has no unit"),
        ("version: 1", "version: 2", "version", "should be 1"),
        ("version: 1", "version: 1\ngrowth: 90%/month", "growth", "more than 1,000 times"),
        ("version: 1", "version: 1\nmax_utilisation: 0%", "version", "no use at all"),
        ("tokens: 5M", "tokens: lots", "tokens: lots", "not a count"),
        ("seq_len: 512", "seq_len: 512.5", "seq_len", "integer"),
    ],
)
def test_faults_have_a_line(old: str, new: str, at: str, word: str, tmp_path: Path) -> None:
    """The line is that of the value, or of the entry whose keys contradict each other."""
    text = swap(old, new)
    with pytest.raises(InputError, match=word) as caught:
        read(text, tmp_path)
    expected = line_of(text, at)
    given = int(str(caught.value).split(" line ")[1].split(":")[0])
    assert abs(expected - given) <= 1, str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- a\n", "is a mapping"),
        ("just text\n", "is a mapping"),
        ("version: 1\nhorizon: 1 month\nhardware: {}\n", "no machine is listed"),
        (HEAD, "no workload is listed"),
        ("version: 1\nhorizon: 1 month\nhardware: [g6e.xlarge]\n", "hardware"),
        (HEAD + "training: 5\n", "training"),
        (HEAD + "training: [5]\n", "training"),
        (HEAD + "x: &a 1\ny: *a\n", "anchor"),
    ],
)
def test_files_that_are_something_else(text: str, word: str, tmp_path: Path) -> None:
    """Lists, text, empty sections, and aliases."""
    with pytest.raises(InputError, match=word):
        read(text, tmp_path)


def test_more_workloads_than_anybody_lists(tmp_path: Path) -> None:
    """One too many is refused at its line; a million are refused by the size of the file."""
    entry = "  - {name: a}\n"
    with pytest.raises(InputError, match=r"line \d+: .*Give workloads that are alike once, with count"):
        read(HEAD + "training:\n" + entry * (MOST_WORKLOADS + 1), tmp_path)
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read(HEAD + "training:\n" + entry * 10**6, tmp_path)


def test_launch_prices_need_a_source(tmp_path: Path) -> None:
    """host_price adds the cards' launch price, which an L4 does not have here."""
    text = swap("machine_price: 6000 USD", "host_price: 900 USD").replace("gpu: rtx-4090", "gpu: l4")
    with pytest.raises(InputError, match="no launch price with a source is known for l4"):
        read(text, tmp_path)

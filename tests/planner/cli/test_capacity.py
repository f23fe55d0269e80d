"""`plan capacity`: the promised JSON, every report, and refusals of the command line."""

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refuse
from workload_files import BUY, HEAD, SERVING, TRAINING

EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))
KINDS = {"on_demand", "spot", "reserved", "buy", "mixed"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file with a job, a load, two instances and a machine to buy."""
    path = tmp_path / "w.yaml"
    path.write_text(HEAD + BUY + TRAINING + SERVING)
    return str(path)


def test_promised_keys(plan: Any, file: str) -> None:
    """The keys of the contract, and totals that are the sums of the months."""
    outcome = plan("capacity", file, "--json")
    body = outcome.json()
    assert (0, "", 1, 12) == (outcome.code, outcome.err, body["schema_version"], body["months"])
    assert [] == body["unserved"]
    assert ["tune", "chat"] == [workload["name"] for workload in body["workloads"]]
    assert {"on_demand", "buy", "mixed"} == {option["kind"] for option in body["options"]}
    for option in body["options"]:
        assert option["kind"] in KINDS
        assert option["usd_total"] == pytest.approx(sum(month["usd"] for month in option["monthly"]), abs=0.2)
        assert all({"gpu", "count", "usd_per_month"} <= set(machine) for machine in option["machines"])
        assert {"utilisation", "binding", "break_even_month"} <= set(option)
    assert body["recommended"] == body["options"][0]
    assert all(price["source"] for price in body["prices"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_the_documentation(plan: Any, example: Path) -> None:
    """Every example can be planned."""
    outcome = plan("capacity", str(example), "--json")
    assert 0 == outcome.code
    assert outcome.json()["recommended"] is not None


def test_all_reports(plan: Any, file: str, tmp_path: Path) -> None:
    """Table, CSV, Markdown, HTML and plots say the same total."""
    names = {option: str(tmp_path / f"out.{option}") for option in ("csv", "markdown", "html", "plots")}
    arguments = [word for option, path in names.items() for word in (f"--{option}", path)]
    outcome = plan("capacity", file, *arguments)
    body = plan("capacity", file, "--json").json()
    total = f"${body['recommended']['usd_total']:,.0f}"
    assert (0, True) == (outcome.code, total in outcome.out)
    rows = list(csv.DictReader(io.StringIO(Path(names["csv"]).read_text())))
    assert 12 * len(body["options"]) == len(rows)
    best = [float(row["usd"]) for row in rows if row["option"] == body["recommended"]["kind"]]
    assert body["recommended"]["usd_total"] == pytest.approx(sum(best), abs=0.2)
    assert total in Path(names["markdown"]).read_text()
    page = Path(names["html"]).read_text()
    assert total in page
    assert 2 == page.count("<svg")
    assert "http" not in page.split("<style>")[0]
    images = sorted(Path(names["plots"]).iterdir())
    assert ["cost.png", "utilisation.png"] == [image.name for image in images]
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_names_cannot_break_a_page(plan: Any, file: str, tmp_path: Path) -> None:
    """Markup in a name is text in every report."""
    text = Path(file).read_text().replace("name: chat", 'name: "<script>alert(1)</script> | [x](y)"')
    Path(file).write_text(text)
    html, markdown = tmp_path / "o.html", tmp_path / "o.md"
    assert 0 == plan("capacity", file, "--html", str(html), "--markdown", str(markdown)).code
    assert "<script>" not in html.read_text()
    assert "<script>" not in markdown.read_text().replace("\\<script\\>", "")
    assert "\\| \\[x\\](y)" in markdown.read_text()


def test_growth_and_horizon_of_the_command_line(plan: Any, file: str) -> None:
    """They replace the file's."""
    body = plan("capacity", file, "--growth", "5%/month", "--horizon", "6 months", "--json").json()
    assert (6, 0.05) == (body["months"], body["growth_per_month"])
    refuse(plan("capacity", file, "--growth", "5%"), "growth", "%/month")
    refuse(plan("capacity", file, "--horizon", "48 months"), "36")


def test_own_prices(plan: Any, file: str, tmp_path: Path) -> None:
    """A price file wins over bundled prices, and may define an instance."""
    prices = tmp_path / "prices.csv"
    prices.write_text(
        "provider,instance,purchase,usd_per_hour,region,gpu,gpu_count\nme,mine,on_demand,0.50,here,l40s,1\nme,mine,spot,0.10,here,l40s,1\n"
    )
    text = Path(file).read_text().replace("[g6e.xlarge, g6e.12xlarge]", "[mine]")
    Path(file).write_text(text)
    refuse(plan("capacity", file), "mine")
    body = plan("capacity", file, "--prices", str(prices), "--json").json()
    assert {0.5, 0.1} == {price["usd_per_hour"] for price in body["prices"] if price["usd_per_hour"]}


def test_what_cannot_be_served_is_an_honest_no(plan: Any, file: str) -> None:
    """Exit code 1; the load, its line and by how much."""
    path = Path(file)
    path.write_text(path.read_text().replace("deadline: 48 hours", "deadline: 1 min"))
    outcome = plan("capacity", file, "--json")
    (unserved,) = outcome.json()["unserved"]
    assert (1, "tune") == (outcome.code, unserved["name"])
    assert path.read_text().splitlines()[unserved["line"] - 1].strip() == "- name: tune"
    assert "too long" in unserved["reason"]
    assert "Not served" in plan("capacity", file).out


@pytest.mark.parametrize("option", ["--csv", "--markdown", "--html"])
def test_files_that_cannot_be_written(plan: Any, file: str, option: str) -> None:
    """A folder that is not there, and an empty name."""
    refuse(plan("capacity", file, option, "/nonexistent/x"), "cannot be written")
    refuse(plan("capacity", file, option, ""), "is empty")


def test_plots_need_a_folder(plan: Any, file: str) -> None:
    """A file of that name is in the way."""
    refuse(plan("capacity", file, "--plots", file), "folder")


@pytest.mark.parametrize("path", ["/nonexistent.yaml", "/dev/zero", ".", "a\0b"])
def test_files_that_are_none(plan: Any, path: str) -> None:
    """One line, and nothing hangs."""
    refuse(plan("capacity", path))


def test_models_and_ranks_that_cannot_be(plan: Any, file: str) -> None:
    """They are found late, and still have their line."""
    path = Path(file)
    good = path.read_text()
    path.write_text(good.replace("model: 7b", "model: 7bb", 1))
    refuse(plan("capacity", file), "line 18: training[0]", "7bb")
    path.write_text(good.replace("method: qlora", "method: lora(r=999999)"))
    refuse(plan("capacity", file), "training[0]", "999999")


def test_output_does_not_depend_on_the_run(plan: Any, file: str) -> None:
    """Twice the same file, twice the same bytes."""
    assert plan("capacity", file, "--json").out == plan("capacity", file, "--json").out


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("yaml", ()), ("scipy.optimize", ()), ("matplotlib.figure", ("--html",)), ("matplotlib.figure", ("--plots",))],
)
def test_missing_extras_are_named(
    plan: Any, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...]
) -> None:
    """Without the extra's libraries the refusal says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    options = [word for name in arguments for word in (name, str(tmp_path / "out"))]
    refuse(plan("capacity", file, *options), "pip install 'tuneplan[capacity]'")

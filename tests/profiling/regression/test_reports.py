"""The reports of `plan check`: the same results for a terminal, a program, a job's page and an annotated line."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pydantic")

from regressions import cases, place, reading
from rich.console import Console

from tuneplan.profiling.regression.baseline import Recorded
from tuneplan.profiling.regression.check import Checked
from tuneplan.profiling.regression.compare import Result, compare
from tuneplan.profiling.regression.github import annotations
from tuneplan.profiling.regression.junit import junit_xml
from tuneplan.profiling.regression.markdown import markdown
from tuneplan.profiling.regression.report import check_report, to_json

TEXT = '# cases\n[cases.good]\nmodel = "7b"\n[cases.worse]\nmodel = "7b"\n[cases.gone]\nmodel = "7b"\n'


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """One case that is fine, one that regressed, one that could not run."""
    pytest.importorskip("torch")
    found = cases(tmp_path, TEXT)
    good, worse, gone = found.cases.values()
    versions = {"torch": "2.13.0"}
    before = Recorded.of(reading(place(1024)), {})
    copy = place(512, op="_to_copy.default", line="lib/a|b.py:3", caller="train,x.py:50")
    results = [
        compare(good, reading(place(1024)), before, versions, versions),
        compare(worse, reading(place(1024), copy), before, versions, versions),
        Result(gone, "error", message="case gone: 100 % broken\nin two lines \x00"),
    ]
    return Checked(found, results, versions, versions)


def test_json(checked: Checked) -> None:
    """Every figure is in the document, and the document is JSON."""
    document = json.loads(json.dumps(to_json(checked), allow_nan=False))

    assert ["ok", "regression", "error"] == [case["status"] for case in document["cases"]]
    assert document["exit_code"] == 2
    worse = document["cases"][1]
    assert {
        "name": "peak",
        "baseline_bytes": 1024,
        "bytes": 1536,
        "difference_bytes": 512,
        "allowed_bytes": 1024,
        "exceeded": True,
    } == worse["changes"][0]
    assert ("_to_copy.default", "layers.*.mlp", "lib/a|b.py:3", "train,x.py:50", 512) == tuple(
        worse["new_bytes"][0][key] for key in ("op", "module", "line", "caller", "extra_bytes")
    )


def test_terminal(checked: Checked) -> None:
    """A person sees what moved, by how much, and the op, module and line."""
    console = Console(width=160, record=True)
    console.print(check_report(checked))
    text = console.export_text()

    for part in ("+512 B (+50.00 %)", "_to_copy.default", "layers.*.mlp", "lib/a|b.py:3 from train,x.py:50", "1 regressed"):
        assert part in text


def test_junit(checked: Checked) -> None:
    """A test for each case: passed, failed, error; characters that XML cannot hold are replaced."""
    suite = ElementTree.fromstring(junit_xml(checked)).find("testsuite")

    assert suite is not None
    assert ("3", "1", "1") == (suite.get("tests"), suite.get("failures"), suite.get("errors"))
    assert [[], ["failure"], ["error"]] == [[child.tag for child in test] for test in suite]
    assert "_to_copy.default in layers.*.mlp" in str(suite[1][0].text)


def test_markdown(checked: Checked) -> None:
    """Every row of a table has the cells of its header, whatever stands in a name."""
    lines = markdown(checked).splitlines()
    rows = [line.replace("\\|", "") for line in lines if line.startswith("|")]

    assert {4, 6, 8} == {row.count("|") for row in rows}
    assert "| +512 | activations | \\_to\\_copy.default |" in "\n".join(lines)


def test_annotations(checked: Checked, tmp_path: Path) -> None:
    """One line a failing case: at the user's line that holds the new bytes, else at the case; no raw newline."""
    first, second = annotations(checked, tmp_path)

    assert first.startswith("::error file=train%2Cx.py,line=50,title=Memory of worse%3A peak +512 B (+50.00 %25)::")
    assert "_to_copy.default in layers.*.mlp at lib/a|b.py:3, called from train,x.py:50" in first
    assert second.startswith("::error file=tuneplan.toml,line=6,title=plan check%3A gone::case gone: 100 %25 broken%0Ain two")

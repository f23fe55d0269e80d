"""The results as JUnit XML, which continuous integration shows as tests.

The form that Jenkins, GitLab and GitHub's reporters read: testsuites / testsuite / testcase with failure or error.
"""

import re
from xml.etree import ElementTree

from tuneplan.profiling.regression.check import Checked
from tuneplan.profiling.regression.report import MOST_PLACES, place_words, sentence

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


def junit_xml(checked: Checked) -> bytes:
    """A suite `plan check` with a test for each case."""
    counts = {status: str(sum(r.status == status for r in checked.results)) for status in ("regression", "error")}
    totals = {"tests": str(len(checked.results)), "failures": counts["regression"], "errors": counts["error"]}
    root = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "plan check", **totals})
    for result in checked.results:
        place = {"classname": "plan check", "name": result.case.name, "file": checked.cases.path.name}
        test = ElementTree.SubElement(suite, "testcase", {**place, "line": str(result.case.line)})
        if result.status in ("regression", "error"):
            kind = "failure" if result.status == "regression" else "error"
            found = ElementTree.SubElement(test, kind, {"message": _text(sentence(result)), "type": result.status})
            lines = [f"+{new.extra_bytes:,} bytes: {place_words(new)} ({new.how})" for new in result.new_bytes[:MOST_PLACES]]
            found.text = _text("\n".join([*lines, *result.causes]))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _text(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("?", text)

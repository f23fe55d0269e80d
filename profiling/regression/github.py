"""Annotations of GitHub Actions: a line at the code that holds the new bytes.

The form is that of "Workflow commands for GitHub Actions" (docs.github.com): `::error file=F,line=N,title=T::message`, with %, CR
and LF escaped, and : and , in properties too.
"""

from pathlib import Path

from tuneplan.profiling.regression.check import Checked
from tuneplan.profiling.regression.compare import Result
from tuneplan.profiling.regression.report import moved, place_words


def annotations(checked: Checked, workspace: Path) -> list[str]:
    """One line for each case that regressed or could not be checked.

    Args:
        checked: the results.
        workspace: the checkout's root, to which GitHub's paths are relative.
    """
    return [_line(r, checked, workspace) for r in checked.results if r.status in ("regression", "error")]


def _line(result: Result, checked: Checked, workspace: Path) -> str:
    file, line = checked.cases.path.resolve(), result.case.line
    if result.status == "error":
        title, message = f"plan check: {result.case.name}", result.message
    else:
        first = next((new for new in result.new_bytes if new.place.caller), None)
        if first is not None:
            name, _, number = first.place.caller.rpartition(":")
            file, line = checked.cases.root / name, int(number)
        worst = result.exceeded[0]
        title = f"Memory of {result.case.name}: {worst.name.replace('_', ' ')} {moved(worst)}"
        held = [f"+{new.extra_bytes:,} bytes: {place_words(new)}" for new in result.new_bytes[:3]]
        message = "\n".join([*result.causes, *held])
    root = workspace.resolve()
    path = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
    return f"::error file={_property(path)},line={line},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""`plan check` as a library: run the cases, compare or record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneplan.planner.errors import InputError
from tuneplan.profiling.regression import baseline
from tuneplan.profiling.regression.baseline import UPDATE, Baseline, Recorded
from tuneplan.profiling.regression.cases import Case, Cases, load
from tuneplan.profiling.regression.compare import Result, compare
from tuneplan.profiling.regression.run import run
from tuneplan.profiling.regression.versions import installed


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of all cases.

    Attributes:
        cases: the file of cases.
        results: in its order.
        versions: installed now.
        recorded_versions: of the baseline; empty where there was none.
        updated: whether the baseline was rewritten with something new; None without an update.
    """

    cases: Cases
    results: Sequence[Result]
    versions: dict[str, str]
    recorded_versions: dict[str, str]
    updated: bool | None = None

    @property
    def exit_code(self) -> int:
        """2 where a case could not be checked, 1 where one regressed, else 0."""
        found = {result.status for result in self.results}
        return 2 if "error" in found else 1 if "regression" in found else 0


Told = Callable[[str], None]


def check(path: Path, names: Sequence[str], update: bool, told: Told = lambda _: None) -> Checked:
    """Run cases and compare them with the baseline, or record them.

    Args:
        path: the file of cases.
        names: of the cases to run; all where none is given.
        update: write the baseline instead of comparing with it.
        told: called with the name of a case when it begins.

    Raises:
        InputError: the cases or the baseline cannot be used. What goes wrong with one case is in its result.
    """
    cases = load(path)
    chosen = cases.chosen(names)
    return _update(cases, chosen, bool(names), told) if update else _compare(cases, chosen, bool(names), told)


def _compare(cases: Cases, chosen: Sequence[Case], some: bool, told: Told) -> Checked:
    before = baseline.read(cases.baseline)
    gone = sorted(before.cases.keys() - cases.cases.keys())
    if gone and not some:
        raise InputError(
            f"{cases.baseline} remembers {', '.join(gone)}, which {cases.path} no longer has; put the case back, or {UPDATE}"
        )
    versions = installed()
    results = []
    for case in chosen:
        told(case.name)
        recorded = before.cases.get(case.name)
        message = _stale(case, recorded, cases.baseline)
        if recorded is None or message:
            results.append(Result(case, "error", message=message))
            continue
        try:
            results.append(compare(case, run(case, cases.root), recorded, versions, before.versions))
        except InputError as error:
            results.append(Result(case, "error", message=str(error)))
    return Checked(cases, results, versions, dict(before.versions))


def _stale(case: Case, recorded: Recorded | None, path: Path) -> str:
    """Why a case cannot be compared with what was recorded; "" where it can."""
    if recorded is None:
        return f"case {case.name} is not in {path}; {UPDATE}"
    now, then = case.settings(), recorded.settings
    changed = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    if not changed:
        return ""
    name = changed[0]
    return f"case {case.name} was recorded with {name} = {then.get(name)!r} and has {now.get(name)!r} now; {UPDATE}"


def _update(cases: Cases, chosen: Sequence[Case], some: bool, told: Told) -> Checked:
    """Record the chosen cases; nothing is written unless all of them ran."""
    versions = installed()
    kept: dict[str, Recorded] = {}
    if some and cases.baseline.exists():
        before = baseline.read(cases.baseline)
        if dict(before.versions) != versions and before.cases.keys() - {case.name for case in chosen}:
            raise InputError(
                f"{cases.baseline} was recorded with other versions ({_words(before.versions)}) than are installed; "
                "update all cases at once: plan check --update"
            )
        kept = {name: recorded for name, recorded in before.cases.items() if name in cases.cases}
    results = []
    for case in chosen:
        told(case.name)
        try:
            recorded = Recorded.of(run(case, cases.root), case.settings())
            kept[case.name] = recorded
            results.append(Result(case, "recorded", message=f"{recorded.peak_bytes:,} bytes at the peak"))
        except InputError as error:
            results.append(Result(case, "error", message=str(error)))
    updated = False
    if all(result.status != "error" for result in results):
        updated = baseline.write(cases.baseline, Baseline(versions, kept), cases.path.name)
    return Checked(cases, results, versions, versions, updated)


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))

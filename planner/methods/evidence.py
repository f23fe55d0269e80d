"""Published results of methods beside full fine-tuning, each with its task, model, metric and source.

`evidence.csv` holds one result a line, as its source prints it. Nothing is converted and nothing is filled in: a result
without a figure has its words in `note`, and a method without a line has no evidence.
"""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from tuneplan.planner.errors import DataFileError
from tuneplan.planner.methods.method import Method

FILE = Path(__file__).with_name("evidence.csv")
COLUMNS = (
    "method",
    "setting",
    "task",
    "model",
    "metric",
    "score",
    "full_score",
    "forgetting",
    "full_forgetting",
    "source",
    "note",
)
_NAME = re.compile(r"([a-z0-9_]+)(?:\([^()]*\))?")


@dataclass(frozen=True, slots=True)
class Finding:
    """One published result.

    Attributes:
        method: the name it is known by here.
        setting: how it was configured, as far as the source says.
        task: what was trained and tested.
        model: the base model.
        metric: of the scores; more is better.
        score: of the method; None where the source gives words only.
        full_score: of full fine-tuning of the same model on the same task, by the same source.
        forgetting: the source's measure of it (less is better), where it has one.
        full_forgetting: the same of full fine-tuning.
        source: where it was read.
        note: what else the source says.
    """

    method: str
    setting: str
    task: str
    model: str
    metric: str
    score: float | None
    full_score: float | None
    forgetting: float | None
    full_forgetting: float | None
    source: str
    note: str

    @property
    def relative(self) -> float | None:
        """Score over that of full fine-tuning."""
        return None if self.score is None or not self.full_score else self.score / self.full_score

    def to_json(self) -> dict[str, object]:
        """Every field, and the score over that of full fine-tuning."""
        return {**{name: getattr(self, name) for name in COLUMNS}, "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Quality:
    """What findings with figures say together: scores over those of full fine-tuning.

    Attributes:
        count: findings with figures.
        median: of their ratios.
        lowest: of their ratios.
        highest: of their ratios.
    """

    count: int
    median: float
    lowest: float
    highest: float


@cache
def findings() -> tuple[Finding, ...]:
    """Every line of the file. Raises DataFileError for one that cannot be."""
    with FILE.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataFileError(f"{FILE.name} has the columns {reader.fieldnames}, not {list(COLUMNS)}; restore it")
        return tuple([_finding(row, number) for number, row in enumerate(reader, 2)])


def of(method: Method) -> tuple[Finding, ...]:
    """Findings on a method, whatever its options; a composition without a name of its own has none."""
    name = _NAME.fullmatch(method.name)
    return () if name is None else tuple([f for f in findings() if f.method == name.group(1)])


def quality(found: tuple[Finding, ...]) -> Quality | None:
    """The findings together; None where none has figures."""
    ratios = [f.relative for f in found if f.relative is not None]
    return Quality(len(ratios), median(ratios), min(ratios), max(ratios)) if ratios else None


def _finding(row: dict[str, str], number: int) -> Finding:
    words = {name: row[name] or "" for name in ("method", "setting", "task", "model", "metric", "source", "note")}
    for name in ("method", "task", "model", "metric", "source"):
        if not words[name]:
            raise DataFileError(f"{FILE.name}, line {number}: no {name}; every result has one")
    try:
        figures = [float(row[name]) if row[name] else None for name in ("score", "full_score", "forgetting", "full_forgetting")]
    except ValueError as error:
        raise DataFileError(f"{FILE.name}, line {number}: {error}; scores are numbers or empty") from None
    if figures[0] is None and not words["note"]:
        raise DataFileError(f"{FILE.name}, line {number}: neither a score nor a note; a result says something")
    return Finding(**words, score=figures[0], full_score=figures[1], forgetting=figures[2], full_forgetting=figures[3])

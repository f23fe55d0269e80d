"""Every family against the real code: methods x gradient checkpointing x three (batch, length) points on small models.

`python -m tuneplan.profiling.validation families FILE [MODEL ...]` runs it; docs/accuracy.md shows the result.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import BLOCK_BYTES
from tuneplan.planner.memory import StepMemory, step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models
from tuneplan.profiling.small_models import SmallModel

METHODS = ("full", "lora", "qlora", "prompt_tuning", "prefix_tuning")
CHECKPOINTING = ("off", "non-reentrant")
REFUSED = {
    "prefix_tuning checkpointed": "PEFT refuses it where the model checkpoints already; where checkpointing is turned on later, "
    "transformers drops the prefix"
}
"""What works on no family, as in the `refuses` of a small model."""
STEP_PHASES = ("forward", "backward", "optimizer_step")
OPTIMIZER = "adamw"


@dataclass(frozen=True, slots=True)
class Cell:
    """A small model under a method."""

    model: str
    method: str
    gradient_checkpointing: str

    @property
    def expected_refusal(self) -> str:
        """Why the real code does not run it, or the planner does not model it, by what the small model's file says; else ""."""
        model = small_models.load(self.model)
        refuses = {**REFUSED, **model.not_modelled, **model.refuses}
        checkpointed = self.gradient_checkpointing != "off"
        return (refuses.get(f"{self.method} checkpointed", "") if checkpointed else "") or refuses.get(self.method, "")

    def settings(self, batch: int, length: int) -> Settings:
        """As the planner takes them: bf16, sdpa, the model's own loss."""
        size = small_models.load(self.model).image_size
        return Settings(
            micro_batch_size=batch, seq_len=length, gradient_checkpointing=self.gradient_checkpointing, image_size=size
        )


@dataclass(frozen=True, slots=True)
class Point:
    """One step: allocated peaks [bytes] and trained parameters, estimated and traced."""

    batch: int
    length: int
    estimated: int
    traced: int
    trained_estimated: int
    trained_traced: int

    @property
    def percent(self) -> float:
        """Estimated over traced, less one, in percent."""
        return 100 * (self.estimated / self.traced - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """A cell with its steps, or why the real code refused it."""

    cell: Cell
    points: tuple[Point, ...] = ()
    refused: str = ""

    @property
    def worst(self) -> float:
        """The largest error over the points, with its sign [percent]."""
        return max((point.percent for point in self.points), key=abs)


def cells(model: str) -> list[Cell]:
    """Every cell of a small model."""
    return [Cell(model, method, checkpointing) for method in METHODS for checkpointing in CHECKPOINTING]


def estimated(model: SmallModel, method: str, settings: Settings) -> tuple[Network, StepMemory]:
    """The ledger's answer. Raises InputError where the planner refuses the combination."""
    spec = read_spec(model.name, ConfigReader(model.config, model.name), model.task)
    network = build(spec, parse(model.written(method)), settings)
    return network, step_memory(network, settings, find_optimizer(OPTIMIZER))


def traced(model: SmallModel, method: str, settings: Settings) -> tuple[int, int]:
    """Trained parameters and the allocated peak [bytes] of the real code; whatever it raises where it refuses.

    Adam's step counts, which lie on the host beside a GPU, are left out where everything lies on the CPU.
    """
    from tuneplan.profiling import attention
    from tuneplan.profiling.build import build as build_real
    from tuneplan.profiling.step import trace_step
    from tuneplan.profiling.subject import Subject
    from tuneplan.profiling.trace import count

    attention.register()
    optimizer = find_optimizer(OPTIMIZER)
    subject = Subject(
        model.name, model.config, parse(model.written(method)), settings=settings, optimizer=optimizer, task=model.task
    )
    built = build_real(subject, attention.NAMES[settings.attention], model.device)
    trained = count(built.model).trainable
    peak = trace_step(built, settings).peak_bytes
    return trained, peak - (BLOCK_BYTES * len(built.optimizer.state) if model.device == "cpu" else 0)


def point(cell: Cell, batch: int, length: int) -> Point:
    """Estimate and trace one step of a cell."""
    model, settings = small_models.load(cell.model), cell.settings(batch, length)
    trained_traced, peak = traced(model, cell.method, settings)
    network, memory = estimated(model, cell.method, settings)
    ours = max(int(memory.phases[name].peak_bytes) for name in STEP_PHASES)
    return Point(batch, length, ours, peak, network.trainable_parameters, trained_traced)


def run(cell: Cell, points: Sequence[tuple[int, int]] = ()) -> Row:
    """A cell at the points of its small model, or at those given. A refusal is recorded where the model's file expects one."""
    row = Row(cell)
    for batch, length in points or small_models.load(cell.model).points:
        if not cell.expected_refusal:
            row = replace(row, points=(*row.points, point(cell, batch, length)))
        elif not row.refused:
            row = replace(row, refused=refusal(cell, batch, length))
    return row


def refusal(cell: Cell, batch: int, length: int) -> str:
    """What the real code says as it refuses a cell; and that the planner does not refuse it, where that is so.

    Raises:
        InputError: the real code runs it after all.
    """
    model, settings = small_models.load(cell.model), cell.settings(batch, length)
    said = cell.expected_refusal
    if said not in (*REFUSED.values(), *model.not_modelled.values()):
        try:
            traced(model, cell.method, settings)
        except Exception as error:  # whatever the code meets
            said = " ".join(str(error).split())[:200]
        else:
            raise InputError(f"{cell}: the real code runs this; take it out of `refuses`")
    try:
        estimated(model, cell.method, settings)
    except InputError:
        return said
    return f"{said} (tuneplan estimates it all the same)"


def sample(model: str) -> Iterator[tuple[Cell, tuple[int, int]]]:
    """Every cell at one of its points, all points in turn: what the tests run. The first point differs from model to model."""
    first = sum(model.encode())
    points = small_models.load(model).points
    for number, cell in enumerate(cells(model)):
        yield cell, points[(first + number) % len(points)]


def write(rows: Iterable[Row], path: Path) -> None:
    """Rows as JSON, one a line; those of the file that belong to other models stay."""
    new = list(rows)
    run_models = {row.cell.model for row in new}
    kept = [row for row in (read(path) if path.exists() else []) if row.cell.model not in run_models]
    known = small_models.names()
    ordered = sorted((row for row in [*kept, *new] if row.cell.model in known), key=lambda row: row.cell.model)
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in ordered) + "\n]\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Rows as `write` left them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Row(Cell(**r["cell"]), tuple(Point(**p) for p in r["points"]), r["refused"]) for r in content]


def render(rows: list[Row]) -> str:
    """The Markdown table: a line a model, the worst error of each method over points and checkpointing; refusals below."""
    steps = sum(len(row.points) for row in rows)
    models = list(dict.fromkeys(row.cell.model for row in rows))
    lines = [
        f"{len(models)} small models, {steps} steps.",
        "",
        f"| model | {' | '.join(METHODS)} |",
        "|---" + "|---:" * len(METHODS) + "|",
    ]
    for model in models:
        own = [row for row in rows if row.cell.model == model]
        lines.append(f"| {model} | " + " | ".join(_worst([row for row in own if row.cell.method == m]) for m in METHODS) + " |")
    return "\n".join([*lines, "", *_refusals(rows)])


def _worst(rows: list[Row]) -> str:
    run_ones = [row for row in rows if row.points]
    if not run_ones:
        return "-"
    mark = " *" if len(run_ones) < len(rows) else ""
    return f"{max((row.worst for row in run_ones), key=abs):+.4f} %{mark}"


def _refusals(rows: list[Row]) -> Iterator[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.refused:
            said.setdefault((row.cell.method, row.refused), []).append(
                row.cell.model + (" checkpointed" if row.cell.gradient_checkpointing != "off" else "")
            )
    if not said:
        return
    yield "`*`: not under gradient checkpointing; `-`: not at all. What the real code says, or why the planner refuses:"
    yield ""
    for (method, reason), where in said.items():
        shown = where if len(where) <= 6 else [*where[:5], f"{len(where) - 5} more"]
        yield f"- {method}: {reason} ({', '.join(shown)})"
    yield ""

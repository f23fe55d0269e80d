"""From a need to the methods that meet it, worked out from the rows of a comparison: nothing is recommended unseen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneplan.planner.compare import Row
from tuneplan.planner.methods.part import EFFORTS
from tuneplan.planner.units import format_gib, format_usd

MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Advice:
    """A need, and which of the compared methods meet it, the best first.

    Attributes:
        need: in the words of whoever has it.
        rule: who meets it, and what the best has most or least of.
        methods: names, each with the figure that placed it; empty where none meets it.
        met: how many meet it.
    """

    need: str
    rule: str
    methods: tuple[tuple[str, str], ...]
    met: int


@dataclass(frozen=True, slots=True)
class _Need:
    need: str
    rule: str
    meets: Callable[[Row], bool]
    key: Callable[[Row], float]
    figure: Callable[[Row], str]


def _peak(row: Row) -> str:
    return f"{format_gib(row.estimate.device_bytes)} peak"


def _memory(row: Row) -> float:
    return row.estimate.device_bytes


_NEEDS = (
    _Need("least memory", "least training peak", lambda row: True, _memory, _peak),
    _Need(
        "least money",
        "cheapest plan for the tokens",
        lambda row: row.plan is not None and row.plan.usd is not None,
        lambda row: float(row.plan.usd) if row.plan and row.plan.usd is not None else 0.0,
        lambda row: format_usd(row.plan.usd) if row.plan and row.plan.usd is not None else "",
    ),
    _Need(
        "no inference latency",
        "merges exactly; then least training peak",
        lambda row: row.method.mergeable and not row.merge_notes,
        _memory,
        _peak,
    ),
    _Need(
        "many tenants",
        "requests with different adapters share a batch; then smallest checkpoint",
        lambda row: row.batchable,
        lambda row: row.estimate.checkpoint_bytes,
        lambda row: f"{format_gib(row.estimate.checkpoint_bytes)} each, {row.adapters_per_model:,} in the space of one model",
    ),
    _Need(
        "no change to the model",
        "served with its own weights and modules; then least training peak",
        lambda row: row.leaves_model_alone,
        _memory,
        _peak,
    ),
    _Need(
        "least integration",
        "least change of code; then least training peak",
        lambda row: True,
        lambda row: EFFORTS.index(row.effort) * 2.0**64 + row.estimate.device_bytes,
        lambda row: row.effort,
    ),
    _Need(
        "closest to full fine-tuning",
        "highest median of published scores over those of full fine-tuning",
        lambda row: row.quality is not None and row.estimate.network.trainable_parameters < row.estimate.network.total_parameters,
        lambda row: -row.quality.median if row.quality else 0.0,
        lambda row: f"{row.quality.median:.3f} of {_results(row.quality.count)}" if row.quality else "",
    ),
)


def guide(rows: Sequence[Row]) -> tuple[Advice, ...]:
    """For each need the methods that meet it, the best first."""
    found = []
    for need in _NEEDS:
        meeting = sorted([row for row in rows if need.meets(row)], key=need.key)
        named = tuple([(row.method.name, need.figure(row)) for row in meeting[:MOST_NAMED]])
        found.append(Advice(need.need, need.rule, named, len(meeting)))
    return tuple(found)


def _results(count: int) -> str:
    return f"{count} result{'s' if count > 1 else ''}"

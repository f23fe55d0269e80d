"""An estimate's data: memory at the longest batch, time at the mean one, and an epoch of it."""

from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.data.amount import data_json
from tuneplan.planner.data.batches import Batches
from tuneplan.planner.estimate import estimate
from tuneplan.planner.request import Request
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import SECONDS_PER_HOUR


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the data.

    Attributes:
        batches: the data.
        micro_batch_size: rows of a forward.
        updates: optimizer steps.
        step_seconds: of a step on batches of the mean length; None without a GPU.
        attention: the implementation asked for.
    """

    batches: Batches
    micro_batch_size: int
    updates: int
    step_seconds: float | None
    attention: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of sequences that lie end to end."""
        if self.attention == "flash" or not (self.batches.packing or self.batches.padding == "none"):
            return ()
        return (
            f"sequences lie end to end: {self.attention} attention is counted over whole rows; transformers keeps them apart "
            "with --attention flash alone",
        )

    @property
    def hours(self) -> float | None:
        """Of the pass."""
        return None if self.step_seconds is None else self.updates * self.step_seconds / SECONDS_PER_HOUR

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = data_json(self.batches, self.micro_batch_size)
        found["notes"] += self.notes
        return {**found, "updates": self.updates, "mean_step_seconds": self.step_seconds, "epoch_hours": self.hours}

    def rows(self) -> list[tuple[str, str]]:
        """For a terminal: names and values."""
        b, size = self.batches, self.micro_batch_size
        way = f"packed ({b.packing})" if b.packing else f"padding {b.padding}{', grouped by length' if b.group_by_length else ''}"
        marks = ", ".join(f"p{share} {b.lengths.quantile(share / 100):,}" for share in (50, 90, 99, 100))
        cut = b.lengths.total - b.cut.total
        found = [
            ("data", f"{b.lengths.source}: {b.lengths.sequences:,} sequences, {b.lengths.total:,} tokens; {marks}"),
            (
                "batches",
                f"{way}; longest row {b.longest_length(size):,} tokens (memory), mean {b.mean_length(size):,.0f} (time), "
                f"{100 * b.padding_share(size):.1f} % padding{'' if b.exact else '; of a simulated epoch'}",
            ),
        ]
        if cut:
            found.append(("cut off", f"{cut:,} tokens of sequences above {b.max_length:,}"))
        if self.hours is not None:
            found.append(("epoch", f"{self.updates:,} updates, {self.hours:,.2f} h (modelled)"))
        return [*found, *(("note", note) for note in (*b.lengths.notes, *self.notes))]


def at_the_longest(settings: Settings, batches: Batches) -> Settings:
    """The settings at the longest batch of the data."""
    length = max(2, batches.longest_length(int(settings.micro_batch_size)))
    return replace(settings, seq_len=length, padded=settings.padded or batches.padded)


def epoch(request: Request, batches: Batches) -> Epoch:
    """A pass over the data. Attention's part of the time is that of rows of the mean length."""
    s = request.settings
    micro = int(s.micro_batch_size)
    global_batch = micro * request.gradient_accumulation_steps * request.sharding.data_parallel
    seconds = None
    if request.gpu is not None:
        mean = replace(request, settings=replace(s, seq_len=max(2, round(batches.mean_length(micro)))), batch_lengths=())
        time = estimate(mean, advice=False).time
        seconds = time.seconds if time is not None else None
    return Epoch(batches, micro, -(-batches.rows // global_batch), seconds, s.attention)

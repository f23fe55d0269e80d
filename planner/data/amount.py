"""How much is trained: a data set and passes over it, for the search."""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.data.batches import Batches
from tuneplan.planner.errors import InputError
from tuneplan.planner.units import parse_count


@dataclass(frozen=True, slots=True)
class Data:
    """A data set in a job.

    Attributes:
        batches: how it is batched.
        rows: of all epochs.
        tokens: of all epochs, padding not counted.
        epochs: passes.
    """

    batches: Batches
    rows: int
    tokens: int
    epochs: float

    def updates(self, global_batch_size: int) -> int:
        """Optimizer steps."""
        return -(-self.rows // global_batch_size)


def of_job(batches: Batches, epochs: float, samples: str | None, tokens: str | None) -> Data:
    """The data of a job. Raises InputError where amounts contradict each other.

    Args:
        batches: the data.
        epochs: passes over it.
        samples: where the data are a distribution, how many sequences it stands for.
        tokens: instead of epochs.
    """
    if epochs <= 0:
        raise InputError(f"--epochs {epochs} is no pass over the data; use 1 or more")
    if tokens is not None:
        if samples is not None:
            raise InputError("--samples and --tokens both say how much to train on; give one of them")
        wanted = parse_count(tokens)
        return Data(batches, max(1, round(batches.rows * wanted / batches.tokens)), wanted, wanted / batches.tokens)
    scale = epochs
    if samples is not None:
        scale = epochs * parse_count(samples) / batches.lengths.sequences
    return Data(batches, max(1, round(batches.rows * scale)), max(1, round(batches.tokens * scale)), epochs)


def data_json(batches: Batches, micro_batch_size: int) -> dict[str, Any]:
    """What a report says of data at a micro-batch."""
    lengths, cut = batches.lengths, batches.cut
    return {
        "source": lengths.source,
        "sequences": lengths.sequences,
        "tokens": lengths.total,
        "percentiles": {f"p{share}": lengths.quantile(share / 100) for share in (50, 90, 99, 100)},
        "cut_tokens": lengths.total - cut.total,
        "padding": batches.padding if not batches.packing else None,
        "packing": batches.packing or None,
        "group_by_length": batches.group_by_length,
        "rows": batches.rows,
        "longest_length": batches.longest_length(micro_batch_size),
        "mean_length": batches.mean_length(micro_batch_size),
        "padding_share": batches.padding_share(micro_batch_size),
        "basis": "exact" if batches.exact else "a simulated epoch, seeded",
        "notes": list(lengths.notes),
    }

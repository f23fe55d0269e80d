"""What a data loader makes of sequences: the longest batch (memory), the mean one (time), and how much of it is padding.

Names are those of transformers' Trainer and TRL's SFTConfig (transformers 5.23, trl 0.25): padding as in DataCollatorWithPadding
and `padding_free`, `packing` with `packing_strategy`, `group_by_length`.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tuneplan.planner.data.lengths import Lengths
from tuneplan.planner.errors import InputError, UnknownNameError

PADDINGS = ("longest", "max_length", "none")
PACKINGS = ("bfd", "wrapped")
SEED = 0
MOST_SIMULATED = 500_000
MEGABATCH = 50
"""`LengthGroupedSampler` sorts within 50 batches (transformers 5.23, trainer_pt_utils.py, get_length_grouped_indices)."""


@dataclass(frozen=True)
class Batches:
    """A data set under a way of batching it.

    Attributes:
        lengths: as they are in the data.
        max_length: longer sequences are cut; packed rows are so long.
        padding: "longest" of a batch, "max_length", or "none" (padding-free: sequences end to end, attention by FlashAttention).
        packing: "" for none, "bfd" (best fit decreasing) or "wrapped" (concatenated and cut).
        group_by_length: batches of sequences of about the same length.
        pad_to_multiple_of: padded lengths are rounded up to it.
    """

    lengths: Lengths
    max_length: int
    padding: str = "longest"
    packing: str = ""
    group_by_length: bool = False
    pad_to_multiple_of: int = 1
    _means: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self) -> None:
        """Raise InputError for words that are not known or do not go together."""
        if self.padding not in PADDINGS:
            raise UnknownNameError("padding", self.padding, PADDINGS, "plan estimate --help")
        if self.packing and self.packing not in PACKINGS:
            raise UnknownNameError("packing-strategy", self.packing, PACKINGS, "plan estimate --help")
        if self.packing and self.group_by_length:
            raise InputError(
                "--packing fills rows to one length, so --group-by-length has nothing to group; leave one of them out"
            )
        if self.padding == "none" and self.group_by_length:
            raise InputError("--padding none pads nothing, so --group-by-length saves nothing; leave one of them out")
        if not 1 <= self.pad_to_multiple_of <= 4096:
            raise InputError(f"pad-to-multiple-of {self.pad_to_multiple_of} is no multiple to pad to; use such as 8")

    @cached_property
    def cut(self) -> Lengths:
        """The lengths after truncation. `wrapped` cuts nothing off: it goes on in the next row."""
        return self.lengths if self.packing == "wrapped" else self.lengths.cut(self.max_length)

    @cached_property
    def rows(self) -> int:
        """Rows of an epoch: sequences, or packs."""
        if self.packing == "wrapped":
            return max(1, -(-self.cut.total // self.max_length))
        return len(best_fit_decreasing(self.cut, self.max_length)) if self.packing else self.cut.sequences

    @property
    def tokens(self) -> int:
        """Tokens of an epoch that are no padding."""
        return self.cut.total

    @property
    def padded(self) -> bool:
        """Whether batches have padding, so that attention gets a mask."""
        return not self.packing and self.padding != "none" and (len(self.cut.tokens) > 1 or self.padding == "max_length")

    def longest_length(self, micro_batch_size: int) -> int:
        """Tokens of a row of the longest batch that can come. Padding-free: of the longest sequences together, as a mean."""
        if self.packing or self.padding == "max_length":
            return self._rounded(self.max_length)
        if self.padding == "longest":
            return self._rounded(int(self.cut.tokens[-1]))
        together = min(micro_batch_size, self.cut.sequences)
        return -(-self._longest_together(together) // together)

    def mean_length(self, micro_batch_size: int) -> float:
        """Tokens of a row of a batch, padding included, in the mean of an epoch."""
        if micro_batch_size not in self._means:
            self._means[micro_batch_size] = self._mean(micro_batch_size)
        return self._means[micro_batch_size]

    @property
    def exact(self) -> bool:
        """Whether the mean is a formula; grouping by length is simulated."""
        return not self.group_by_length

    def padding_share(self, micro_batch_size: int) -> float:
        """Padding over all tokens of an epoch."""
        return max(0.0, 1 - self.tokens / (self.rows * self.mean_length(micro_batch_size)))

    def _mean(self, micro_batch_size: int) -> float:
        if self.packing == "wrapped" or (not self.packing and self.padding == "max_length"):
            return float(self._rounded(self.max_length))
        if self.packing or self.padding == "none":
            return self.tokens / self.rows
        if self.group_by_length:
            return self._grouped(micro_batch_size)
        return expected_longest(self.cut, micro_batch_size, self.pad_to_multiple_of)

    def _grouped(self, micro_batch_size: int) -> float:
        """One epoch of LengthGroupedSampler, seeded; of a sample where the data are many."""
        draw = np.random.default_rng(SEED)
        count = self.cut.sequences
        lengths = np.repeat(self.cut.tokens, self.cut.counts) if count <= MOST_SIMULATED else None
        if lengths is None:
            lengths = draw.choice(self.cut.tokens, MOST_SIMULATED, p=self.cut.counts / count)
        lengths = draw.permutation(lengths)
        mega = min(len(lengths) // (micro_batch_size * 4), MEGABATCH) or 1
        size = mega * micro_batch_size
        padded = whole = 0.0
        for start in range(0, len(lengths), size):
            ordered = np.sort(lengths[start : start + size])[::-1]
            firsts = ordered[::micro_batch_size]
            sizes = np.full(len(firsts), micro_batch_size)
            sizes[-1] = len(ordered) - micro_batch_size * (len(firsts) - 1)
            padded += float((self._round_all(firsts) * sizes).sum())
            whole += len(ordered)
        return padded / whole

    def _longest_together(self, count: int) -> int:
        total, left = 0, count
        for tokens, number in zip(self.cut.tokens[::-1], self.cut.counts[::-1], strict=True):
            taken = min(int(number), left)
            total += taken * int(tokens)
            left -= taken
        return total

    def _rounded(self, length: int) -> int:
        return -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of

    def _round_all(self, lengths: "np.ndarray") -> "np.ndarray":
        rounded: np.ndarray = -(-lengths // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return rounded


def expected_longest(lengths: Lengths, batch: int, multiple: int = 1) -> float:
    """Mean of the longest of `batch` sequences drawn without replacement, rounded up to a multiple.

    Exact: of N sequences, n of at most L tokens, all of a batch are with a chance of C(n, B) / C(N, B).
    """
    count = lengths.sequences
    batch = min(batch, count)
    padded = -(-lengths.tokens // multiple) * multiple
    below = np.cumsum(lengths.counts)
    whole = _log_choose(count, batch)
    chances = np.array([math.exp(_log_choose(int(n), batch) - whole) if n >= batch else 0.0 for n in below])
    return float((padded * np.diff(chances, prepend=0.0)).sum())


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def best_fit_decreasing(lengths: Lengths, capacity: int) -> list[int]:
    """Tokens in each pack: the longest sequences first, each into the fullest pack that still takes it (trl 0.25, `bfd`)."""
    room: dict[int, int] = {}  # packs by the room that they have left
    for tokens, count in zip(lengths.tokens[::-1], lengths.counts[::-1], strict=True):
        size, left = int(tokens), int(count)
        for free in sorted(space for space in room if space >= size):
            if not left:
                break
            each = free // size
            full, part = divmod(min(left, room[free] * each), each)
            _move(room, free, free - each * size, full)
            if part:
                _move(room, free, free - part * size, 1)
            left -= full * each + part
        each = capacity // size
        full, part = divmod(left, each)
        _move(room, None, capacity - each * size, full)
        if part:
            _move(room, None, capacity - part * size, 1)
    return [capacity - free for free, count in room.items() for _ in range(count)]


def _move(room: dict[int, int], old: int | None, new: int, packs: int) -> None:
    if not packs:
        return
    if old is not None:
        room[old] -= packs
        if not room[old]:
            del room[old]
    room[new] = room.get(new, 0) + packs

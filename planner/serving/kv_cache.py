"""The KV cache: what each layer of a model keeps for each token or each sequence, and what a server's blocks make of it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tuneplan.planner.errors import InputError, UnknownNameError

BLOCK_TOKENS = 16
"""Tokens of a block: vLLM's default on CUDA (Kwon et al. 2023, PagedAttention, section 7.2, finds 16 to 128 best)."""


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """How cached values are stored: `bits` each, and `extra_bytes` for each token, head and side (keys or values)."""

    name: str
    bits: int
    extra_bytes: int
    source: str


CACHE_FORMATS = {
    f.name: f
    for f in (
        CacheFormat("bf16", 16, 0, "the model's dtype"),
        CacheFormat("fp16", 16, 0, "the model's dtype"),
        CacheFormat("fp8", 8, 0, "vLLM kv_cache_dtype=fp8: scales for a tensor or a head, not for a token"),
        CacheFormat("int8", 8, 4, "LMDeploy kv quant_policy=8: asymmetric, a 16-bit scale and zero for each token and head"),
        CacheFormat("int4", 4, 4, "LMDeploy kv quant_policy=4: asymmetric, a 16-bit scale and zero for each token and head"),
    )
}


def find_cache_format(name: str) -> CacheFormat:
    """The format of a name. Raises UnknownNameError."""
    if name.lower() not in CACHE_FORMATS:
        raise UnknownNameError("KV cache dtype", name, CACHE_FORMATS, "plan serve-memory --help")
    return CACHE_FORMATS[name.lower()]


@dataclass(frozen=True, slots=True)
class KvLayer:
    """What one layer keeps.

    Attributes:
        kind: "full", "sliding", "chunked", "latent" (MLA) or "state" (linear attention, state space models).
        heads: key/value heads; 1 for a latent.
        key_width: values of a key, or of the latent with its rotary part.
        value_width: values of a value; 0 for a latent, which is both.
        window: tokens that a sliding or chunked layer looks back; 0 for all.
        state_bytes: bytes for each sequence, whatever its length.
        index_bytes: bytes for each token of a sparse attention's index.
    """

    kind: str
    heads: int = 0
    key_width: int = 0
    value_width: int = 0
    window: int = 0
    state_bytes: int = 0
    index_bytes: int = 0

    def token_bytes(self, format: CacheFormat, tensor_parallel: int, alignment: int) -> int:
        """Bytes of one token on one GPU.

        Heads are split over the GPUs of tensor parallelism, and repeated where there are more GPUs than heads; a latent
        is on every GPU (vLLM's `get_num_kv_heads`, MLA's single latent head).
        """
        heads = max(1, self.heads // tensor_parallel) if self.heads else 0
        sides = 1 if self.kind == "latent" else 2
        width = self.key_width + self.value_width
        size = heads * (-(-width * format.bits // 8) + sides * format.extra_bytes)
        return -(-size // alignment) * alignment + self.index_bytes if size else self.index_bytes


@dataclass(frozen=True, slots=True)
class KvCache:
    """The cache of a model: its layers, and what was noted while reading them.

    Attributes:
        groups: each distinct layer, and how many there are; layers that keep nothing are absent.
        notes: what the reader had to assume.
    """

    groups: tuple[tuple[KvLayer, int], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, layers: Iterable[KvLayer], notes: tuple[str, ...] = ()) -> "KvCache":
        """From layers in their order."""
        return cls(tuple(Counter(layer for layer in layers if layer.kind != "none").items()), notes)

    @property
    def windowed(self) -> bool:
        """Whether some layers forget what lies behind a window."""
        return any(layer.window for layer, _ in self.groups)

    def check_heads(self, tensor_parallel: int) -> None:
        """Raise InputError where heads can neither be split nor repeated evenly over so many GPUs."""
        for layer, _ in self.groups:
            more, fewer = max(layer.heads, tensor_parallel), min(layer.heads, tensor_parallel)
            if layer.heads > 1 and more % fewer:
                raise InputError(
                    f"tensor-parallel {tensor_parallel} does not split {layer.heads} key/value heads evenly; use a divisor or a "
                    f"multiple of {layer.heads}"
                )

    def bytes_per_token(self, format: CacheFormat, tensor_parallel: int = 1, alignment: int = 1) -> int:
        """Bytes that one more token takes on one GPU while no window is full."""
        return sum(count * layer.token_bytes(format, tensor_parallel, alignment) for layer, count in self.groups)

    def sequence_bytes(
        self,
        tokens: int,
        format: CacheFormat,
        tensor_parallel: int = 1,
        block: int = BLOCK_TOKENS,
        alignment: int = 1,
    ) -> int:
        """Bytes of a sequence on one GPU: whole blocks, windows that free what lies behind them, and states.

        A window of w tokens holds at most the blocks that w tokens can touch, ceil((w - 1) / block) + 1. That is what
        vLLM's hybrid KV cache manager keeps while decoding; a prefill of many tokens at once holds more for a moment.

        Not counted: sharing of common prefixes, which needs less; padding between groups of layers, which needs more.
        """
        total = 0
        for layer, count in self.groups:
            blocks = -(-tokens // block)
            if layer.window:
                blocks = min(blocks, -(-(layer.window - 1) // block) + 1)
            total += count * blocks * block * layer.token_bytes(format, tensor_parallel, alignment)
            total += count * -(-layer.state_bytes // tensor_parallel)
        return total

    @property
    def state_bytes(self) -> int:
        """Bytes of all states of one sequence, over all GPUs."""
        return sum(count * layer.state_bytes for layer, count in self.groups)

    def summary(self) -> dict[str, int]:
        """Number of layers of each kind."""
        kinds: dict[str, int] = {}
        for layer, count in self.groups:
            kinds[layer.kind] = kinds.get(layer.kind, 0) + count
        return kinds


def tokens_that_fit(
    free_bytes: int, cache: KvCache, format: CacheFormat, tensor_parallel: int, block: int, alignment: int
) -> int:
    """Tokens in whole blocks that so many bytes hold, as a server prints them at its start: every layer keeps every token."""
    token = cache.bytes_per_token(format, tensor_parallel, alignment)
    return max(0, free_bytes // (token * block)) * block if token else 0

"""The cache of a model: exact bytes, blocks, windows, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.serving.kv_cache import CACHE_FORMATS, KvCache, KvLayer, find_cache_format, tokens_that_fit

BF16 = CACHE_FORMATS["bf16"]
LLAMA = KvCache.of([KvLayer("full", 8, 128, 128)] * 32)
FORMATS = st.sampled_from(list(CACHE_FORMATS.values()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", 32 * 8 * 256 * 2),
        ("fp16", 32 * 8 * 256 * 2),
        ("fp8", 32 * 8 * 256),
        ("int8", 32 * 8 * (256 + 2 * 4)),
        ("int4", 32 * 8 * (128 + 2 * 4)),
    ],
)
def test_bytes_of_a_token_by_dtype(name: str, expected: int) -> None:
    """Keys and values of all heads and layers; integers bring a scale and a zero for each token, head and side."""
    assert expected == LLAMA.bytes_per_token(find_cache_format(name))


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(32, 2 * 32 * 128 * 2), (8, 2 * 8 * 128 * 2), (1, 2 * 128 * 2)],
    ids=["multi-head", "grouped", "multi-query"],
)
def test_bytes_of_a_token_by_heads(heads: int, expected: int) -> None:
    """Only key and value heads count."""
    assert expected == KvCache.of([KvLayer("full", heads, 128, 128)]).bytes_per_token(BF16)


def test_tensor_parallelism_splits_heads_and_repeats_the_last() -> None:
    """Eight heads over 1, 2, 8 and 16 GPUs; a latent is on every GPU."""
    assert [131072, 65536, 16384, 16384] == [LLAMA.bytes_per_token(BF16, ways) for ways in (1, 2, 8, 16)]
    latent = KvCache.of([KvLayer("latent", 1, 576)])
    assert [1152, 1152] == [latent.bytes_per_token(BF16, ways) for ways in (1, 8)]
    assert 1280 == latent.bytes_per_token(BF16, 8, alignment=256)
    with pytest.raises(InputError, match="multiple of 8"):
        LLAMA.check_heads(3)


def test_windows_keep_the_blocks_that_they_can_touch() -> None:
    """A window of 128 tokens touches at most 9 blocks of 16; short sequences keep what they have."""
    sliding = KvCache.of([KvLayer("sliding", 8, 64, 64, window=128)])
    token = 8 * 128 * 2
    assert [16 * token, 112 * token, 144 * token, 144 * token] == [
        sliding.sequence_bytes(tokens, BF16) for tokens in (1, 100, 200, 100_000)
    ]


def test_states_do_not_grow() -> None:
    """A state costs the same for one token and for a million."""
    state = KvCache.of([KvLayer("state", state_bytes=1000)] * 3)
    assert [3000, 3000] == [state.sequence_bytes(tokens, BF16) for tokens in (1, 10**6)]
    assert 0 == state.bytes_per_token(BF16)
    assert 0 == tokens_that_fit(10**9, state, BF16, 1, 16, 1)


def test_tokens_come_in_whole_blocks() -> None:
    """What is left of a block holds nothing."""
    size = 131072 * 16
    assert [0, 16, 16, 32, 0] == [tokens_that_fit(n, LLAMA, BF16, 1, 16, 1) for n in (size - 1, size, 2 * size - 1, 2 * size, -5)]


def test_unknown_dtypes_get_close_matches() -> None:
    """`fp6` is not there, `fp8` is."""
    with pytest.raises(UnknownNameError, match="fp8"):
        find_cache_format("fp6")


@given(st.integers(1, 10**6), st.integers(0, 10**5), FORMATS, st.sampled_from([1, 2, 4, 8]), st.integers(0, 4096))
def test_laws(tokens: int, more: int, cache_format: object, ways: int, window: int) -> None:
    """Bytes grow with tokens, shrink with GPUs, and a window never needs more than full attention."""
    assert isinstance(cache_format, type(BF16))
    full = KvCache.of([KvLayer("full", 8, 128, 128)] * 4)
    limited = KvCache.of([KvLayer("sliding", 8, 128, 128, window)] * 4)
    size = full.sequence_bytes(tokens, cache_format, ways)
    assert size <= full.sequence_bytes(tokens + more, cache_format, ways)
    assert size <= full.sequence_bytes(tokens, cache_format, 1)
    assert limited.sequence_bytes(tokens, cache_format, ways) <= size
    assert size >= tokens * full.bytes_per_token(cache_format, ways)
    assert size == full.sequence_bytes(tokens, cache_format, ways, block=1) or tokens % 16

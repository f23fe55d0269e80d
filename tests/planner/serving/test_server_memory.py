"""Device memory of a server: the sum, what is taken first, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.serving.kv_cache import CACHE_FORMATS, KvCache, KvLayer
from tuneplan.planner.serving.server_memory import (
    SAMPLER_BYTES,
    Server,
    Shape,
    activation_bytes,
    capacity_tokens,
    concurrent_requests,
    server_memory,
)
from tuneplan.planner.serving.weight_formats import sized_weights
from tuneplan.planner.units import GIB

SHAPE = Shape(4096, 14336, 128256)
CACHE = KvCache.of([KvLayer("full", 8, 128, 128)] * 32)
BF16 = CACHE_FORMATS["bf16"]
GPU = find_gpu("a100-80g")


def test_components_are_the_device_bytes() -> None:
    """Nothing is counted twice or left out."""
    memory = server_memory(GPU, GPU.memory_bytes, sized_weights(16 * GIB, 1, 16), SHAPE, Server(), adapter_bytes=GIB)
    assert memory.device_bytes == sum(memory.components().values())
    assert memory.budget == memory.device_bytes - memory.context - memory.graphs


def test_activations_are_the_larger_of_prefill_and_sampling() -> None:
    """Long prefills are larger than sampling for 256 sequences; a single sequence samples next to nothing."""
    assert int(256 * 128256 * SAMPLER_BYTES.value) == activation_bytes(SHAPE, Server())
    assert 2 * 32768 * (2 * 4096 + 3 * 14336) == activation_bytes(SHAPE, Server(max_batched_tokens=32768))
    assert 2 * 2048 * (2 * 4096 + 3 * 14336) == activation_bytes(SHAPE, Server(max_sequences=1))


def test_what_does_not_fit_is_negative_and_holds_nothing() -> None:
    """A model larger than the card leaves no cache, no tokens and no requests."""
    memory = server_memory(GPU, GPU.memory_bytes, sized_weights(100 * GIB, 1, 16), SHAPE, Server())
    assert memory.kv_cache < 0
    assert 0 == memory.components()["kv_cache"]
    assert 0 == capacity_tokens(memory, CACHE, BF16, Server())
    assert 0 == concurrent_requests(memory, CACHE, BF16, Server(), 100)


@pytest.mark.parametrize(
    "server",
    [
        Server(utilisation=0),
        Server(utilisation=1.1),
        Server(utilisation=float("nan")),
        Server(tensor_parallel=0),
        Server(block=0),
        Server(max_sequences=0),
        Server(max_batched_tokens=0),
        Server(alignment=0),
    ],
)
def test_impossible_servers(server: Server) -> None:
    """No share, no GPUs, no block, no sequences."""
    with pytest.raises(InputError, match="use"):
        server.check()


@given(st.integers(1, 60), st.floats(0.3, 1), st.integers(1, 100_000))
def test_laws(weights: int, utilisation: float, tokens: int) -> None:
    """More weights leave less cache; longer requests fit less often; a larger share holds more."""
    server = Server(utilisation=utilisation)

    def free(size: int, share: float = utilisation) -> int:
        return server_memory(GPU, GPU.memory_bytes, sized_weights(size * GIB, 1, 16), SHAPE, Server(utilisation=share)).kv_cache

    assert free(weights + 1) == free(weights) - GIB
    assert free(weights, min(1.0, utilisation + 0.01)) >= free(weights)
    memory = server_memory(GPU, GPU.memory_bytes, sized_weights(weights * GIB, 1, 16), SHAPE, server)
    few, many = (concurrent_requests(memory, CACHE, BF16, server, n) for n in (tokens * 2, tokens))
    assert few <= many

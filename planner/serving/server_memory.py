"""Device memory of one GPU of a paged server: what the weights leave for the KV cache.

Mirrors the accounting of vLLM: of `gpu_memory_utilization` x total memory, weights, memory outside torch and the activation
peak of a profiling run are taken, and the rest becomes KV cache. The CUDA context and the CUDA graphs lie outside that
budget (vllm/worker/worker.py `determine_num_available_blocks`, 0.6 to 0.8; the printed sums of such logs agree within
0.06 GiB).
"""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.device_memory import runtime_of
from tuneplan.planner.errors import InputError
from tuneplan.planner.serving.kv_cache import BLOCK_TOKENS, CacheFormat, KvCache, tokens_that_fit
from tuneplan.planner.serving.weight_formats import ServedWeights
from tuneplan.planner.timing.constants import Constant
from tuneplan.planner.units import MIB

UTILISATION = 0.9
"""vLLM's default `gpu_memory_utilization`."""
MAX_SEQUENCES = 256
"""vLLM's default `max_num_seqs` of the 0.6 to 0.8 servers."""
MAX_BATCHED_TOKENS = 2048
"""vLLM's DEFAULT_MAX_NUM_BATCHED_TOKENS; a server on a large card takes 8192."""

SAMPLER_BYTES = Constant(
    38.6,
    "calibrated: bytes for each logit of 256 sequences while the profiling run samples with top-k and top-p (fp32 logits, "
    "sorted values, 64-bit indices, probabilities, sums); 1.40 GiB printed for DeepSeek-R1-Distill-Qwen-7B on a V100, vLLM "
    "0.7.1. Rows that it was not fitted to give 38.4 to 40.9; version 0.6 takes about 30",
)
OUTSIDE_BYTES = Constant(
    100 * MIB,
    "calibrated: vLLM's logs print 0.01 to 0.28 GiB outside torch on one NVIDIA GPU, median of seven 0.09",
)
GRAPH_BYTES = Constant(
    819 * MIB,
    "calibrated: 0.8 GiB of CUDA graphs printed for a 7B model (vLLM 0.7.1); other logs print 0.47 and 1.92",
)


@dataclass(frozen=True, slots=True)
class Server:
    """How a model is served.

    Attributes:
        utilisation: share of the card that the server may fill.
        tensor_parallel: GPUs that share the model.
        block: tokens of a block of the cache.
        max_sequences: sequences of one step.
        max_batched_tokens: tokens of one forward.
        cuda_graphs: whether decoding is captured.
        alignment: bytes to which a token's share in a layer is rounded.
    """

    utilisation: float = UTILISATION
    tensor_parallel: int = 1
    block: int = BLOCK_TOKENS
    max_sequences: int = MAX_SEQUENCES
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    cuda_graphs: bool = True
    alignment: int = 1

    def check(self) -> None:
        """Raise InputError for values that make no sense."""
        if not 0 < self.utilisation <= 1:
            raise InputError(f"utilisation {self.utilisation} is not a share of memory; use a value such as 0.9")
        for name, value, most in (
            ("tensor-parallel", self.tensor_parallel, 64),
            ("block-size", self.block, 2**16),
            ("max-num-seqs", self.max_sequences, 2**20),
            ("max-batched-tokens", self.max_batched_tokens, 2**24),
            ("kv-alignment", self.alignment, 2**16),
        ):
            if not 1 <= value <= most:
                raise InputError(f"{name} {value} cannot be; use 1 to {most}")


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths that activations depend on; 0 where they are not known.

    Attributes:
        hidden_size: of the residual stream.
        intermediate_size: of the MLP.
        vocab_size: of the head.
    """

    hidden_size: int
    intermediate_size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """One GPU of a running server, bytes.

    Attributes:
        card: what a program can reach.
        budget: the share that the server may fill.
        weights: as deployed.
        adapters: resident beside them.
        activations: the larger of a prefill's and of sampling's.
        outside: outside torch: libraries after the context, and NCCL.
        kv_cache: what is left; negative where the rest does not fit.
        context: of the CUDA driver, outside the budget.
        graphs: captured CUDA graphs, outside the budget.
    """

    card: int
    budget: int
    weights: int
    adapters: int
    activations: int
    outside: int
    kv_cache: int
    context: int
    graphs: int

    @property
    def device_bytes(self) -> int:
        """All that the driver sees."""
        return self.weights + self.adapters + self.activations + self.outside + max(0, self.kv_cache) + self.context + self.graphs

    def components(self) -> dict[str, int]:
        """Parts that sum to `device_bytes`."""
        return {
            "weights": self.weights,
            "adapters": self.adapters,
            "kv_cache": max(0, self.kv_cache),
            "activations": self.activations,
            "cuda_graphs": self.graphs,
            "runtime": self.outside + self.context,
        }


def activation_bytes(shape: Shape, server: Server) -> int:
    """Peak of a forward's activations: a prefill of `max_batched_tokens`, or sampling for `max_sequences`.

    A prefill holds residual stream, a normed copy, and gate, up and product of the MLP, 16 bits each (the MLP split over
    tensor parallel GPUs). Not counted: experts' routing buffers, images, prompt log-probabilities.
    """
    forward = 2 * server.max_batched_tokens * (2 * shape.hidden_size + 3 * -(-shape.intermediate_size // server.tensor_parallel))
    return max(forward, int(server.max_sequences * shape.vocab_size * SAMPLER_BYTES.value))


def server_memory(
    gpu: Gpu | None,
    card_bytes: int,
    weights: ServedWeights,
    shape: Shape,
    server: Server,
    adapter_bytes: int = 0,
) -> ServerMemory:
    """What one GPU holds. `gpu` may be None where only an amount of memory is known. Raises InputError as `Server.check`."""
    server.check()
    runtime = runtime_of(gpu, server.tensor_parallel, quantized=False)
    budget = int(card_bytes * server.utilisation)
    outside = int(OUTSIDE_BYTES.value) + runtime.nccl_bytes
    activations = activation_bytes(shape, server)
    free = budget - weights.gpu_bytes - adapter_bytes - activations - outside
    graphs = int(GRAPH_BYTES.value) if server.cuda_graphs else 0
    return ServerMemory(
        card_bytes, budget, weights.gpu_bytes, adapter_bytes, activations, outside, free, runtime.context_bytes, graphs
    )


def capacity_tokens(memory: ServerMemory, cache: KvCache, format: CacheFormat, server: Server) -> int:
    """Tokens that the cache holds, in whole blocks. Raises InputError as `KvCache.check_heads`."""
    cache.check_heads(server.tensor_parallel)
    return tokens_that_fit(memory.kv_cache, cache, format, server.tensor_parallel, server.block, server.alignment)


def concurrent_requests(memory: ServerMemory, cache: KvCache, format: CacheFormat, server: Server, tokens: int) -> int:
    """Requests of so many tokens, prompt and answer together, that the cache holds at once."""
    one = cache.sequence_bytes(tokens, format, server.tensor_parallel, server.block, server.alignment)
    return max(0, memory.kv_cache // one) if one else 0

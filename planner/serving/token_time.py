"""Time to read a prompt and to make a token, from the roofline.

Pope et al. 2022, Efficiently Scaling Transformer Inference, section 2: a step reads all weights and the caches of its
sequences, and computes 2 FLOPs a weight and token. The card's rates are those of `timing/roofline.py`. Everything is
modelled; not counted: scheduling in Python, sampling, tokenizing, the network to the user.
"""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.serving.adapters import AdapterLoad
from tuneplan.planner.serving.kv_cache import CacheFormat, KvCache
from tuneplan.planner.serving.weight_formats import ServedWeights, WeightFormat
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.collectives import all_reduce_bytes, gpu_link
from tuneplan.planner.timing.roofline import Rates, gpu_rates
from tuneplan.planner.timing.work import DEQUANTIZE_MOVED

KERNELS_A_LAYER = 12
"""Kernels of a fused decoder layer: 2 norms, 4 products, rotary, cache write, attention (2), activation, and one to spare."""
MESSAGE_SECONDS = constants.Constant(10e-6, "assumed: time of a small all-reduce beyond its bytes, inside one machine")


@dataclass(frozen=True, slots=True)
class Engine:
    """A model on given cards, ready to be timed.

    Attributes:
        weights: as one GPU holds them.
        format: of the linear layers.
        layers: decoder layers.
        hidden_size: of the residual stream.
        attention_width: query heads x head size, for the FLOPs of attention.
        cache: of the model.
        cache_format: in which it is kept.
        gpu: the card.
        tensor_parallel: cards.
        rates: what one reaches; its `reason` says why nothing can be timed.
        interconnect: of the instance, or None.
    """

    weights: ServedWeights
    format: WeightFormat
    layers: int
    hidden_size: int
    attention_width: int
    cache: KvCache
    cache_format: CacheFormat
    gpu: Gpu
    tensor_parallel: int
    rates: Rates
    interconnect: str | None = None

    @property
    def dtype(self) -> str:
        """Of the products: 16 bits for every format, since no rate for 8-bit products has a source here."""
        return next(iter(self.rates.matmul))


def compute_dtype(gpu: Gpu) -> str:
    """bf16, or fp16 on cards without it."""
    capability = gpu.compute_capability
    return "fp16" if capability is not None and capability < (8, 0) else "bf16"


def rates_of(gpu: Gpu) -> Rates:
    """The card's rates for 16-bit products."""
    return gpu_rates(gpu, {compute_dtype(gpu)})


def prefill_seconds(engine: Engine, tokens: int, adapter: AdapterLoad | None = None) -> float:
    """Seconds to read a prompt of so many tokens, alone on the engine.

    FLOPs are 2 x weights x tokens and 2 x width x tokens^2 a layer for causal attention; each product also reads its
    weights once.
    """
    ways = engine.tensor_parallel
    linear = 2 * engine.weights.linear_parameters * tokens / ways
    attention = 2 * engine.attention_width * tokens * tokens * engine.layers / ways
    rates = engine.rates
    compute = linear / rates.matmul[engine.dtype] + attention / rates.attention[engine.dtype]
    seconds = max(compute, engine.weights.read_bytes / rates.memory) + _unpacked(engine)
    return seconds + _fixed(engine, tokens) + (adapter.prefill_seconds(rates, engine.dtype, tokens, ways) if adapter else 0.0)


def decode_seconds(engine: Engine, batch: int, context: int, adapter: AdapterLoad | None = None) -> float:
    """Seconds of a step that makes one token for each of `batch` sequences with `context` cached tokens each.

    Caches are read once, and states read and written.
    """
    ways, rates = engine.tensor_parallel, engine.rates
    linear = 2 * engine.weights.linear_parameters * batch / ways / rates.matmul[engine.dtype]
    products = max(linear, engine.weights.read_bytes / (rates.memory * engine.format.read_share))
    scores = 4 * engine.attention_width * context * engine.layers * batch / ways / rates.attention[engine.dtype]
    held = engine.cache.sequence_bytes(context, engine.cache_format, ways, block=1)
    caches = batch * (held + engine.cache.state_bytes // ways) / rates.memory
    seconds = products + max(scores, caches) + (_unpacked(engine) if batch > 1 else 0.0) + _fixed(engine, batch)
    return seconds + (adapter.decode_seconds(rates, engine.dtype, batch, ways) if adapter else 0.0)


def _unpacked(engine: Engine) -> float:
    """Time to dequantize every weight where the format's product cannot read packed weights.

    bitsandbytes has a fused kernel for one token at a time only (`gemv_4bit`); any more are dequantized first.
    """
    if engine.format.fused:
        return 0.0
    return engine.weights.linear_parameters * DEQUANTIZE_MOVED / engine.tensor_parallel / engine.rates.dequantize


def _fixed(engine: Engine, tokens: int) -> float:
    """Gaps between kernels, and two all-reduces a layer under tensor parallelism."""
    gaps = engine.layers * KERNELS_A_LAYER * constants.KERNEL_SECONDS.value
    if engine.tensor_parallel == 1:
        return gaps
    link = gpu_link(engine.gpu, engine.interconnect)
    sent = all_reduce_bytes(2 * tokens * engine.hidden_size, engine.tensor_parallel)
    return gaps + 2 * engine.layers * (sent / link.bytes_per_second + MESSAGE_SECONDS.value)


@dataclass(frozen=True, slots=True)
class Throughput:
    """A loaded engine.

    Attributes:
        batch: sequences that decode together.
        first_token_seconds: to read a prompt, alone.
        token_seconds: between two tokens of one answer, prefills of the others included.
        requests_per_second: at full load.
        tokens_per_second: of answers, at full load.
    """

    batch: int
    first_token_seconds: float
    token_seconds: float
    requests_per_second: float
    tokens_per_second: float


def throughput(engine: Engine, batch: int, prompt: int, output: int, adapter: AdapterLoad | None = None) -> Throughput:
    """A full engine in steady state, `batch` sequences at a time.

    A request costs its own prefill and its share of `output` decoding steps, so requests pass at
    1 / (prefill + output x step / batch); while it decodes, the prefills of others come between (`batch` of them for
    every `output` steps).
    """
    read = prefill_seconds(engine, prompt, adapter)
    step = decode_seconds(engine, batch, prompt + output // 2, adapter)
    each = read + output * step / batch
    return Throughput(batch, read, step + batch * read / output, 1 / each, output / each)

"""Adapters at inference: merged into the base, or separate and many over one base.

Chen et al. 2023, Punica (arXiv:2310.18547): one batched product gathers each request's own A and B. Sheng et al. 2023,
S-LoRA (arXiv:2311.03285): adapters live in host memory, those in use on the GPU, in pages shared with the KV cache. Zhou et
al. 2022, PetS (ATC 22): one frozen base, the small parameters of each task beside it.
"""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.inference import inference
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import build
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.serving.weight_formats import INFERENCE, PLAIN, ServedWeights, WeightFormat
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.collectives import copy_seconds
from tuneplan.planner.timing.roofline import Rates

ADAPTER_BYTES = 2
"""Bytes of an adapter's weight as served: servers cast adapters to the model's 16-bit dtype (vLLM `lora_dtype=auto`)."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter of a model.

    Attributes:
        method: as `plan methods` names it.
        parameters: weights that take part in a forward.
        cached_bytes: keys and values of virtual tokens, which every tenant keeps in the cache.
        flops_per_token: that it adds to each token when it is separate.
        launches: kernels that it adds to each step.
        mergeable: whether it folds into the base weights.
    """

    method: str
    parameters: int
    cached_bytes: int
    flops_per_token: int
    launches: int
    mergeable: bool

    @property
    def nbytes(self) -> int:
        """Bytes as served: weights in 16 bits, and cached virtual tokens."""
        return self.parameters * ADAPTER_BYTES + self.cached_bytes


def adapter_of(spec: ModelSpec, method: str) -> Adapter:
    """The adapter that a method trains. Raises InputError for a method without separate weights.

    FLOPs and kernels are those of `methods/inference.py`; low-rank adapters take two kernels a module, as servers batch them
    (Punica's shrink and expand).
    """
    parsed = parse(method)
    parts = tuple(part for p in parsed.parts if (part := p.at_inference()) is not None)
    found = inference(spec, parsed)
    weights = [p for p in build(spec, Method("served", parts), INFERENCE).parameters if p.adapter] if parts else []
    if not weights and not found.cached_bytes:
        raise InputError(f"{method!r} has no adapter to serve: it trains the base weights; use such as lora(r=16)")
    modules = {(p.name.split(".lora_", maxsplit=1)[0], p.count) for p in weights}
    low_rank = all(".lora_" in p.name for p in weights)
    return Adapter(
        parsed.name,
        sum(p.numel for p in weights),
        found.cached_bytes,
        found.flops,
        2 * sum(count for _, count in modules) if low_rank else found.launches,
        all(part.mergeable for part in parsed.parts if part.label != "quantized_base"),
    )


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """Separate adapters in a batch.

    Attributes:
        adapter: one of them; all are taken as alike.
        distinct: how many different ones a batch asks for, at most.
    """

    adapter: Adapter
    distinct: int

    def decode_seconds(self, rates: Rates, dtype: str, batch: int, ways: int) -> float:
        """What a decoding step takes longer: each distinct adapter is read once.

        With tensor parallelism adapters are split like the base (S-LoRA, section 6).
        """
        used = min(self.distinct, batch)
        read = used * self.adapter.nbytes / ways / rates.memory
        compute = batch * self.adapter.flops_per_token / ways / rates.matmul[dtype]
        return max(read, compute) + self.adapter.launches * constants.KERNEL_SECONDS.value

    def prefill_seconds(self, rates: Rates, dtype: str, tokens: int, ways: int) -> float:
        """What reading one prompt takes longer."""
        compute = tokens * self.adapter.flops_per_token / ways / rates.matmul[dtype]
        read = self.adapter.nbytes / ways / rates.memory
        return max(read, compute) + self.adapter.launches * constants.KERNEL_SECONDS.value


@dataclass(frozen=True, slots=True)
class Merging:
    """What it takes to fold an adapter into the base.

    Attributes:
        possible: whether the method can.
        exact: whether the merged model is the trained one but for rounding in 16 bits.
        needs_bytes: device or host bytes while merging, beyond the stored base.
        result_bytes: of a merged model.
        note: what to know.
    """

    possible: bool
    exact: bool
    needs_bytes: int
    result_bytes: int
    note: str


def merging(adapter: Adapter, weights: ServedWeights, format: WeightFormat) -> Merging:
    """Merging into a base as deployed.

    A 16-bit base takes a product of B and A as large as the largest matrix. A quantized base must be dequantized, matrix by
    matrix, and quantized again, which rounds what was trained (peft 0.21 tuners/lora/bnb.py `merge` warns of it); or one
    merges into the 16-bit base, which takes all of it.
    """
    if not adapter.mergeable:
        return Merging(False, False, 0, 0, f"{adapter.method} does not fold into the base weights")
    matrix = 2 * weights.largest_layer
    if format.name in PLAIN:
        return Merging(True, True, matrix, weights.total_bytes, "no cost at inference; one model for each adapter")
    whole = 2 * weights.parameters
    return Merging(
        True,
        False,
        2 * matrix,
        weights.total_bytes,
        f"dequantized matrix by matrix and quantized again, which rounds what was trained; merging into 16 bits needs {whole} "
        "bytes and gives a model of that size",
    )


@dataclass(frozen=True, slots=True)
class Tenancy:
    """How many adapters a server has room for.

    Attributes:
        device_adapters: that the GPU can hold beside the cache that its sequences need.
        host_adapters: that host memory holds; None where its size is not known.
        load_seconds: to bring one from host to device memory.
        tenants: adapters that can be served: those in host memory, else those on the device.
    """

    device_adapters: int
    host_adapters: int | None
    load_seconds: float | None
    tenants: int


def tenancy(adapter: Adapter, free_bytes: int, host_bytes: int | None, gpu: Gpu | None, ways: int = 1) -> Tenancy:
    """Adapters that fit.

    Args:
        adapter: one of them.
        free_bytes: of each GPU, beside weights and the cache that must stay.
        host_bytes: host memory for adapters, or None.
        gpu: the card, for the time of a copy.
        ways: GPUs that split each adapter.

    Not counted: fragmentation by different ranks, which S-LoRA's unified pages avoid.
    """
    share = -(-adapter.nbytes // ways)
    device = max(0, free_bytes) // share
    host = None if host_bytes is None else host_bytes // adapter.nbytes
    seconds = None if gpu is None else copy_seconds(share, gpu)
    return Tenancy(device, host, seconds, max(device, host or 0))


@dataclass(frozen=True, slots=True)
class Storage:
    """Full models against one base and its adapters, bytes on disk."""

    models: int
    full_bytes: int
    base_and_adapters_bytes: int
    adapters_in_the_same_space: int


def storage(full_model_bytes: int, base_bytes: int, adapter_bytes: int, models: int) -> Storage:
    """The reference study's count: the space of `models` full checkpoints, and how many adapters of a base fit into it.

    The base of the adapters may be another model than that of the full checkpoints: the study sets 20 full 7B models
    against one 70B with its adapters.
    """
    if models < 1:
        raise InputError(f"{models} models are none to store; use 1 or more")
    space = models * full_model_bytes
    return Storage(models, space, base_bytes + models * adapter_bytes, max(0, space - base_bytes) // adapter_bytes)

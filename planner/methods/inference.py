"""What a method costs when the trained model answers: merged into the base, or kept beside it.

Nothing is trained: the forward of one token, as a decoding step runs it, is recorded with and without the parts that stay in
it, and the difference is the overhead. Keys and values of a prefix lie in the cache of a request and are read for every token.
Not counted: the cache of the tokens before, which is the same with and without; the kernels of a serving engine.
"""

from dataclasses import dataclass

from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.methods.formats import BLOCK_FORMATS
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import has_flash
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.timing.work import Work, network_work
from tuneplan.planner.training.settings import Settings

BASE = "quantized_base"
"""The part that is the base itself, not something beside it."""
RESTORING_KERNELS = 2


@dataclass(frozen=True, slots=True)
class Inference:
    """One token through the model, batch 1.

    Attributes:
        merged: the work where everything that can be folded into the base is; None if a part cannot be.
        unmerged: the work with every part beside the base.
        base: the work of the base alone.
        flops: FLOPs of a token that the parts add when they are not merged.
        moved_bytes: bytes that they read and write more for a token.
        launches: kernels that they start more.
        weight_bytes: device bytes of the base as it is served unmerged, what the method keeps beside it included.
        adapter_bytes: of those, what the method brought.
        cached_tokens: virtual tokens in the cache of every request.
        cached_bytes: their keys and values.
        token_bytes: keys and values of one token of a request.
    """

    merged: Work | None
    unmerged: Work
    base: Work
    flops: int
    moved_bytes: int
    launches: int
    weight_bytes: int
    adapter_bytes: int
    cached_tokens: int
    cached_bytes: int
    token_bytes: int


def inference(spec: ModelSpec, method: Method, dtype: str = "bf16") -> Inference:
    """Work and bytes of a decoded token. Raises InputError where the method does not fit the model."""
    kernel = "flash" if has_flash(spec) else "sdpa"
    settings = Settings(micro_batch_size=1, seq_len=1, dtype=dtype, gradient_checkpointing="off", attention=kernel)
    parts = tuple([part for p in method.parts if (part := p.at_inference()) is not None])
    served = _network(spec, parts, settings)
    plain = _network(spec, tuple([p for p in parts if p.label == BASE]), settings)
    tokens = sum(part.cached_tokens() for part in method.parts)
    token_bytes = _cached_bytes(served, dtype)
    cached = tokens * token_bytes
    unmerged = network_work(served, settings).forward
    unmerged.moved = unmerged.moved + cached
    base = network_work(plain, settings).forward
    weights = sum(p.stored_bytes * p.count for p in served.parameters)
    return Inference(
        merged=base if method.mergeable else None,
        unmerged=unmerged,
        base=base,
        flops=unmerged.flops - base.flops,
        moved_bytes=unmerged.total_moved - base.total_moved,
        launches=unmerged.launches - base.launches,
        weight_bytes=weights,
        adapter_bytes=sum(p.stored_bytes * p.count for p in served.parameters if p.adapter),
        cached_tokens=tokens,
        cached_bytes=cached,
        token_bytes=token_bytes,
    )


def _network(spec: ModelSpec, parts: tuple[Part, ...], settings: Settings) -> Network:
    """The network of one token.

    A single token goes through a 4-bit layer by `gemv_4bit`, which reads the packed weight and makes no dense copy; scales
    that are quantized too are restored by two kernels before it (bitsandbytes 0.50 autograd/_functions.py `matmul_4bit`).
    """
    network = build(spec, Method("served", parts or (Full(),)), settings)
    nested = any(BLOCK_FORMATS[p.storage].nested for p in network.parameters if p.storage in BLOCK_FORMATS)
    for run in network.runs:
        for op in run.block.ops:
            if op.decoded:
                op.moved = op.moved - 4 * op.decoded
                op.scratch, op.decoded, op.dims = None, 0, None
                op.launches += RESTORING_KERNELS if nested else 0
    return network


def _cached_bytes(network: Network, dtype: str) -> int:
    """Bytes of keys and values of one token in all layers: as much as the key and value projections give."""
    wide = [p for p in network.parameters if p.name.endswith(("k_proj.weight", "v_proj.weight"))]
    return sum(p.shape[0] * p.count for p in wide) * BITS[dtype] // 8

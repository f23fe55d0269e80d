"""Formats in which the weights of a deployed model are kept, and what they take on each GPU.

Linear layers of the decoder are quantized; embedding, head, norms and biases stay in 16 bits, as every server keeps them.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.formats import BLOCK_FORMATS
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings

GROUP = 128
"""Weights that share a scale in GPTQ and AWQ checkpoints: the `group_size` of both papers and of nearly all checkpoints."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the matrix of a linear layer is stored.

    Attributes:
        name: as on the command line.
        bits: of one weight.
        scale_bytes: of each scale.
        zero_bits: of each group's zero point.
        group: weights along the input that share a scale; 0 for one scale for each output row; None for no scale.
        index: whether each input has a 32-bit group index (GPTQ's `g_idx`).
        read_share: share of the memory rate at which products read packed weights, against 16-bit ones.
        fused: whether the product reads the packed weights (else it dequantizes them to memory first).
        source: what it mirrors.
    """

    name: str
    bits: int
    scale_bytes: int = 0
    zero_bits: int = 0
    group: int | None = None
    index: bool = False
    fused: bool = True
    source: str = ""
    read_share: float = 1.0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix with `rows` outputs and `columns` inputs."""
        if self.name in BLOCK_FORMATS:
            return BLOCK_FORMATS[self.name].stored_bytes(rows * columns)
        packed = -(-rows * columns * self.bits // 8)
        if self.group is None:
            return packed
        groups = -(-columns // self.group) if self.group else 1
        scales = rows * groups * self.scale_bytes + -(-rows * groups * self.zero_bits // 8)
        return packed + scales + (4 * columns if self.index else 0)


_INT8_SHARE, _INT4_SHARE = 0.735, 0.62

FORMATS = {
    f.name: f
    for f in (
        WeightFormat("bf16", 16, source="the checkpoint's own dtype"),
        WeightFormat("fp16", 16, source="the checkpoint's own dtype"),
        WeightFormat(
            "fp8",
            8,
            4,
            0,
            0,
            source="llm-compressor FP8_DYNAMIC: e4m3, a fp32 scale for each output channel",
            read_share=_INT8_SHARE,
        ),
        WeightFormat(
            "int8",
            8,
            4,
            0,
            0,
            source="bitsandbytes 0.50 Linear8bitLt, and W8A8: a fp32 scale for each output row",
            read_share=_INT8_SHARE,
        ),
        WeightFormat(
            "nf4",
            4,
            fused=False,
            source="bitsandbytes 0.50 quantize_4bit, a fp32 scale for 64 weights",
            read_share=_INT4_SHARE,
        ),
        WeightFormat(
            "nf4-double",
            4,
            fused=False,
            source="Dettmers et al. 2023, QLoRA, section 3: scales quantized too",
            read_share=_INT4_SHARE,
        ),
        WeightFormat(
            "gptq",
            4,
            2,
            4,
            GROUP,
            index=True,
            source="Frantar et al. 2022, GPTQ; qweight, qzeros, scales and g_idx as gptqmodel stores them, groups of 128",
            read_share=_INT4_SHARE,
        ),
        WeightFormat(
            "awq",
            4,
            2,
            4,
            GROUP,
            source="Lin et al. 2023, AWQ; qweight, qzeros and scales as AutoAWQ stores them, groups of 128",
            read_share=_INT4_SHARE,
        ),
    )
}
PLAIN = ("bf16", "fp16")
READ_SHARE_SOURCE = (
    "calibrated: products read int8 weights at 0.735 and 4-bit weights at 0.62 of the rate of 16-bit ones; Llama-2-7B at batch 1 "
    "on an A100 makes 104.9, 155.6 and 196.8 tokens/s (gpt-fast README, weight-only, groups of 32); fp8 is taken as int8, NF4 as "
    "the other 4-bit formats"
)
INFERENCE = Settings(gradient_checkpointing="off", seq_len=2)


def find_format(name: str) -> WeightFormat:
    """The format of a name. Raises UnknownNameError."""
    if name.lower() not in FORMATS:
        raise UnknownNameError("weight format", name, FORMATS, "plan serve-memory --help")
    return FORMATS[name.lower()]


@dataclass(frozen=True, slots=True)
class ServedWeights:
    """The weights of a model as one GPU holds them.

    Attributes:
        parameters: of the whole model; 0 where only a size was given.
        read_bytes: of one GPU that a decoding step reads: all but the embedding table, of which a token reads a row.
        gpu_bytes: of one GPU.
        total_bytes: of the whole model on one GPU.
        linear_parameters: weights that enter a product with every token, of the whole model, the head included.
        largest_layer: weights of the largest matrix, for what merging dequantizes at once.
    """

    parameters: int
    read_bytes: int
    gpu_bytes: int
    total_bytes: int
    linear_parameters: int
    largest_layer: int


def network_of(spec: ModelSpec) -> Network:
    """The model's parameters, with nothing trained beside them."""
    return build(spec, parse("full"), INFERENCE)


def served_weights(network: Network, format: WeightFormat, tensor_parallel: int = 1) -> ServedWeights:
    """Weights by formula from the shapes of a model.

    With tensor parallelism matrices, embedding and head are split evenly and norms are replicated (Shoeybi et al. 2019,
    Megatron-LM, section 3; vLLM's VocabParallelEmbedding pads the vocabulary to 64).

    Args:
        network: of `network_of`.
        format: of the linear layers.
        tensor_parallel: GPUs that share the model.

    Raises:
        InputError: fewer than one GPU.

    Not counted: padding of odd shapes by kernels such as Marlin, the repacked copy while loading.
    """
    if tensor_parallel < 1:
        raise InputError(f"tensor-parallel {tensor_parallel} is not a number of GPUs; use 1 or more")
    total = shard = read = linear = largest = parameters = 0
    for p in network.parameters:
        parameters += p.numel
        one = _bytes(p, format)
        total += one * p.count
        part = -(-one // tensor_parallel) if len(p.shape) == 2 else one
        shard += part * p.count
        table = _is_table(p)
        tied = table and not any("lm_head" in q.name for q in network.parameters)
        if not table or tied:
            read += part * p.count
        if len(p.shape) == 2 and (not table or tied):
            linear += p.numel
            largest = max(largest, p.numel // p.count)
    return ServedWeights(parameters, read, shard, total, linear, largest)


def sized_weights(total_bytes: int, tensor_parallel: int, bits: int) -> ServedWeights:
    """Weights of a model whose family tuneplan does not know, from the size of its checkpoint: all counted as read by a step."""
    share = -(-total_bytes // tensor_parallel)
    parameters = total_bytes * 8 // bits
    return ServedWeights(0, share, share, total_bytes, parameters, 0)


def _is_table(p: Parameter) -> bool:
    return len(p.shape) == 2 and "embed" in p.name


def _is_linear(p: Parameter) -> bool:
    return len(p.shape) == 2 and "*" in p.name and not _is_table(p)


def _bytes(p: Parameter, format: WeightFormat) -> int:
    """Bytes of one of the layers' parameter."""
    count = p.numel // p.count
    return format.matrix_bytes(*p.shape) if _is_linear(p) else 2 * count

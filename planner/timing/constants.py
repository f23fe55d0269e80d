"""The few constants of the clock: what share of a datasheet rate real kernels reach, and what a launch costs.

Every step time is `modelled`: the FLOPs and bytes are counted, these shares are not. Each states where it comes from;
rows that chose a constant do not count as evidence for it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constant:
    """A number and where it comes from."""

    value: float
    source: str


_MAMF = "stas00/ml-engineering, compute/accelerator/README.md, maximum achievable matmul FLOPS, bf16 (best of many shapes)"
_SQUARES = (
    "zzc0721/torch-performance-test-data at 0785868, database.md: best bf16 product of square matrices up to 10240, over the peak"
)
_REPORTS = "github.com/zzc0721/torch-performance-test-data/issues/"
_FMS = (
    "a round value, kept because the median of four rows of fms-acceleration's a100_80gb.csv (one card; Mistral-7B LoRA"
    " and QLoRA, PowerLM-3b full and QLoRA, batch 8) comes out within 3 %"
)

MATMUL_CEILINGS: dict[str, Constant] = {
    "a100-80g": Constant(0.869, _MAMF),
    "a100-40g": Constant(0.869, f"{_MAMF}; A100 SXM"),
    "a100-80g-pcie": Constant(0.811, _MAMF),
    "a100-40g-pcie": Constant(0.811, f"{_MAMF}; A100 PCIe"),
    "h100-80g": Constant(0.803, _MAMF),
    "h200": Constant(0.803, f"{_MAMF}; 'H200 is the same' as H100"),
    "b200": Constant(0.776, _MAMF),
    "b300": Constant(0.786, _MAMF),
    "mi300x": Constant(0.514, _MAMF),
    "a6000": Constant(0.797, _SQUARES),
    "rtx-3080": Constant(1.087, f"{_SQUARES}, and {_REPORTS}114"),
    "rtx-3090": Constant(1.079, f"{_SQUARES}; the median of three"),
    "rtx-4060-ti-16g": Constant(1.015, f"{_SQUARES}, {_REPORTS}130 and /145; the median of three"),
    "rtx-4090": Constant(0.987, f"{_SQUARES}; the median of seven"),
    "rtx-5090": Constant(1.131, f"{_SQUARES}, {_REPORTS}96, /124 and /200; the median of five"),
    "t4": Constant(0.651, f"{_SQUARES}; fp16, the median of two"),
}
"""Best measured share of the dense peak rate, by GPU id, for cards whose products were not measured by shape."""

DEFAULT_CEILING = Constant(0.80, f"assumed for cards not measured: the middle of the NVIDIA cards in {_MAMF}")
CONSUMER_CEILING = Constant(1.08, "GeForce cards run above the clock that their peak is stated at: the middle of the five above")
MATMUL_TYPICAL = Constant(
    0.93, "the median large product over the best one: 0.94, 0.93 and 0.92 on A100, H100 and H200 (hardware_profiles/speeds)"
)
MATMUL_SHARE = Constant(0.95, f"share of the rate of products measured alone which they reach within a step; {_FMS}")
MATMUL_START_SECONDS = Constant(4e-6, "assumed: prologue, last partial wave and tail of a matrix product")
ATTENTION = Constant(0.55, "Dao 2023, FlashAttention-2, figures 5 and 6: 50 to 73 % of an A100's peak, less with a causal mask")
ATTENTION_HOPPER = Constant(0.35, "Dao 2023, FlashAttention-2 on H100, figure 7: 335 of 989 TFLOP/s")
ATTENTION_HALF = Constant(
    500.0,
    "tokens at which fused attention has half of its highest rate: 430, 560 and 630 fit three FlashAttention kernels on an A100"
    " (ai-dynamo/aiconfigurator, aiconfigurator-core 0.12.0, context_attention_perf, 16 to 64 heads of 128)",
)
ATTENTION_TOKENS = 4096
"""Tokens for which the two shares above are taken to hold."""
MEMORY = Constant(0.80, "ai-dynamo/aiconfigurator systems/*.yaml, mem_bw_empirical_scaling_factor")
_LOG = "L2_cache_size of torch.cuda.get_device_properties in public logs"
_ADA = "NVIDIA Ada GPU Architecture, white paper, 2023"
_MEASURED = "products of 68 MB in hardware_profiles/speeds run above the memory's bandwidth, those of 134 MB below"
L2_BYTES: dict[str, Constant] = {
    "a100-80g": Constant(40 * 2**20, _LOG),
    "a100-40g": Constant(40 * 2**20, _LOG),
    "a100-80g-pcie": Constant(40 * 2**20, f"{_LOG}; the same chip"),
    "a100-40g-pcie": Constant(40 * 2**20, f"{_LOG}; the same chip"),
    "h100-80g": Constant(50 * 2**20, _LOG),
    "h200": Constant(50 * 2**20, f"{_LOG}; the chip of the H100"),
    "l40": Constant(96 * 2**20, f"{_ADA}; the chip of the L40S"),
    "l40s": Constant(96 * 2**20, f"{_ADA}; {_MEASURED}"),
    "rtx-4090": Constant(72 * 2**20, _LOG),
    "rtx-4080": Constant(64 * 2**20, _ADA),
    "rtx-pro-6000": Constant(128 * 2**20, _MEASURED),
}
"""Cache of a card, by GPU id; for the others none is counted on."""
CACHED_READS = Constant(
    0.5,
    "share of the bytes of an op that fit half of the cache which need not come from memory: what it reads was just written; what"
    " it writes goes to memory. Assumed",
)
DEQUANTIZE = Constant(
    0.32, "bitsandbytes 0.45 on an H100: 0.1517 ms for 4096 x 14336 weights of 2.766 bytes (jeromeku, public benchmark)"
)
DECODING_LAUNCHES = {"bitsandbytes": 3, "tuneplan": 1}
"""Kernels that dequantize a weight with double quantization, by `training.settings.KERNELS`: counted in the code of each."""
KERNEL_SECONDS = Constant(2e-6, "assumed: device time between two dependent kernels")
HOST_FORWARD_SECONDS = Constant(
    12e-6,
    "Python, module hooks and dispatch: Llama-3.1-8B bf16 at batch 1 on an H100 makes 40.99 tokens/s (bitsandbytes"
    " benchmarking/README.md), four times what its weights need: about 1700 kernels in 24 ms, less the sampling loop",
)
HOST_BACKWARD_SECONDS = Constant(6e-6, "assumed: half of the forward's, since the autograd engine runs without Python")
NVLINK = Constant(0.70, "all-reduce bus bandwidth of about 208 of 300 GB/s on A100s (NVIDIA/nccl-tests issues 149 and 178)")
PCIE_COLLECTIVE = Constant(
    0.45, "28 to 35 of 63 GB/s between RTX 5090s (github.com/NVIDIA/nccl/issues/1639); less through a shared switch"
)
PCIE_COPY = Constant(0.80, "assumed: pinned copies reach about 25 of the 31.5 GB/s of Gen4 x16")
NETWORK = Constant(12.5e9, "assumed where no network is named: 100 Gbit/s a machine")
HOST_MEMORY = Constant(
    20e9,
    "assumed: what one process's CPU update streams; eight of them nearly fill the 205 GB/s of eight DDR4-3200 channels",
)
OVERLAP = Constant(0.70, "assumed: share of the communication that runs behind computation (buckets, prefetch)")

FP32_SHARE: dict[tuple[int, int], float] = {(8, 0): 1 / 16, (8, 6): 1 / 4, (8, 9): 1 / 4, (9, 0): 66.9 / 989}
"""fp32 rate as a share of the 16-bit rate, of A100, A6000, L40S and H100, for cards whose fp32 rate has no source."""

FP32_SHARE_UNKNOWN = 1 / 16

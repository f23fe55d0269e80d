"""Memory beyond the ledger: what a process holds on the card outside the allocator, in host memory, and on disk.

Figures of `runtime_bytes` are calibrated on few public rows and say so; the rest is modelled on what the libraries do.
"""

from dataclasses import dataclass

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import BITS, elements
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.units import GIGA, KIB, MIB

DEFAULT_OOM_CHANCE = 0.05
"""Chance of running out of memory that a plan accepts where the user does not say; a choice."""

LOADING_SHARD_BYTES = 5 * GIGA
"""Largest checkpoint file: the `max_shard_size` of 5 GB with which most hub checkpoints were saved (the default of
`save_pretrained` in transformers 4; 50 GB in 5)."""


@dataclass(frozen=True, slots=True)
class RuntimeMemory:
    """Device memory of one process that torch's statistics do not show, in bytes.

    Attributes:
        context_bytes: the driver's context.
        library_bytes: kernels loaded by torch, cuBLAS and, for a quantized base, bitsandbytes.
        nccl_bytes: communication buffers, none on a single GPU.
        basis: how far the figures can be trusted, and which rows they come from.
    """

    context_bytes: int
    library_bytes: int
    nccl_bytes: int
    basis: str

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.context_bytes + self.library_bytes + self.nccl_bytes


@dataclass(frozen=True, slots=True)
class _Platform:
    context_bytes: int
    library_bytes: int
    basis: str


_NVIDIA_SERVER = _Platform(
    450 * MIB,
    250 * MIB,
    "calibrated: nvidia-smi's peak less torch's allocated peak, 0.92 GiB on an A100, bounds it from above "
    "(fms-acceleration, torch 2.4.1, Llama-3-8B full, batch 4), and vLLM's logs show 0.05-0.28 GiB loaded after the "
    "context on one GPU; the value between them is a choice, range 0.5-0.9 GiB",
)
_NVIDIA_CONSUMER = _Platform(
    300 * MIB,
    200 * MIB,
    "calibrated: contexts grow with the number of multiprocessors, so less than the 0.92 GiB that bounds an A100 "
    "(fms-acceleration, torch 2.4.1); vLLM's logs show 0.05-0.09 GiB loaded after the context on a T4 and a V100; "
    "the value is a choice, range 0.3-0.7 GiB",
)
_AMD = _Platform(
    400 * MIB,
    600 * MIB,
    "calibrated: vLLM's logs show 0.53 and 0.62 GiB outside torch, after the context, on a RX 7900 XTX (ROCm); "
    "the context is a guess, range 0.7-1.3 GiB",
)
_SERVER_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))

_BITSANDBYTES_BYTES = 30 * MIB
_NCCL_BYTES_PER_GPU = 128 * MIB
_NCCL_PEERS = 8
"""GPUs of a node, within which each talks to each; a ring over several nodes has two neighbours (an assumption)."""
_NCCL_BASIS = (
    "; NCCL calibrated: vLLM's logs show 0.2 and 1.39 GiB outside torch on each of 4 GPUs and 2.1 GiB on each of 8 "
    "(custom all-reduce and libraries in it), range 0.03-0.25 GiB a GPU of the group"
)


def runtime_bytes(vendor: str, compute_capability: tuple[int, int] | None, gpu_count: int, quantized: bool) -> RuntimeMemory:
    """What the process of one GPU holds outside the caching allocator.

    Args:
        vendor: "nvidia" or "amd", in any case.
        compute_capability: (major, minor) of an NVIDIA card; None is taken for a server card.
        gpu_count: GPUs that communicate with this one, itself included.
        quantized: bitsandbytes kernels are loaded too.

    Raises:
        InputError: an unknown vendor, or fewer than one GPU.

    Not counted: a display, other processes, and what the driver keeps for itself (`memory_bytes` of a card is without).
    """
    if gpu_count < 1:
        raise InputError(f"{gpu_count} GPUs cannot run anything; use 1 or more")
    name = vendor.strip().lower()
    if name == "nvidia":
        server = compute_capability is None or compute_capability in _SERVER_CAPABILITIES
        platform = _NVIDIA_SERVER if server else _NVIDIA_CONSUMER
    elif name == "amd":
        platform = _AMD
    else:
        raise InputError(f"no figures for the runtime of vendor {vendor!r}; the known ones are nvidia and amd")
    libraries = platform.library_bytes + (_BITSANDBYTES_BYTES if quantized else 0)
    if gpu_count == 1:
        return RuntimeMemory(platform.context_bytes, libraries, 0, platform.basis)
    nccl = _NCCL_BYTES_PER_GPU * min(gpu_count, _NCCL_PEERS)
    return RuntimeMemory(platform.context_bytes, libraries, nccl, platform.basis + _NCCL_BASIS)


def runtime_of(gpu: Gpu | None, gpu_count: int, quantized: bool) -> RuntimeMemory:
    """As `runtime_bytes`, of a card; what was measured on it takes the place of the figures for cards like it."""
    if gpu is None:
        return runtime_bytes("nvidia", None, gpu_count, quantized)
    found = runtime_bytes(gpu.vendor, gpu.compute_capability, gpu_count, quantized)
    measured = gpu.calibration.constants.get("runtime_bytes") if gpu.calibration else None
    if measured is None:
        return found
    device = (
        ", ".join(value for key, value in gpu.calibration.measured.items() if key in ("device", "date"))
        if gpu.calibration
        else ""
    )
    context = min(found.context_bytes, int(measured))
    basis = f"calibrated: the process less what the allocator reserved, measured ({device})"
    return RuntimeMemory(context, int(measured) - context, found.nccl_bytes, basis)


def workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """Bytes of the workspace that each thread's cuBLAS handle takes from the allocator at its first matrix product.

    32 MiB on Hopper and Blackwell, 2 x 4 MiB + 8 x 16 KiB on others (`parseChosenWorkspaceSize`,
    aten/src/ATen/cuda/CublasHandlePool.cpp, torch 2.13).
    """
    return 32 * MIB if compute_capability[0] in (9, 10, 12) else 8 * MIB + 128 * KIB


def usable_bytes(memory_bytes: int, margin: float) -> int:
    """Bytes of a card that a plan may fill: what the driver reports, less a margin in [0, 1). Raises InputError.

    `uncertainty.margin` derives the margin from published errors: a run ends at the first allocation that the driver refuses.
    """
    if not 0 <= margin < 1:
        raise InputError(f"a safety margin of {margin} leaves no memory; use a share from 0 to below 1, such as 0.03")
    return memory_bytes - int(memory_bytes * margin)


def checkpoint_bytes(network: Network) -> int:
    """Bytes of the weights in one checkpoint, as they are stored: what is trained where the base is frozen, else all.

    Tied weights count once. Not counted: the safetensors header, optimizer states, tokenizer files.
    """
    if any(p.adapter or not (p.trainable or p.idle) for p in network.parameters):
        kept = sum(_plain_bytes(p) for p in network.parameters if p.saved and (p.adapter or p.trainable or p.idle))
        return kept + network.extra_saved_bytes
    return sum(_plain_bytes(p) for p in network.parameters)


def _plain_bytes(parameter: Parameter) -> int:
    """Bytes of a weight in all layers, without the allocator's rounding; a block format's with its scales."""
    if parameter.saved_bits:
        return int(elements(parameter.shape) * parameter.saved_bits / 8) * parameter.count
    bits = BITS.get(parameter.storage)
    if bits is None:
        return parameter.stored_bytes * parameter.count
    return elements(parameter.shape) * bits // 8 * parameter.count

"""The kernels that are timed, each with its implementations."""

from tuneplan.kernels.bench.implementations import dequantize_4bit, dequantize_8bit, linear_4bit, lora_linear
from tuneplan.kernels.bench.kernel import Kernel
from tuneplan.kernels.errors import KernelInputError

KERNELS: dict[str, Kernel] = {
    "dequantize_4bit": dequantize_4bit.KERNEL,
    "dequantize_8bit": dequantize_8bit.KERNEL,
    "linear_4bit": linear_4bit.KERNEL,
    "lora_linear": lora_linear.KERNEL,
}


def kernel(name: str) -> Kernel:
    """A kernel by its name. Raises KernelInputError, with close matches."""
    if name in KERNELS:
        return KERNELS[name]
    from difflib import get_close_matches

    near = get_close_matches(name, KERNELS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise KernelInputError(f"unknown kernel {name!r:.60}.{hint} One of {', '.join(KERNELS)}")

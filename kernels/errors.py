"""What a kernel says of input that it cannot take, before anything is launched."""


class KernelInputError(ValueError):
    """A wrong dtype, device, shape, block size, layout or quantization state: what was given, why not, what to do."""


class KernelUnavailableError(RuntimeError):
    """The asked backend cannot run here: no Triton, or no GPU that Triton compiles for."""

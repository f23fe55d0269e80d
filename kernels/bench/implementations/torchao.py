"""torchao's NF4 tensor. It has its own format (scales in int8, blocks of 64 and 256), so weights are quantized again for it."""

from typing import Any

import torch


def nf4(weight: torch.Tensor) -> Any:
    """A dense weight as torchao's NF4 tensor. Raises ImportError where this version of torchao has none."""
    from importlib import import_module

    for module in ("torchao.quantization", "torchao.dtypes.nf4tensor"):
        try:
            convert = import_module(module).to_nf4
        except (ImportError, AttributeError):
            continue
        return convert(weight, 64, 256)
    raise ImportError("this version of torchao has no to_nf4")

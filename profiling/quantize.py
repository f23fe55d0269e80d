"""bitsandbytes' 4-bit layers with packed weights: on the meta device, or random ones quantized layer by layer."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.formats import BLOCK_FORMATS
from tuneplan.planner.methods.quantized_base import QuantizedBase

HEADS = ("lm_head", "classifier", "score")
"""Modules that stay dense. That of a classifier has to be named (`llm_int8_skip_modules`): PEFT trains a copy of it.

A name is also matched at the end of a module's, as in `should_convert_module` of transformers 5.23 quantizers_utils.py.
"""
_FORMAT = BLOCK_FORMATS["nf4-double"]


def quantize(model: Any, base: QuantizedBase, compute_dtype: torch.dtype, device: str) -> None:
    """Give the linear layers the storage that a quantized base has. Raises InputError for int8 layers on a real device."""
    _unpack_experts(model)
    if base.quant_type != "int8":
        quantize_4bit(model, compute_dtype, base.quant_type, base.double_quant, device)
        return
    if device != "meta":
        raise InputError("LLM.int8 layers are only traced; use nf4 or fp4 to run a step for real, or plan trace")
    from tuneplan.profiling.quantize_8bit import quantize_8bit

    quantize_8bit(model)


def _unpack_experts(model: Any) -> None:
    """Put the modules in place that transformers quantizes instead of stacked experts (`_convert_model_for_quantization`)."""
    from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION as PATCHES
    from transformers.utils.quantization_config import QuantizationMethod

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            patch = PATCHES.get(type(child).__name__)
            if patch is not None and QuantizationMethod.BITS_AND_BYTES in patch["quantization_methods"]:
                with torch.device("meta"):
                    setattr(module, name, patch["module_name"](model.config.get_text_config()))


def quantize_4bit(
    model: Any, compute_dtype: torch.dtype, quant_type: str = "nf4", nested: bool = True, device: str = "meta"
) -> None:
    """Replace every linear layer but the head by bitsandbytes' `Linear4bit`, one after the other.

    Args:
        model: with its linear weights on the meta device, so that a model that is too large in 16 bits can be quantized.
        compute_dtype: of the products, and of the weights before they are packed.
        quant_type: nf4 or fp4.
        nested: scales are quantized too.
        device: "meta" for weights without values; else random weights are made there, packed and freed.
    """
    import bitsandbytes as bnb

    kept = {*HEADS, *(getattr(model, "_keep_in_fp32_modules", None) or ())}
    for path, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            linear = type(child) is nn.Linear or isinstance(child, Conv1D)  # not a kind of one, such as a router
            if not linear or {*path.split("."), child_name} & kept or child_name.endswith(HEADS):
                continue
            rows, columns = (child.nf, child.nx) if isinstance(child, Conv1D) else (child.out_features, child.in_features)
            layer = bnb.nn.Linear4bit(
                columns,
                rows,
                bias=child.bias is not None,
                compute_dtype=compute_dtype,
                compress_statistics=nested,
                quant_type=quant_type,
                device="meta",
            )
            if child.bias is not None:
                layer.bias = child.bias
            if device == "meta":
                layer.weight = _packed(rows, columns, compute_dtype, quant_type, nested, layer)
            else:
                dense = torch.empty(rows, columns, dtype=compute_dtype, device=device)
                dense.normal_(std=0.02)
                layer.weight = bnb.nn.Params4bit(
                    dense, requires_grad=False, quant_type=quant_type, compress_statistics=nested, module=layer
                )
                layer.weight = layer.weight.to(device)
                layer.quant_state = layer.weight.quant_state
                del dense
            setattr(module, child_name, layer)
    model.is_loaded_in_4bit = True
    model.is_quantized = True


def _packed(rows: int, columns: int, dtype: torch.dtype, quant_type: str, nested: bool, layer: nn.Module) -> Any:
    import bitsandbytes as bnb
    from bitsandbytes.functional import QuantState

    def empty(size: int, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    count = rows * columns
    blocks = -(-count // _FORMAT.block)
    state2 = None
    if nested:
        state2 = QuantState(
            absmax=empty(-(-blocks // _FORMAT.nested_block), torch.float32),
            code=empty(256, torch.float32),
            blocksize=_FORMAT.nested_block,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=empty(blocks, torch.uint8 if nested else torch.float32),
        shape=torch.Size((rows, columns)),
        code=empty(16, torch.float32),
        blocksize=_FORMAT.block,
        quant_type=quant_type,
        dtype=dtype,
        offset=torch.empty((), dtype=torch.float32, device="meta") if nested else None,
        state2=state2,
    )
    weight = bnb.nn.Params4bit(
        torch.empty((-(-count // 2), 1), dtype=torch.uint8, device="meta"),
        requires_grad=False,
        quant_state=state,
        quant_type=quant_type,
        compress_statistics=nested,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    return weight

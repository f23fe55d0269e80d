"""Layers and tiny models with PEFT's adapters over dense, 4-bit and LLM.int8 weights, for the tests of LoRA kernels."""

from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tuneplan.kernels.dequantize_4bit import reference
from tuneplan.kernels.dequantize_8bit import reference_rows
from tuneplan.kernels.packed import Packed4bit

KINDS = ("dense", "4bit", "8bit")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def quantized(linear: nn.Linear, kind: str) -> Any:
    """A linear layer as bitsandbytes stores it; rows are whole blocks, where its code for CPUs is right."""
    biased = linear.bias is not None
    made: Any
    if kind == "dense":
        return linear
    if kind == "4bit":
        made = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=biased, compute_dtype=linear.weight.dtype, quant_type="nf4"
        )
        made.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bitsandbytes.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=biased, has_fp16_weights=False)
        made.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    if biased:
        made.bias = linear.bias
    return made.to("cpu")


class OneLayer(nn.Module):
    """A model of one linear layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        return self.layer(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A layer's dtypes: of the weight, the adapter, the input, and autocast's or None."""

    weight: torch.dtype
    adapter: torch.dtype
    x: torch.dtype
    autocast: torch.dtype | None = None


def layer_of(
    kind: str, case: Case, width: int, outputs: int, rank: int, bias: bool = False, dropout: float = 0.0
) -> tuple[nn.Module, Any]:
    """A PEFT model of one layer, and the layer; the adapter's product is about 0.4 of the weight's at rank 8."""
    torch.manual_seed(0)
    linear = nn.Linear(width, outputs, bias=bias)
    linear.weight.data.normal_(0, width**-0.5)
    model: Any = OneLayer(quantized(linear.to(case.weight), kind))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "4bit", kind == "8bit"
    config = LoraConfig(r=rank, lora_alpha=1.5 * rank, target_modules=["layer"], lora_dropout=dropout)
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    layer = model.base_model.model.layer
    for weight, deviation in ((layer.lora_A.default.weight, width**-0.5), (layer.lora_B.default.weight, 0.1)):
        weight.data = torch.randn(weight.shape).mul_(deviation).to(case.adapter)
    return model.train(), layer


def adapted_layer(kind: str, case: Case, bias: bool = False, dropout: float = 0.0) -> tuple[nn.Module, Any]:
    """A layer [160, 128] of rank 8."""
    return layer_of(kind, case, 128, 160, 8, bias, dropout)


def exact_weight(layer: Any) -> torch.Tensor:
    """What a layer's stored weight stands for, in fp64."""
    weight = layer.base_layer.weight
    if isinstance(weight, bitsandbytes.nn.Params4bit):
        return reference(Packed4bit.of(weight.data, weight.quant_state), torch.float32).double()
    if isinstance(weight, bitsandbytes.nn.Int8Params):
        state = layer.base_layer.state
        data, scale = (weight.CB, weight.SCB) if weight.CB is not None else (state.CB, state.SCB)
        return reference_rows(data, scale, torch.float32).double()
    return weight.detach().double()


def tiny_llama(kind: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """A Llama of two layers with adapters on all projections, B not zero; options of `LoraConfig`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        attn_implementation="eager",
    )
    model: Any = LlamaForCausalLM(config).to(dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, quantized(module, kind))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "4bit", kind == "8bit"
    peft_model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, **options}))
    fill(peft_model)
    return peft_model.train()


def fill(model: nn.Module) -> None:
    """Values for every B, so that no gradient of A is zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)


def ids() -> torch.Tensor:
    """Two rows of tokens."""
    torch.manual_seed(5)
    return torch.randint(0, 128, (2, 24))


def losses(model: Any, steps: int = 3, autocast: torch.dtype | None = None) -> list[float]:
    """Losses of some steps of plain gradient descent, with random numbers that depend on the step alone."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    tokens = ids()
    found = []
    for step in range(steps):
        torch.manual_seed(10 + step)
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found

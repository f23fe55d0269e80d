"""Methods that PEFT does not have, in plain PyTorch as their papers write them, put into a model of transformers.

Each class is written from the paper; the tracker then sees what autograd keeps. B batch, S length, H width.
"""

from typing import Any

import other_models
import reversible_layers
import side_networks
import torch
from torch import nn

from tuneplan.planner.methods.method import Method

ACTIVATIONS = {"relu": nn.functional.relu, "swish": nn.functional.silu, "gelu": nn.functional.gelu}


class Bottleneck(nn.Module):
    """Houlsby et al. 2019, figure 2; He et al. 2022, table 1 for the parallel form."""

    def __init__(self, width: int, part: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        inner = max(int(width // part.reduction_factor), 1)
        self.adapter_down = nn.Linear(width, inner, dtype=dtype, device=device)
        self.adapter_up = nn.Linear(inner, width, dtype=dtype, device=device)
        self.function = ACTIVATIONS[part.non_linearity]
        if part.sparsity:
            for name in ("down", "up"):
                weight = getattr(self, f"adapter_{name}").weight
                self.register_buffer(f"mask_{name}", torch.ones_like(weight, requires_grad=False))

    def dense(self, index: int, x: torch.Tensor) -> torch.Tensor:
        layer = (self.adapter_down, self.adapter_up)[index]
        mask = getattr(self, ("mask_down", "mask_up")[index], None)
        weight = layer.weight if mask is None else layer.weight * mask
        return nn.functional.linear(x, weight, layer.bias)

    def forward(self, x_BSH: torch.Tensor, y_BSH: torch.Tensor) -> torch.Tensor:
        return self.dense(1, self.function(self.dense(0, x_BSH))) * 1.0 + y_BSH


class Straight(torch.autograd.Function):
    """Zeng, Zhang and Lu 2023, equation 3: one where a score is among the highest; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        values, _ = scores.flatten().sort()
        return (scores >= values[len(values) // 2]).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()


class Masked(nn.Module):
    """Zeng, Zhang and Lu 2023, section 3.1: the prototype, shared by all layers, under a layer's masks."""

    def __init__(self, prototype: Bottleneck) -> None:
        super().__init__()
        self.prototype = prototype
        layers = (prototype.adapter_down, prototype.adapter_up)
        self.scores = nn.ParameterList([torch.zeros_like(layer.weight) for layer in layers])

    def dense(self, index: int, x: torch.Tensor) -> torch.Tensor:
        layer = (self.prototype.adapter_down, self.prototype.adapter_up)[index]
        mask: torch.Tensor = Straight.apply(self.scores[index])
        weight = mask * layer.weight
        return nn.functional.linear(x, weight, layer.bias)

    def forward(self, x_BSH: torch.Tensor, y_BSH: torch.Tensor) -> torch.Tensor:
        return self.dense(1, self.prototype.function(self.dense(0, x_BSH))) * 1.0 + y_BSH


class Phm(nn.Module):
    """Karimi Mahabadi et al. 2021, equation 5: a sum of Kronecker products with low-rank factors."""

    def __init__(self, rows: int, columns: int, part: Any, rule: nn.Parameter) -> None:
        super().__init__()
        n, r, kind = part.phm_dim, part.phm_rank, {"dtype": rule.dtype, "device": rule.device}
        self.rule = rule
        self.W_left = nn.Parameter(torch.zeros(n, rows // n, r, **kind))
        self.W_right = nn.Parameter(torch.zeros(n, r, columns // n, **kind))
        self.bias = nn.Parameter(torch.zeros(columns, **kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = torch.bmm(self.W_left, self.W_right)
        n, rows, columns = factors.shape
        products = self.rule[:, :, None, :, None] * factors[:, None, :, None, :]
        weight = products.reshape(n, self.rule.shape[1] * rows, self.rule.shape[2] * columns).sum(0)
        return torch.matmul(x, weight) + self.bias


class CompacterAdapter(nn.Module):
    """Karimi Mahabadi et al. 2021, section 3.2."""

    def __init__(self, width: int, part: Any, rule: nn.Parameter) -> None:
        super().__init__()
        inner = int(width // part.reduction_factor)
        self.adapter_down = Phm(width, inner, part, rule)
        self.adapter_up = Phm(inner, width, part, rule)

    def forward(self, x_BSH: torch.Tensor, y_BSH: torch.Tensor) -> torch.Tensor:
        return self.adapter_up(nn.functional.gelu(self.adapter_down(x_BSH))) + y_BSH


class After(nn.Module):
    """A module followed by an adapter of its output; `beside` gives the adapter another input."""

    def __init__(self, inner: nn.Module, adapter: nn.Module, beside: dict[str, torch.Tensor] | None) -> None:
        super().__init__()
        self.inner, self.adapter, self.beside = inner, adapter, beside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        first = self.adapter(first if self.beside is None else self.beside.pop("x"), first)
        return (first, *out[1:]) if isinstance(out, tuple) else first


class ScaleShift(nn.Module):
    """Lian et al. 2022, equation 2."""

    def __init__(self, inner: Any, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.ssf_scale = nn.Parameter(torch.ones(size, dtype=dtype, device=inner.weight.device))
        self.ssf_shift = nn.Parameter(torch.zeros(size, dtype=dtype, device=inner.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) * self.ssf_scale + self.ssf_shift
        return out


class Gated(nn.Module):
    """Ding et al. 2023, equation 3: LoRA with a factor for each rank; adapters in fp32 as PEFT keeps them."""

    def __init__(self, inner: nn.Linear, part: Any) -> None:
        super().__init__()
        kind: Any = {"dtype": torch.float32, "device": inner.weight.device}
        self.inner = inner
        self.a = nn.Linear(inner.in_features, part.r, bias=False, **kind)
        self.b = nn.Linear(part.r, inner.out_features, bias=False, **kind)
        self.gate = nn.Parameter(torch.ones(part.r, **kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        x = x.float()
        return (y + self.b(self.a(x) * self.gate) * 2.0).to(y.dtype)


class Pooled(nn.Module):
    """Xu et al. 2024, algorithm 1."""

    def __init__(self, inner: nn.Linear, part: Any) -> None:
        super().__init__()
        kind: Any = {"dtype": torch.float32, "device": inner.weight.device}
        self.inner, self.group = inner, part.group_size
        self.a = nn.Linear(inner.in_features // part.group_size, part.r, bias=False, **kind)
        self.b = nn.Linear(part.r, inner.out_features, bias=False, **kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        x = x.float()
        pooled = x.view(*x.shape[:-1], -1, self.group).mean(-1)
        return (y + self.b(self.a(pooled)) * 2.0).to(y.dtype)


class MaskedChange(nn.Module):
    """Guo, Rush and Kim 2021, equations 1 and 3: a stretched and clamped sigmoid as the mask."""

    def __init__(self, inner: nn.Linear, part: Any) -> None:
        super().__init__()
        self.inner = inner
        self.diff = nn.Parameter(torch.zeros_like(inner.weight))
        self.log_alpha = nn.Parameter(torch.zeros_like(inner.weight))
        self.group_alpha = nn.Parameter(torch.ones_like(inner.weight[0, :1])) if part.structured else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        soft = torch.sigmoid(self.log_alpha + torch.rand_like(self.log_alpha))
        mask = (soft * 3.0 - 1.5).clamp(0.0, 1.0)
        del soft
        if self.group_alpha is not None:
            mask = mask * self.group_alpha
        weight = self.inner.weight + mask * self.diff
        return nn.functional.linear(x, weight, self.inner.bias)


class Signs(nn.Module):
    """Liu et al. 2024, equation 1: the base beside the scaled signs of the change."""

    def __init__(self, inner: nn.Linear, part: Any) -> None:
        super().__init__()
        self.inner = inner
        count = -(-inner.weight.numel() // 8)
        self.signs = nn.Parameter(torch.zeros(count, dtype=torch.uint8, device=inner.weight.device), requires_grad=False)
        self.delta_scale = nn.Parameter(torch.zeros(1, dtype=inner.weight.dtype, device=inner.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        signs = torch.empty_like(self.inner.weight, requires_grad=False)
        y: torch.Tensor = self.inner(x)
        return y + nn.functional.linear(x, signs) * self.delta_scale


class RowScales(nn.Module):
    """Kim et al. 2023, equation 2, on a dense weight: only the scales of the rows are trained."""

    def __init__(self, inner: nn.Linear, part: Any) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones_like(inner.weight[:, :1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.inner.weight * self.scale
        return nn.functional.linear(x, weight, self.inner.bias)


LINEAR = {"qa_lora": Pooled, "diff_pruning": MaskedChange, "bitdelta": Signs, "peqa": RowScales}


def install(model: Any, method: Method) -> None:
    """Put the parts that have a class here into a model of transformers; what wraps whole layers comes last."""
    for part in sorted(method.parts, key=lambda part: part.label == "reversible"):
        if part.label in ("bottleneck_adapter", "parallel_bottleneck", "propetl_adapter"):
            _adapters(model, part)
        elif part.label in ("lst", "side_tuning", "res_tuning", "ipa"):
            side_networks.install(model, part)
        elif part.label in other_models.INSTALL:
            other_models.INSTALL[part.label](model, part)
        elif part.label == "shifted_attention":
            shift_attention(model, part.groups)
        elif part.label == "reversible":
            reversible_layers.install(model, part)
        elif part.label == "compacter":
            config = model.config
            weight = model.model.embed_tokens.weight
            rule = nn.Parameter(torch.zeros(part.phm_dim, part.phm_dim, part.phm_dim, dtype=weight.dtype, device=weight.device))
            for layer in model.model.layers:
                for name in ("self_attn", "mlp") if part.mh_adapter else ("mlp",):
                    adapter = CompacterAdapter(config.hidden_size, part, rule)
                    setattr(layer, name, After(getattr(layer, name), adapter, None))
        elif part.label == "ssf":
            _linear(model, lambda inner: ScaleShift(inner, inner.out_features, inner.weight.dtype))
            for layer in model.model.layers:
                for name in ("input_layernorm", "post_attention_layernorm"):
                    norm = getattr(layer, name)
                    setattr(layer, name, ScaleShift(norm, norm.weight.shape[0], norm.weight.dtype))
        elif getattr(part, "gate", False):
            _linear(model, lambda inner, part=part: Gated(inner, part))
        elif part.label in LINEAR:
            _linear(model, lambda inner, part=part: LINEAR[part.label](inner, part))


def shift_attention(model: Any, groups: int) -> None:
    """Chen et al. 2024, algorithm 1, around the attention that the model has."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[name]

    def shift(x_BNHD: torch.Tensor, by: int) -> torch.Tensor:
        first, second = x_BNHD.chunk(2, 2)
        return torch.cat((first, second.roll(by, 1)), 2)

    def shifted(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **rest: Any) -> Any:
        batch, _, length, size = q.shape
        width = length // groups

        def grouped(x: torch.Tensor) -> torch.Tensor:
            return shift(x.transpose(1, 2), -width // 2).view(batch * groups, width, -1, size).transpose(1, 2)

        out, weights = plain(module, grouped(q), grouped(k), grouped(v), mask, **rest)
        return shift(out.view(batch, length, -1, size), width // 2), weights

    AttentionInterface.register("traced_shifted", shifted)
    AttentionMaskInterface.register("traced_shifted", ALL_MASK_ATTENTION_FUNCTIONS[name])
    model.config._attn_implementation = "traced_shifted"


def update_in_backward(model: Any) -> None:
    """Lv et al. 2024, algorithm 1: SGD on each weight as soon as its gradient is there."""

    def update(parameter: torch.Tensor) -> None:
        with torch.no_grad():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)


def _adapters(model: Any, part: Any) -> None:
    wanted = [name for name, use in (("self_attn", part.mh_adapter), ("mlp", part.output_adapter)) if use]
    weight = model.model.embed_tokens.weight
    shared = Bottleneck(model.config.hidden_size, part, weight.dtype, weight.device)
    for layer in list(model.model.layers)[part.skip_layers :]:
        for name in wanted:
            if part.label == "propetl_adapter":
                adapter: nn.Module = Masked(shared)
            else:
                adapter = Bottleneck(model.config.hidden_size, part, weight.dtype, weight.device)
            beside: dict[str, torch.Tensor] | None = None
            if part.is_parallel:
                beside = {}
                norm = layer.input_layernorm if name == "self_attn" else layer.post_attention_layernorm
                norm.register_forward_pre_hook(lambda _, args, beside=beside: beside.update(x=args[0]))
            setattr(layer, name, After(getattr(layer, name), adapter, beside))


def _linear(model: Any, wrap: Any) -> None:
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent = layer.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], wrap(module))

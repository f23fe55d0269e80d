"""A step of another model than the one that is asked for, in plain PyTorch as the papers write it.

B batch, S length, H width, N key heads, D of a head, P rows of a prefix.
"""

import copy
from typing import Any

import torch
from torch import nn


def narrow_config(config: dict[str, Any], factor: int) -> dict[str, Any]:
    """Jin, Zhang and Zong 2023, section 3: a small model of the same kind, here with heads of the same size."""
    divided = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {**config, **{name: config[name] // factor for name in divided}, "head_dim": head}


def shorten(model: Any, part: Any) -> None:
    """Xiao, Lin and Han 2023, section 3: trained layers at both ends, an evenly chosen and frozen part of those between."""
    layers = list(model.model.layers)
    ends = part.adapter_layers
    middle = layers[ends:-ends]
    chosen = [middle[round(i * (len(middle) - 1) / max(part.emulator_layers - 1, 1))] for i in range(part.emulator_layers)]
    model.model.layers = nn.ModuleList([*layers[:ends], *chosen, *layers[-ends:]])
    model.config.num_hidden_layers = len(model.model.layers)
    model.requires_grad_(False)
    for layer in (*layers[:ends], *layers[-ends:]):
        layer.requires_grad_(True)


def _cut(module: Any, rows: int | None = None, columns: int | None = None) -> None:
    """Keep the first rows and columns of a linear module, and of its low-rank product."""

    def keep(holder: Any, name: str, index: Any) -> None:
        old = getattr(holder, name)
        setattr(holder, name, nn.Parameter(torch.empty_like(old[index]).detach(), requires_grad=old.requires_grad))

    base = getattr(module, "base_layer", module)
    keep(base, "weight", (slice(rows), slice(columns)))
    if base.bias is not None:
        keep(base, "bias", (slice(rows),))
    if base is not module:
        keep(module.lora_A["default"], "weight", (slice(None), slice(columns)))
        keep(module.lora_B["default"], "weight", (slice(rows),))


def _mask(module: Any) -> None:
    """Zhang et al. 2024, algorithm 1: what a module gives is masked row by row, the product of the low-rank matrices with it."""
    base = getattr(module, "base_layer", module)
    mask = torch.ones(base.weight.shape[0], dtype=base.weight.dtype, device=base.weight.device)
    module.register_buffer("mask", mask)
    module.register_forward_hook(lambda module, _, out: out.mul_(module.mask))


def prune(model: Any, part: Any) -> None:
    """Zhang et al. 2024, section 3.3, and Hedegaard et al. 2022, section 3: masked at the start of a run, cut at its end."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = round(config.num_key_value_heads * (1 - part.ratio))
    queries = config.num_attention_heads // config.num_key_value_heads * keys
    channels = 64 * round(config.intermediate_size * (1 - part.ratio) / 64)
    rows = {"q": queries * head, "k": keys * head, "v": keys * head, "gate": channels, "up": channels}
    for layer in model.model.layers:
        for owner, names in ((layer.self_attn, ("q", "k", "v")), (layer.mlp, ("gate", "up"))):
            for name in names:
                module = getattr(owner, f"{name}_proj")
                if part.moment == "end":
                    _cut(module, rows=rows[name])
                else:
                    _mask(module)
        if part.moment == "end":
            _cut(layer.self_attn.o_proj, columns=queries * head)
            _cut(layer.mlp.down_proj, columns=channels)


class Hypermodel(nn.Module):
    """Phang et al. 2023, section 3: a model that reads examples; a linear map from its last states to every layer's prefix."""

    def __init__(self, model: Any, part: Any, kind: dict[str, Any]) -> None:
        super().__init__()
        config = copy.deepcopy(model.config)
        config.num_hidden_layers = part.hyper_layers or config.num_hidden_layers
        with torch.device(kind["device"]):
            self.body = type(model.model)(config).to(kind["dtype"])
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (2 * model.config.num_hidden_layers, config.num_key_value_heads, head)
        width = self.shape[0] * self.shape[1] * self.shape[2]
        self.head = nn.Linear(config.hidden_size, width, **kind)
        self.rows, self.length, self.vocabulary = part.num_virtual_tokens, part.example_tokens, config.vocab_size

    def forward(self, batch: int) -> Any:
        examples = torch.randint(0, self.vocabulary, (batch, self.length), device=self.head.weight.device)
        states_BSH = self.body(input_ids=examples, use_cache=False).last_hidden_state
        wide = self.head(states_BSH[:, -self.rows :])
        return wide.view(batch, self.rows, *self.shape).permute(2, 0, 3, 1, 4).split(2)


def write_prefixes(model: Any, part: Any) -> None:
    """The frozen model attends over what the hypermodel wrote, joined to each layer's own keys and values."""
    from transformers import DynamicCache

    class Prefixes(DynamicCache):  # type: ignore[misc]
        """What a layer is given, and nothing of what it made."""

        def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
            layer = self.layers[layer_idx]
            joined = torch.cat([layer.keys, keys], -2), torch.cat([layer.values, values], -2)
            layer.keys = layer.values = None
            return joined

    weight = model.model.embed_tokens.weight
    model.requires_grad_(False)
    hyper = Hypermodel(model, part, {"dtype": weight.dtype, "device": weight.device})
    model.hyper = hyper
    inner = model.forward

    def forward(input_ids: torch.Tensor, **given: Any) -> Any:
        return inner(input_ids=input_ids, past_key_values=Prefixes(hyper(input_ids.shape[0])), **given)

    model.forward = forward


INSTALL = {"offsite_tuning": shorten, "pruned_base": prune, "hypertuning": write_prefixes}

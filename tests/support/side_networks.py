"""Networks beside a frozen model, in plain PyTorch as their papers write them. B batch, S length, H width."""

import copy
from typing import Any

import torch
from torch import nn


class Blend(nn.Module):
    """`g a + (1 - g) b` with a trained gate."""

    def __init__(self, kind: dict[str, Any]) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1, **kind))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self.gate)
        return share * a + (1 - share) * b


class Tuner(nn.Module):
    """Jiang et al. 2023, the Res-Adapter: a bottleneck with the identity added."""

    def __init__(self, width: int, inner: int, kind: dict[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner, **kind), nn.Linear(inner, width, **kind)

    def forward(self, x_BSH: torch.Tensor) -> torch.Tensor:
        return x_BSH + self.up(nn.functional.gelu(self.down(x_BSH)))


class Ladder(nn.Module):
    """Sung, Cho and Bansal 2022, section 3: the state goes on at each layer's output."""

    def __init__(self, model: Any, part: Any, kind: dict[str, Any], blends: bool) -> None:
        super().__init__()
        wide = model.config
        config = copy.deepcopy(wide)
        for name in ("hidden_size", "intermediate_size"):
            setattr(config, name, getattr(wide, name) // part.reduction_factor)
        config.head_dim = (
            getattr(wide, "head_dim", None) or wide.hidden_size // wide.num_attention_heads
        ) // part.reduction_factor
        layers = list(model.model.layers)
        with torch.device(kind["device"]):
            self.layers = nn.ModuleList([type(layer)(config, i) for i, layer in enumerate(layers)]).to(kind["dtype"])
            self.rotary = type(model.model.rotary_emb)(config)
        self.start = nn.Linear(wide.hidden_size, config.hidden_size, bias=False, **kind)
        self.end = nn.Linear(config.hidden_size, wide.hidden_size, bias=False, **kind)
        count = len(layers) if blends else 0
        self.downs = nn.ModuleList([nn.Linear(wide.hidden_size, config.hidden_size, bias=False, **kind) for _ in range(count)])
        self.blends = nn.ModuleList([Blend(kind) for _ in range(count)])
        self.out = None if blends else Blend(kind)
        self.tables: Any = None

    def first(self, h: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        self.tables = self.rotary(h, given["position_ids"])
        out: torch.Tensor = self.start(h)
        return out

    def step(self, index: int, h: torch.Tensor, s: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        if self.blends:
            s = self.blends[index](s, self.downs[index](h))
        out: torch.Tensor = self.layers[index](s, **{**given, "position_embeddings": self.tables})
        return out

    def last(self, h: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        self.tables = None
        up: torch.Tensor = self.end(s)
        return up if self.out is None else self.out(h, up)


class Bypass(nn.Module):
    """Jiang et al. 2023, Res-Tuning-Bypass."""

    def __init__(self, model: Any, part: Any, kind: dict[str, Any]) -> None:
        super().__init__()
        width, count = model.config.hidden_size, len(model.model.layers)
        self.start = Tuner(width, part.bottleneck, kind)
        self.across = nn.ModuleList([Tuner(width, part.bottleneck, kind) for _ in range(count)])
        self.along = nn.ModuleList([Tuner(width, part.bottleneck, kind) for _ in range(count)])
        self.blends = nn.ModuleList([Blend(kind) for _ in range(count)])

    def first(self, h: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        out: torch.Tensor = self.start(h)
        return out

    def step(self, index: int, h: torch.Tensor, s: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        out: torch.Tensor = self.blends[index](self.across[index](h), self.along[index](s))
        return out

    def last(self, h: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return s


class Policy(Ladder):
    """Lu et al. 2023, equation 1: a small language model of its own; its logits are added to the frozen model's."""

    def __init__(self, model: Any, part: Any, kind: dict[str, Any]) -> None:
        super().__init__(model, part, kind, blends=False)
        width, vocabulary = self.start.out_features, model.config.vocab_size
        self.start = nn.Embedding(vocabulary, width, **kind)
        self.norm = type(model.model.norm)(width).to(**kind)
        self.end, self.out = nn.Linear(width, vocabulary, bias=False, **kind), None
        self.ids: Any = None
        self.count = len(model.model.layers)
        model.model.embed_tokens.register_forward_pre_hook(lambda _, args: setattr(self, "ids", args[0]))
        model.lm_head.register_forward_hook(self.add)

    def first(self, h: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        self.tables = self.rotary(h, given["position_ids"])
        out: torch.Tensor = self.start(self.ids)
        return out

    def add(self, _: nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.pending.pop()

    pending: list[torch.Tensor]


class PolicyEnds(nn.Module):
    """The model's last norm; the policy's last layer and head run beside it."""

    def __init__(self, inner: nn.Module, side: list[Any], states: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.side, self.states = inner, side, states

    def forward(self, h: torch.Tensor) -> Any:
        (side,) = self.side
        normed = self.inner(h)
        s = side.step(side.count - 1, h, self.states.pop("s"), self.states.pop("given"))
        side.pending = [side.end(side.norm(s))]
        side.tables = None
        return normed


class Beside(nn.Module):
    """A frozen layer, before which the network beside it reads what enters."""

    def __init__(self, inner: nn.Module, index: int, side: list[Any], states: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.index, self.side, self.states = inner, index, side, states

    def forward(self, h: torch.Tensor, **given: Any) -> Any:
        (side,) = self.side
        if self.index == 0:
            self.states["s"] = side.first(h, given)
            self.states["given"] = given
        else:
            self.states["s"] = side.step(self.index - 1, h, self.states.pop("s"), given)
        return self.inner(h, **given)


class Ends(nn.Module):
    """The model's last norm, which gets what the network beside the layers made."""

    def __init__(self, inner: nn.Module, count: int, side: list[Any], states: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.count, self.side, self.states = inner, count, side, states

    def forward(self, h: torch.Tensor) -> Any:
        (side,) = self.side
        s = side.step(self.count - 1, h, self.states.pop("s"), self.states.pop("given"))
        x = side.last(h, s)
        del s
        return self.inner(x)


def install(model: Any, part: Any) -> None:
    """Put a side network beside a model of transformers."""
    weight = model.model.embed_tokens.weight
    kind = {"dtype": weight.dtype, "device": weight.device}
    if part.label == "res_tuning":
        side: Any = Bypass(model, part, kind)
    else:
        side = Policy(model, part, kind) if part.label == "ipa" else Ladder(model, part, kind, blends=part.label == "lst")
    model.side = side
    states: dict[str, Any] = {}
    count = len(model.model.layers)
    for index, layer in enumerate(list(model.model.layers)):
        model.model.layers[index] = Beside(layer, index, [side], states)
    norm = model.model.norm
    model.model.norm = PolicyEnds(norm, [side], states) if part.label == "ipa" else Ends(norm, count, [side], states)

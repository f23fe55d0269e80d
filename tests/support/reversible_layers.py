"""Liao, Tan and Monz 2023, MEFT1 and MEFT2: two streams, inverted in the backward. B batch, S length, H width."""

from typing import Any

import torch
from torch import nn


class Adapter(nn.Module):
    """A bottleneck without the identity."""

    def __init__(self, width: int, inner: int, kind: dict[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner, **kind), nn.Linear(inner, width, **kind)

    def forward(self, x_BSH: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.up(torch.relu(self.down(x_BSH)))
        return out


class Layer(nn.Module):
    """Equations 1 and 2, and their inverse."""

    def __init__(self, inner: nn.Module, part: Any, width: int, kind: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.rev_adapter = inner, Adapter(width, part.bottleneck, kind)
        self.first = part.f_arch == "layer"

    def functions(self, given: dict[str, Any]) -> Any:
        def layer(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x, **given)
            return out

        return (layer, self.rev_adapter) if self.first else (self.rev_adapter, layer)

    def forward(self, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        f, g = self.functions(given)
        x1, x2 = x.chunk(2)
        y1 = 0.1 * x1 + f(x2)
        y2 = 0.1 * x2 + g(y1)
        return torch.cat([y2, y1])

    def back(self, y: torch.Tensor, dy: torch.Tensor, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        f, g = self.functions(given)
        y2, y1 = y.chunk(2)
        dy2, dy1 = dy.chunk(2)
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_(True)
            changed = g(y1)
            changed.backward(dy2)
        x2 = (y2 - changed) / 0.1
        del changed, y2
        assert y1.grad is not None
        dy1 += y1.grad
        y1 = y1.detach()
        with torch.enable_grad():
            x2.requires_grad = True
            changed = f(x2)
            changed.backward(dy1)
        x1 = (y1 - changed.detach()) / 0.1
        del changed, y1
        assert x2.grad is not None
        dy2 *= 0.1
        dy2 += x2.grad
        dy1 *= 0.1
        x2 = x2.detach()
        return torch.cat([x1, x2]), torch.cat([dy1, dy2])


class Stack(torch.autograd.Function):
    """All layers: only the last output is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: Any, given: dict[str, Any], _: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x, given)
        ctx.save_for_backward(x.detach())
        ctx.layers, ctx.given = layers, given
        return x

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (y,) = ctx.saved_tensors
        for layer in reversed(ctx.layers):
            y, dy = layer.back(y, dy, ctx.given)
        return None, None, None, None


class All(nn.Module):
    """Stands for the only layer of the model: two streams through the real ones, then their mean."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h: torch.Tensor, **given: Any) -> torch.Tensor:
        pair = torch.cat([h, h])
        y: torch.Tensor = Stack.apply(pair, list(self.layers), given, torch.empty(1, device=h.device, requires_grad=True))
        del pair
        one, two = y.chunk(2)
        return (one + two) / 2


def install(model: Any, part: Any) -> None:
    """Make the layers of a model of transformers reversible; other parts are in them already."""
    weight = model.model.embed_tokens.weight
    kind = {"dtype": weight.dtype, "device": weight.device}
    layers = [Layer(layer, part, model.config.hidden_size, kind) for layer in model.model.layers]
    model.model.layers = nn.ModuleList([All(layers)])

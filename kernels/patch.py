"""Make the LoRA layers of a `peft` model run as LoRA linears, and back.

The model stays what it is: modules, parameters, state dict, adapters, saving and loading. A patched layer reads its own state
at each call; whatever a LoRA linear cannot do (merged or disabled adapters, several at a time, DoRA, mixed batches, hooks) runs
PEFT's code as before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.lora_linear import lora_linear
from tuneplan.kernels.peft_layers import read, why_left_alone
from tuneplan.kernels.shared_input import SharedInput, shared_inputs


@dataclass(frozen=True, slots=True)
class PatchReport:
    """What became of a model's layers, by their names in `named_modules`.

    Args:
        patched: layers that run as LoRA linears.
        sharing: of those, layers that read one input together.
        left_alone: layers with adapters that run PEFT's code, and why.
    """

    patched: tuple[str, ...]
    sharing: tuple[tuple[str, ...], ...]
    left_alone: dict[str, str]

    def __str__(self) -> str:
        """A few lines."""
        lines = [f"{len(self.patched)} LoRA layers patched, {sum(map(len, self.sharing))} of them in {len(self.sharing)} groups"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_alone.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"{len(names)} left alone ({names[0]}, ...): {reason}" for reason, names in reasons.items()]
        return "\n".join(lines)


class PatchedForward:
    """The forward of a patched layer, in the layer's place for one.

    Args:
        layer: PEFT's layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.shared: SharedInput | None = None
        self.index = 0

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What PEFT's layer would give for an input [..., in_features]."""
        layer = self.layer
        reading = None if args or kwargs else read(layer, x)
        if reading is None:
            return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]  # forward of a module is Any
        if self.shared is not None:
            output = self.shared.output(self.index, x, reading)
            if output is not None:
                return output
        member, compute = reading
        return lora_linear(
            x,
            member.weight,
            member.A,
            member.B,
            scale=member.scale,
            bias=member.bias,
            dropout=member.dropout,
            compute_dtype=compute,
        )


class _DropWaiting:
    """A hook after the module whose layers share an input: outputs that nobody came for do not outlive its forward."""

    def __init__(self, shared: SharedInput) -> None:
        self.shared = shared

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.shared.drop()


def patch(model: nn.Module, *, share: bool = True) -> PatchReport:
    """Make a model's LoRA layers run as LoRA linears.

    Supported are LoRA adapters of `peft` over linear layers: dense, bitsandbytes' 4-bit and LLM.int8. Results agree with PEFT's
    within rounding, with these differences: sums are rounded less often; the backward pass decodes a 4-bit weight to the dtype of
    the products, where bitsandbytes decodes to the dtype that the weight was quantized from and casts; a layer of LLM.int8 in
    training multiplies by the decoded weight, where bitsandbytes on a GPU rounds inputs to eight bits.

    Calling it again, after adapters were added, patches what is new.

    Args:
        model: with adapters, after `get_peft_model`, `PeftModel.from_pretrained` or `add_adapter`.
        share: let layers that their module calls with one input read it together.

    Returns:
        What was patched, and what was not and why.

    Raises:
        KernelInputError: where peft is missing or the model has no adapters of it.
    """
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise KernelInputError("patch needs peft, which is not installed: pip install peft") from None
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if not layers:
        raise KernelInputError(
            f"{type(model).__name__} has no adapter layers of peft; patch the model that get_peft_model returns, after adapters"
            " are added"
        )
    unpatch(model)
    left_alone: dict[str, str] = {}
    patched = {}
    for name, layer in layers.items():
        reason = why_left_alone(layer)
        if reason is not None:
            left_alone[name] = reason
            continue
        patched[name] = PatchedForward(layer)
        layer.forward = patched[name]
    sharing = tuple(_share(model, patched)) if share else ()
    return PatchReport(tuple(patched), sharing, left_alone)


def unpatch(model: nn.Module) -> int:
    """Give a model's layers PEFT's forward back; a copy of a patched model too.

    Returns:
        How many layers were patched.
    """
    count = 0
    for module in model.modules():
        if isinstance(vars(module).get("forward"), PatchedForward):
            del module.forward
            count += 1
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _DropWaiting)]:
            del module._forward_hooks[key]
            module._forward_hooks_always_called.pop(key, None)
    return count


def _share(model: nn.Module, patched: dict[str, PatchedForward]) -> Iterator[tuple[str, ...]]:
    """Join layers of one module that it calls with one input; their names."""
    for parent, module in model.named_modules():
        prefix = parent + "." if parent else ""
        names = [name for name, _ in module.named_children() if prefix + name in patched]
        if len(names) < 2:
            continue
        for group in shared_inputs(module, names):
            members = [patched[prefix + name] for name in group]
            shared = SharedInput([member.layer for member in members])
            for index, member in enumerate(members):
                member.shared, member.index = shared, index
            module.register_forward_hook(_DropWaiting(shared), always_call=True)
            yield tuple(prefix + name for name in group)

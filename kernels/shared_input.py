"""Layers of one module that read one input: q, k and v of an attention, gate and up of a feed-forward.

Which they are is read from the module's code, once: calls `self.q_proj(hidden_states)` in one block, with one variable that is
not set in between. In each forward pass it is checked again: the first layer that is called computes all of them, and the
others get their output if they are handed the same tensor, unchanged, in the same state. Else they compute their own.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tuneplan.kernels.backend import autocast_of
from tuneplan.kernels.lora_linear import lora_linears
from tuneplan.kernels.peft_layers import Reading, read

_MAY_NOT_RUN = (
    *(ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.Lambda, ast.IfExp, ast.BoolOp),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
"""What may run a part of itself not at all, or more than once."""


def shared_inputs(module: nn.Module, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Children of a module that its code calls with one input, in the order of the calls.

    Args:
        module: with the children.
        names: children to look for.

    Returns:
        Groups of two and more; none where the code cannot be read.
    """
    try:
        root = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(module.forward)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return []
    if not isinstance(root, ast.FunctionDef) or not root.args.args:
        return []
    parents = {
        child: (node, field)
        for node in ast.walk(root)
        for field, value in ast.iter_fields(node)
        for child in (value if isinstance(value, list) else [value])
        if isinstance(child, ast.AST)
    }
    mentions: dict[str, list[ast.Attribute]] = {}
    for node in ast.walk(root):
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == root.args.args[0].arg
        if own and isinstance(node, ast.Attribute) and node.attr in names:
            mentions.setdefault(node.attr, []).append(node)
    calls: dict[tuple[str, tuple[tuple[int, str], ...]], list[tuple[int, int, str]]] = {}
    for name, (first, *more) in mentions.items():
        call = parents[first][0]
        if more or not isinstance(call, ast.Call) or call.func is not first or len(call.args) != 1 or call.keywords:
            continue
        argument = call.args[0]
        if isinstance(argument, ast.Name):
            place = (first.end_lineno or first.lineno, first.end_col_offset or 0, name)
            calls.setdefault((argument.id, _blocks(call, root, parents)), []).append(place)
    return [
        tuple(name for _, _, name in sorted(members))
        for (variable, _), members in calls.items()
        if len(members) > 1 and not _is_set(root, variable, range(min(members)[0], max(members)[0] + 1))
    ]


def _blocks(node: ast.AST, root: ast.AST, parents: dict[ast.AST, tuple[ast.AST, str]]) -> tuple[tuple[int, str], ...]:
    """The branches around a node, those of one block alike."""
    found = []
    while node is not root:
        node, field = parents[node]
        if isinstance(node, _MAY_NOT_RUN) and node is not root:
            found.append((id(node), field))
    return tuple(found)


def _is_set(root: ast.AST, variable: str, lines: range) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == variable and not isinstance(node.ctx, ast.Load) and node.lineno in lines
        for node in ast.walk(root)
    )


class SharedInput:
    """The layers of one group, and outputs that wait for their layer's call.

    Args:
        layers: PEFT's layers, in the order of their calls.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layers)
        self.waiting: dict[int, tuple[torch.Tensor, tuple[Any, ...]]] = {}
        self.x: torch.Tensor | None = None

    def output(self, index: int, x: torch.Tensor, reading: Reading) -> torch.Tensor | None:
        """The output of a layer for an input, or None where it has to compute its own.

        Args:
            index: of the layer that is called.
            x: what it is handed.
            reading: the layer as it is now.
        """
        if torch.compiler.is_compiling() or x.is_inference():  # neither tells whether x was changed
            return None
        if index in self.waiting:
            output, state = self.waiting.pop(index)
            if x is self.x and state == _state(x, reading):
                if not self.waiting:
                    self.x = None
                return output
            self.drop()
            return None
        self.drop()
        if index:  # the first had code of PEFT's to run, or another input
            return None
        readings = [reading if at == index else read(layer, x) for at, layer in enumerate(self.layers)]
        members = [one for one in readings if one is not None]
        if len(members) < len(readings) or len({_kind(one) for one in members}) > 1:
            return None
        outputs = lora_linears(x, [member for member, _ in members], compute_dtype=members[0][1])
        self.x = x
        self.waiting = {at: (outputs[at], _state(x, one)) for at, one in enumerate(members) if at != index}
        return outputs[index]

    def drop(self) -> None:
        """Forget outputs that nobody came for."""
        self.waiting, self.x = {}, None


def _kind(reading: Reading) -> tuple[Any, ...]:
    """What layers must have in common to be computed together."""
    member, compute = reading
    return isinstance(member.weight, torch.Tensor), compute, member.A.dtype


def _state(x: torch.Tensor, reading: Reading) -> tuple[Any, ...]:
    """All that an output depends on, so that any change between two calls is seen."""
    member, compute = reading
    kind = autocast_of(x.device)
    weight = member.weight if isinstance(member.weight, torch.Tensor) else member.weight.data
    tensors = (x, weight, member.A, member.B, *([] if member.bias is None else [member.bias]))
    return (
        *((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors),
        (member.scale, member.dropout, compute),
        (torch.is_grad_enabled(), torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)),
    )

"""What operators give on the meta device, remembered: a trace runs the same few hundred operators again and again.

torch computes shapes and strides of a result in Python, at tens of microseconds an operator, and they depend on nothing but those
of the inputs. An operator is remembered only where its schema says that it neither changes an input nor gives a view of one, and
where each result has a dense storage of its own; or where it is one of those that write into their first input, which on meta
does nothing. Every other call is left to torch, and so is the first of each kind, with all its checks.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Figures: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a result."""

MOST = 50_000
"""Calls remembered; then all are forgotten, which costs little."""
IN_PLACE = frozenset(
    f"aten::{name}_"
    for name in (
        *("add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp", "sqrt", "neg", "pow", "clamp", "copy", "fill", "zero"),
        *(
            f"_foreach_{name}"
            for name in ("add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp", "sqrt", "neg", "copy", "zero")
        ),
    )
)
"""Operators that write into their first input, or inputs, and leave their shape, strides and storage as they are."""
_PURE, _WRITES, _OTHER = "pure", "writes", "other"
_PLAIN = (int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_kinds: dict[Any, str] = {}
_known: dict[Any, Any] = {}


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator under a dispatch mode: as the operator gives it, or a fresh one like it."""
    kind = _kinds.get(func)
    if kind is None:
        kind = _kinds[func] = _kind(func)
    if kind is _OTHER:
        return func(*args, **kwargs)
    met: list[torch.Tensor] = []
    try:
        key = (func, torch.get_default_dtype(), _key(args, met), _key(tuple(kwargs.items()), met))
    except TypeError:  # something in it cannot be told by its value
        return func(*args, **kwargs)
    if not met:
        return func(*args, **kwargs)
    if key not in _known:
        out = func(*args, **kwargs)
        if len(_known) >= MOST:
            _known.clear()
        _known[key] = True if kind is _WRITES else _figures(out, met)
        return out
    found = _known[key]
    if found is None:
        return func(*args, **kwargs)
    if kind is _WRITES:
        return None if isinstance(args[0], list | tuple) else args[0]
    several, figures = found
    if several is None:
        return _fresh(figures[0])
    return several([None if each is None else _fresh(each) for each in figures])


def _fresh(figures: Figures) -> torch.Tensor:
    shape, stride, dtype = figures
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _kind(func: Any) -> str:
    """Whether an operator gives tensors of its own and leaves its inputs as they are, by its schema, or is one of IN_PLACE."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return _OTHER
    if schema.name in IN_PLACE:
        return _WRITES
    if not schema.returns or any(argument.alias_info is not None for argument in schema.arguments):
        return _OTHER
    given = all(
        value.alias_info is None and str(value.type) in ("Tensor", "Optional[Tensor]", "List[Tensor]") for value in schema.returns
    )
    return _PURE if given else _OTHER


def _key(values: Any, met: list[torch.Tensor]) -> Any:
    """Arguments as something to remember by. Raises TypeError for what is no plain value and no plain tensor on meta."""
    key: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if not value.is_meta or value.layout is not torch.strided or value.dtype.is_complex:
                raise TypeError
            met.append(value)
            key.append((value.shape, value.stride(), value.dtype))
        elif value is None or kind in _PLAIN:
            key.append((kind, value))
        elif isinstance(value, tuple | list):
            key.append((kind, _key(value, met)))
        else:
            raise TypeError
    return tuple(key)


def _figures(out: Any, met: list[torch.Tensor]) -> tuple[type[Any] | None, tuple[Figures | None, ...]] | None:
    """Of one result, or of a tuple or list; None where one of them is not a dense tensor with a storage of its own."""
    several = type(out) if isinstance(out, tuple | list) else None
    storages = {tensor.untyped_storage()._cdata for tensor in met}
    found: list[Figures | None] = []
    for tensor in (out,) if several is None else out:
        if tensor is None and several is not None:
            found.append(None)
            continue
        if type(tensor) is not torch.Tensor or not tensor.is_meta or tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage()
        whole = tensor.numel() * tensor.element_size()
        if storage._cdata in storages or tensor.storage_offset() or storage.nbytes() != whole or tensor.dtype.is_complex:
            return None
        storages.add(storage._cdata)
        found.append((tensor.shape, tensor.stride(), tensor.dtype))
    return several, tuple(found)

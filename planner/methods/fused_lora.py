"""LoRA layers of a model patched with `tuneplan.kernels.patch`: one node of autograd, the adapter's product first.

Mirrors kernels/lora_function.py: x, S = x A^T and the stored weight are kept; the frozen weight's product accumulates into the
adapter's, forward and backward; a 4-bit weight is decoded in one launch, without fp32 scales. Each layer is counted by itself;
layers that share an input hold and read less. Not counted: the one-pass program's partial sums. Under autocast, whose stand-in on
the meta device patched layers do not see, nothing was held against a trace.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient, Tape
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, elements, round_block, tensor_bytes

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Site

HIGHEST_RANK_IN_ONE_PASS = 32
"""Of kernels/lora_grad.py: beyond, the gradient of the output is read twice, in the adapter's dtype."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One call of an adapted layer.

    Attributes:
        tape: where it is recorded.
        site: the layer.
        x: its input, `(..., in)`.
        adapter: dtype of the adapter's products.
        compute: dtype of the frozen weight's products.
        out: dtype of the output.
        dropout: probability of dropping an input of A.
    """

    tape: Tape
    site: "Site"
    x: Tensor
    adapter: str
    compute: str
    out: str
    dropout: float

    @property
    def tokens(self) -> Size:
        """Rows of x."""
        return elements(self.x.shape[:-1])

    def of_x(self, dtype: str) -> Size:
        """Bytes of x in a dtype."""
        return round_block(tensor_bytes(self.x.shape, dtype))

    @property
    def output_shape(self) -> tuple[Size, ...]:
        """`(..., out)`."""
        return (*self.x.shape[:-1], self.site.weight.shape[0])

    def of_y(self, dtype: str) -> Size:
        """Bytes of the output in a dtype."""
        return round_block(tensor_bytes(self.output_shape, dtype))

    def above_gradient(self, size_bytes: Size) -> Size:
        """What is held before the gradient of x is there, beyond the room that it takes then."""
        more = size_bytes - (self.of_x(self.x.dtype) if self.x.requires_grad else 0)
        return (more > 0) * more


def record(model: "Assembly", site: "Site", x: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
    """The adapted layer's output. The dtypes are those of kernels/lora_linear.py `dtypes`.

    Shapes: x `(..., in)`, a `(rank, in)`, b `(out, rank)` -> `(..., out)`.
    """
    tape = model.tape
    compute = tape.autocast or (model.settings.dtype if site.form else x.dtype)
    out = (_wider(x.dtype, compute) if site.form else compute) if tape.autocast else x.dtype
    layer = _Layer(tape, site, x, tape.autocast or a.dtype, compute, out, dropout)
    cast = pw.cast(tape, pw.detached(x), layer.adapter)
    inner = _first_product(layer, cast, a)
    y = _frozen_product(layer, _second_product(layer, inner, b))
    tape.hold(cast)
    # a Python function's tensors are saved once its forward is over: checkpointing runs it to its end
    tape.ops[-1].saves = True
    return y


def _first_product(layer: _Layer, cast: Tensor, a: Tensor) -> Tensor:
    """S = drop(x) A^T. With the gradient of A counts the adapter's part of the gradient of x."""
    tape, x = layer.tape, layer.x
    rank, in_features = a.shape
    inner = tape.fresh((*x.shape[:-1], rank), layer.adapter, x.requires_grad or a.requires_grad)
    kept = cast if layer.adapter != x.dtype and x.dtype == "fp32" else pw.detached(x)
    saved: tuple[Tensor, ...] = (kept,) if a.requires_grad else ()
    read: tuple[Tensor, ...] = (cast,)
    dropped: Size = 0
    if layer.dropout:
        mask = Tensor(Storage(tensor_bytes(x.shape, "bool"), tape.category), x.shape, "bool")
        tape.record("dropout_mask", (), mask, moved=mask.nbytes)
        saved, read, dropped = (*saved, mask), (cast, mask), layer.of_x(layer.adapter)
    again = layer.of_x(layer.adapter) if kept.dtype != layer.adapter else 0
    flops: Size = 2 * layer.tokens * rank * in_features
    moved = cast.nbytes + a.nbytes + inner.nbytes
    gradient = Gradient(
        a,
        round_block(a.nbytes),
        scratch=layer.above_gradient(again + 2 * dropped),  # a masked copy, and the same scaled
        flops=flops * (1 + x.requires_grad),
        moved=moved * (1 + x.requires_grad),
        dims=(rank, in_features, layer.tokens),
    )
    tape.record("lora_A", read, inner, saved=saved, gradients=(gradient,), scratch=dropped, flops=flops, moved=moved)
    tape.ops[-1].dims = (layer.tokens, rank, in_features)
    return inner


def _second_product(layer: _Layer, inner: Tensor, b: Tensor) -> Tensor:
    """The adapter's product, scale * S B^T: it lies in the layer's output and has no storage of its own."""
    out_features, rank = b.shape
    product = Tensor(Storage(0, layer.tape.category), layer.output_shape, layer.adapter, True)
    one_pass = rank <= HIGHEST_RANK_IN_ONE_PASS and (layer.adapter != "fp32" or layer.out == "bf16")
    read = tensor_bytes(layer.output_shape, layer.out) if one_pass else 4 * tensor_bytes(layer.output_shape, layer.adapter)
    recast = layer.of_y(layer.adapter) if not one_pass and layer.out != layer.adapter else 0
    flops: Size = 2 * layer.tokens * rank * out_features
    moved = inner.nbytes + b.nbytes
    gradients = (
        Gradient(
            inner,
            round_block(inner.nbytes),
            scratch=recast,
            flops=flops,
            moved=moved + read,
            dims=(layer.tokens, rank, out_features),
        ),
        Gradient(b, round_block(b.nbytes), flops=flops, moved=moved, dims=(out_features, rank, layer.tokens)),
    )
    saved = (inner,) if b.requires_grad else ()
    layer.tape.record("lora_B", (inner, b), product, saved=saved, gradients=gradients, flops=flops, moved=moved)
    layer.tape.ops[-1].dims = (layer.tokens, out_features, rank)
    return product


def _frozen_product(layer: _Layer, product: Tensor) -> Tensor:
    """The frozen weight's product and bias, added to the adapter's product; its gradient of x is added to the adapter's part."""
    tape, site, x, compute = layer.tape, layer.site, layer.x, layer.compute
    out_features, in_features = site.weight.shape
    decodes = bool(site.form) or site.weight.dtype != compute
    dense = round_block(tensor_bytes(site.weight.shape, compute)) if decodes else 0
    narrow = layer.of_x(compute) if x.dtype != compute != layer.adapter else 0
    y = tape.fresh(layer.output_shape, layer.out, True)
    flops: Size = 2 * layer.tokens * out_features * in_features
    stored = site.stored_bytes if site.form else site.weight.nbytes
    sums = _wider(compute, x.dtype)
    back = dense + (layer.of_y(compute) if layer.out != compute else 0)
    back = back + (layer.of_x(compute) if sums != compute else 0) + (layer.of_x(sums) if sums != x.dtype else 0)
    # the adapter's part comes first, in the sum's dtype or a wider one of its own: dropped anew, or cast to that of the sum
    part_of = sums if _wider(layer.adapter, sums) == sums else layer.adapter
    parts = [3 * layer.of_x(part_of)] if layer.dropout else []
    parts += [layer.of_x(part_of) + layer.of_x(sums)] if part_of != sums else []
    for part in parts:
        first = layer.above_gradient(part)
        back = back + (first > back) * (first - back)
    weights = site.weight.numel if site.form else 0
    gradients = [
        Gradient(
            x,
            round_block(x.nbytes),
            scratch=back,
            flops=flops,
            moved=y.nbytes + stored + 3 * x.nbytes,
            decoded=weights,
            dims=(layer.tokens, in_features, out_features),
        ),
        Gradient(product, None),
    ]
    inputs: tuple[Tensor, ...] = (x, product)
    if site.bias is not None:
        gradients.append(Gradient(site.bias, round_block(site.bias.nbytes), moved=y.nbytes))
        inputs = (*inputs, site.bias)
    scratch = dense + narrow + _apart(layer)
    moved = x.nbytes + stored + 3 * y.nbytes
    tape.record("lora_linear", inputs, y, gradients=tuple(gradients), scratch=scratch, flops=flops, moved=moved)
    tape.ops[-1].decoded, tape.ops[-1].computes, tape.ops[-1].saves = weights, compute, True
    tape.ops[-1].dims = (layer.tokens, out_features, in_features)
    return y


def _apart(layer: _Layer) -> Size:
    """Bytes of products that are not yet the output."""
    adapter, compute, out = layer.adapter, layer.compute, layer.out
    if _wider(compute, out) != compute:
        return layer.of_y(compute)
    return (layer.of_y(adapter) if adapter != compute else 0) + (layer.of_y(compute) if compute != out else 0)


def _wider(one: str, other: str) -> str:
    """`torch.promote_types`."""
    return one if one == other else "fp32"

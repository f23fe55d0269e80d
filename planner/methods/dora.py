"""DoRA: the norm of each column of the adapted weight is trained apart from its direction.

Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, equation 5 and section 4.3 (the norm is a constant in the
backward). Mirrors `DoraLinearLayer.forward` of peft 0.21 tuners/lora/dora.py, which multiplies an identity matrix through A
and B to get their product, and works in the adapter's dtype.
"""

from typing import TYPE_CHECKING

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor, elements

if TYPE_CHECKING:
    from tuneplan.planner.graph.tape import Tape
    from tuneplan.planner.models.assembly import Assembly, Site


def record(model: "Assembly", site: "Site", x: Tensor, y: Tensor | None, a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """What DoRA adds to a module's output.

    Args:
        model: where ops are recorded.
        site: the module.
        x: its input in the adapter's dtype, after dropout.
        y: its output, or None where dropout changed x, so that it is computed again.
        a: `(r, in_features)`.
        b: `(out_features, r)`.
        dtype: of the adapter.
    """
    tape = model.tape
    out_features, in_features = site.weight.shape
    magnitude = model.adapter(f"{site.module}.lora_magnitude_vector.weight", (out_features,), dtype)
    eye = tape.fresh((in_features, in_features), dtype, False)
    tape.record("eye", (), eye)
    low = _constant_product(tape, eye, a)
    delta = _constant_product(tape, low, b)
    tape.hold(eye, low)
    weight = model.dense_weight(site, dtype)
    scaled = pw.scale(tape, pw.detached(delta))
    total = pw.add(tape, pw.detached(weight), scaled)
    norm = tape.fresh((out_features,), dtype, False)
    tape.record("norm", (total,), norm)
    tape.hold(total)
    factor = pw.divide(tape, magnitude, norm)
    result = linear(tape, linear(tape, x, a), b)
    if y is None:
        y = linear(tape, x, weight)
    elif site.bias is not None:
        y = pw.add(tape, y, pw.detached(site.bias), "sub")
    own = pw.multiply(tape, pw.shift(tape, factor), y)
    scaled = pw.scale(tape, pw.multiply(tape, factor, result))
    out = pw.add(tape, own, scaled)
    tape.hold(x, delta, weight, y, factor, result)
    tape.discard(*([eye] if a.requires_grad else []), low)
    return out


def _constant_product(tape: "Tape", x: Tensor, weight: Tensor) -> Tensor:
    """A product whose graph nobody goes back through."""
    out_features, in_features = weight.shape
    out = tape.fresh((*x.shape[:-1], out_features), x.dtype, False)
    tape.record("linear", (x, weight), out, flops=2 * elements(x.shape[:-1]) * out_features * in_features)
    if weight.requires_grad:
        tape.save(x)
    return out

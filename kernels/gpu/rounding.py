"""fp32 to the type of a pointer, in the compiler and in the interpreter alike.

Triton's interpreter (3.6 and 3.9) cuts fp32 to bf16 instead of rounding it, and multiplies bf16 as whole numbers
(triton-lang/triton issues 4972, 10945 and 11584). There, values are rounded by hand and stored as 16-bit patterns.
"""

import triton
import triton.language as tl

from tuneplan.kernels.backend import interpreted

BY_HAND = tl.constexpr(interpreted())
"""Whether bf16 is rounded by hand. Read once, when the programs are decorated: set TRITON_INTERPRET before this import."""


@triton.jit
def rounded(values, kind: tl.constexpr):
    """fp32 values as they come back from a type: for the interpreter, whose products take fp32."""
    if kind == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        back = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    else:
        back = values.to(kind).to(tl.float32)
    return back


@triton.jit
def store(pointers, values, mask):
    """Store fp32 values, rounded to nearest even in the type that the pointers have."""
    kind: tl.constexpr = pointers.dtype.element_ty
    if BY_HAND and kind == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(values == values, rounded, 0x7FC0)  # noqa: PLR0124 -- not a number stays so
        tl.store(pointers.to(tl.pointer_type(tl.int16)), rounded.to(tl.int16), mask=mask)
    else:
        tl.store(pointers, values.to(kind), mask=mask)

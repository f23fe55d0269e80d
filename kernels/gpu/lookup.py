"""Half bytes to values of a table of 16: each thread holds one value of the table, and asks the thread that holds its own.

A shuffle (PTX ISA, `shfl.sync.idx`) reads a register of another thread of the warp, chosen by the five low bits of a number. Two
threads hold each value, so that the fifth bit does not matter: a shift and a shuffle a value, no memory, no wait for other warps.
All threads of a warp take part: what calls these functions has no branch that only some of them take.

Triton's interpreter knows no assembler, and other cards none of this; there, values are gathered.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.backend import interpreted

SHUFFLED = tl.constexpr(not interpreted() and torch.version.hip is None)
"""Whether values are looked up so. Read once, when the programs are decorated."""
_SHIFTS = (4, 0, 12, 8, 20, 16, 28, 24)
"""Of the half bytes of a word, in the order of its values: the high half of the lowest byte comes first."""


def _shuffled(into: str, table: str, word: str, shift: int) -> str:
    """`into` gets the value that belongs to four bits of `word`."""
    if not shift:
        return f"shfl.sync.idx.b32 {into}, {table}, {word}, 31, 0xffffffff;"
    return f"shr.u32 at, {word}, {shift};\nshfl.sync.idx.b32 {into}, {table}, at, 31, 0xffffffff;"


def _each(outputs: list[int], word: str, table: str) -> str:
    """Assembler that puts the values of a word, in their order, into outputs of 32 bits."""
    lines = [_shuffled(f"${number}", table, word, shift) for number, shift in zip(outputs, _SHIFTS, strict=True)]
    return "\n".join(["{", ".reg .b32 at;", *lines, "}"])


def _pairs() -> str:
    """Assembler that puts the values of $4 into pairs of 16 bits: of high halves into $0 and $1, of low ones into $2 and $3."""
    lines = []
    for output, place in enumerate((0, 4, 1, 5)):
        lines += [_shuffled("first", "$5", "$4", _SHIFTS[place]), _shuffled("second", "$5", "$4", _SHIFTS[place + 2])]
        lines.append(f"prmt.b32 ${output}, first, second, 0x5410;")
    return "\n".join(["{", ".reg .b32 at, first, second;", *lines, "}"])


OWN = tl.constexpr(
    "{\n.reg .b32 lane;\n.reg .b64 at;\nmov.u32 lane, %laneid;\nand.b32 lane, lane, 15;\n"
    "mad.wide.u32 at, lane, 4, $1;\nld.global.nc.f32 $0, [at];\n}"
)
WORD = tl.constexpr(_each(list(range(8)), "$8", "$9"))
WORD_OPERANDS = tl.constexpr(",".join(["=&f"] * 8 + ["r", "f"]))
PAIRS = tl.constexpr(_pairs())
PAIRS_OPERANDS = tl.constexpr(",".join(["=&r"] * 4 + ["r"] * 5))
BYTES = tl.constexpr(_each([0, 4, 1, 5, 2, 6, 3, 7], "$8", "$9"))
BYTES_OPERANDS = tl.constexpr(",".join(["=&f"] * 8 + ["r"] + ["f"] * 4))


@triton.jit
def table_of(code):
    """What the functions below take for a table of 16 fp32 values: of each thread one, or all of them in a tensor.

    To Triton the one value is a scalar, the same in all threads, which it is not: give it to nothing but these functions, and
    keep them out of what Triton hands from warp to warp (`warp_specialize`).
    """
    if SHUFFLED:
        table = tl.inline_asm_elementwise(OWN, "=f,l", [code], dtype=tl.float32, is_pure=True, pack=1)
    else:
        table = tl.load(code + tl.arange(0, 16))
    return table


@triton.jit
def values_of_words(word, table):
    """Eight fp32 tensors of the shape of the int32 `word`: its values in their order."""
    if SHUFFLED:
        values = tl.inline_asm_elementwise(WORD, WORD_OPERANDS, [word, table], dtype=(tl.float32,) * 8, is_pure=False, pack=1)
    else:
        values = (
            _gathered(word >> 4, table),
            _gathered(word, table),
            _gathered(word >> 12, table),
            _gathered(word >> 8, table),
            _gathered(word >> 20, table),
            _gathered(word >> 16, table),
            _gathered(word >> 28, table),
            _gathered(word >> 24, table),
        )
    return values


@triton.jit
def values_of_bytes(byte, table, like):
    """Two tensors of the shape of the uint8 `byte`: the values of its high and of its low half.

    They have the type of the pointer `like`, rounded to it; where they are gathered they have that of the table, fp32.
    """
    kind: tl.constexpr = like.dtype.element_ty
    if not SHUFFLED:
        high = _gathered(byte.to(tl.int32) >> 4, table)
        low = _gathered(byte.to(tl.int32), table)
    elif kind == tl.float32:
        high, low = tl.inline_asm_elementwise(
            BYTES, BYTES_OPERANDS, [byte, table], dtype=(tl.float32, tl.float32), is_pure=False, pack=4
        )
    else:
        bits = table.to(kind).to(tl.int16, bitcast=True).to(tl.int32)
        high, low = tl.inline_asm_elementwise(
            PAIRS, PAIRS_OPERANDS, [byte, bits], dtype=(tl.int16, tl.int16), is_pure=False, pack=4
        )
        high = high.to(kind, bitcast=True)
        low = low.to(kind, bitcast=True)
    return high, low


@triton.jit
def _gathered(number, table):
    return tl.reshape(tl.gather(table, tl.reshape(number & 15, (number.numel,)), 0), number.shape)

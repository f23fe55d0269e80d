"""Half bytes to values of a table that lies in registers: bytes permuted instead of memory read.

A table of 16 values of 16 bits is held as eight 32-bit numbers, the high bytes of the values in four and the low ones in four.
One permutation of bytes (PTX ISA, `prmt.b32`) takes four bytes out of eight, each by three bits of a half byte; a second takes
them out of the other half of the table, and a third chooses between the two by the fourth bit. High and low bytes are then put
together: 2.6 instructions a value, none of which reads memory or waits for another thread.

Triton's interpreter knows no assembler; there, and for fp32, the programs gather values instead.
"""

import torch
import triton
import triton.language as tl

from tuneplan.kernels.backend import interpreted

IN_REGISTERS = tl.constexpr(not interpreted() and torch.version.hip is None)
"""Whether tables of 16-bit values are looked up so. Read once, when the programs are decorated."""


def _permuted(word: str, high: list[str], low: list[str], taken: list[str]) -> str:
    """The assembler of one word: `even$n` and `odd$n` in `taken` get the values of bytes 2n and 2n + 1, as pairs of 16 bits.

    Args:
        word: operand of the eight half bytes.
        high: operands of the high bytes of the table, values 0-3, 4-7, 8-11 and 12-15.
        low: those of the low bytes.
        taken: what follows each half word, with `{even}` for the pair of high half bytes, which come first, and `{odd}`.
    """
    lines = [
        ".reg .b32 three, fourth, below, above, highs, lows, even, odd;",
        ".reg .b16 first, second;",
        f"and.b32 three, {word}, 0x77777777;",
        # 0 to 3 where the fourth bit is clear, 4 to 7 where it is set: the bytes of `below` and of `above`
        f"shr.u32 fourth, {word}, 1;",
        "lop3.b32 fourth, fourth, 0x44444444, 0x32103210, 0xEA;",
    ]
    for half in taken:
        for bytes_, table in (("highs", high), ("lows", low)):
            lines += [
                f"prmt.b32 below, {table[0]}, {table[1]}, three;",
                f"prmt.b32 above, {table[2]}, {table[3]}, three;",
                f"prmt.b32 {bytes_}, below, above, fourth;",
            ]
        lines += ["prmt.b32 even, lows, highs, 0x7351;", "prmt.b32 odd, lows, highs, 0x6240;", half]
        if half != taken[-1]:
            lines += ["shr.u32 three, three, 16;", "shr.u32 fourth, fourth, 16;"]
    return "\n".join(["{", *lines, "}"])


def _word_assembly() -> str:
    """Eight fp32 values of a word, in order: outputs $0 to $7, the word $8, the table $9 to $16 (fp16)."""
    to_fp32 = "mov.b32 {{first, second}}, {pair};\ncvt.f32.f16 ${at}, first;\ncvt.f32.f16 ${then}, second;"
    halves = []
    for half in range(2):
        pairs = [("even", 4 * half), ("odd", 4 * half + 1)]
        halves.append("\n".join(to_fp32.format(pair=pair, at=at, then=at + 2) for pair, at in pairs))
    return _permuted("$8", [f"${9 + number}" for number in range(4)], [f"${13 + number}" for number in range(4)], halves)


def _bytes_assembly() -> str:
    """Values of four bytes, $4: high halves in $0 and $1, low ones in $2 and $3; each number of the table comes four times."""
    high, low = ([f"${first + 4 * number}" for number in range(4)] for first in (5, 21))
    halves = [f"mov.b32 ${half}, even;\nmov.b32 ${half + 2}, odd;" for half in range(2)]
    return _permuted("$4", high, low, halves)


WORD = tl.constexpr(_word_assembly())
WORD_OPERANDS = tl.constexpr(",".join(["=&f"] * 8 + ["r"] * 9))
BYTES = tl.constexpr(_bytes_assembly())
BYTES_OPERANDS = tl.constexpr(",".join(["=&r"] * 4 + ["r"] * 33))
ZERO = tl.constexpr("mov.u32 $0, %lanemask_lt;\nshr.u32 $0, $0, 31;")
"""Nought, of which the assembler does not know that it is the same in all threads: a table that it knows to be the same
lies in uniform registers, from which each permutation has to copy it."""


@triton.jit
def _bits(code, at: tl.constexpr, kind: tl.constexpr):
    return tl.load(code + at).to(kind).to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def _four(code, at: tl.constexpr, kind: tl.constexpr):
    """The high bytes of four values, and the low ones."""
    a = _bits(code, at, kind)
    b = _bits(code, at + 1, kind)
    c = _bits(code, at + 2, kind)
    d = _bits(code, at + 3, kind)
    high = ((a >> 8) & 0xFF) | (b & 0xFF00) | ((c & 0xFF00) << 8) | ((d & 0xFF00) << 16)
    low = (a & 0xFF) | ((b & 0xFF) << 8) | ((c & 0xFF) << 16) | ((d & 0xFF) << 24)
    return high, low


@triton.jit
def table_of(code, kind: tl.constexpr):
    """Eight int32: the high bytes of a table of 16 fp32 values rounded to fp16 or bf16, then the low ones."""
    h0, l0 = _four(code, 0, kind)
    h1, l1 = _four(code, 4, kind)
    h2, l2 = _four(code, 8, kind)
    h3, l3 = _four(code, 12, kind)
    return h0, h1, h2, h3, l0, l1, l2, l3


@triton.jit
def kept(table):
    """The table in registers of each thread."""
    zero = tl.inline_asm_elementwise(ZERO, "=&r", [], dtype=tl.int32, is_pure=True, pack=1)
    h0, h1, h2, h3, l0, l1, l2, l3 = table
    return h0 | zero, h1 | zero, h2 | zero, h3 | zero, l0 | zero, l1 | zero, l2 | zero, l3 | zero


@triton.jit
def values_of_words(word, table):
    """Eight fp32 tensors, the values of each int32 in their order: the high half of the lowest byte first. `table` is of fp16."""
    h0, h1, h2, h3, l0, l1, l2, l3 = table
    operands = [word, h0, h1, h2, h3, l0, l1, l2, l3]
    return tl.inline_asm_elementwise(WORD, WORD_OPERANDS, operands, dtype=(tl.float32,) * 8, is_pure=True, pack=1)


@triton.jit
def values_of_bytes(byte, table, like):
    """Two tensors of the type of the pointer `like`, fp16 or bf16: the values of the high and of the low half of each uint8."""
    h0, h1, h2, h3, l0, l1, l2, l3 = table
    operands = [byte, h0, h1, h2, h3, l0, l1, l2, l3]
    kind: tl.constexpr = like.dtype.element_ty
    if kind == tl.bfloat16:
        high, low = tl.inline_asm_elementwise(
            BYTES, BYTES_OPERANDS, operands, dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        high, low = tl.inline_asm_elementwise(
            BYTES, BYTES_OPERANDS, operands, dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    return high, low

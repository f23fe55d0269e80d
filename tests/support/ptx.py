"""What inline assembler computes, without a GPU: the few instructions that `tuneplan.kernels.gpu.lookup` uses.

`create_inline_asm` lets Triton's interpreter run it, which knows none.

Semantics after NVIDIA's PTX ISA 8.5: `prmt`, `mov` and `cvt` ("Data Movement and Conversion Instructions"), `lop3` and `shr`
("Logic and Shift Instructions"). Operands are arrays of uint32, a number for each thread.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from triton.runtime.interpreter import TensorHandle

Number = NDArray[np.uint32]


def _prmt(a: Number, b: Number, selector: Number) -> Number:
    """The mode without a name: four of the eight bytes of b and a, or the sign of one repeated."""
    eight = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)) & np.uint32(15)
        byte = (eight >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result |= np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * place)
    return result


def _lop3(a: Number, b: Number, c: Number, table: int) -> Number:
    """Any function of three bits: bit n of `table` is its result where the bits of a, b and c make up n."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            parts = [number if row >> bit & 1 else ~number for number, bit in ((a, 2), (b, 1), (c, 0))]
            result |= parts[0] & parts[1] & parts[2]
    return result


def _half(bits: Number) -> Number:
    """fp16 in the low bits to the bits of fp32."""
    return bits.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)


def run(text: str, given: dict[str, Number]) -> dict[str, Number]:
    """All registers after a block of assembler.

    Args:
        text: instructions, each ended by a semicolon; `.reg` lines are skipped.
        given: registers and operands (`$8`) that it reads.

    Raises ValueError for an instruction, an operand or a way to use them that is not known.
    """
    registers = dict(given)
    like = next(iter(given.values()))

    def value(name: str) -> Number:
        if name in registers:
            return registers[name]
        return np.full_like(like, int(name, 0))

    for line in text.strip().removeprefix("{").removesuffix("}").split(";"):
        instruction = line.strip()
        if not instruction or instruction.startswith(".reg"):
            continue
        name, rest = instruction.split(maxsplit=1)
        if unpacked := re.fullmatch(r"\{(\w+), (\w+)\}, (\S+)", rest):
            if name != "mov.b32":
                raise ValueError(instruction)
            both = value(unpacked.group(3))
            registers[unpacked.group(1)], registers[unpacked.group(2)] = both & np.uint32(0xFFFF), both >> np.uint32(16)
            continue
        into, *operands = rest.split(", ")
        match name:
            case "mov.b32" | "mov.u32":
                registers[into] = value(operands[0])
            case "and.b32":
                registers[into] = value(operands[0]) & value(operands[1])
            case "shr.u32":
                registers[into] = value(operands[0]) >> value(operands[1])
            case "lop3.b32":
                a, b, c = map(value, operands[:3])
                registers[into] = _lop3(a, b, c, int(operands[3], 0))
            case "prmt.b32":
                registers[into] = _prmt(*map(value, operands))
            case "cvt.f32.f16":
                registers[into] = _half(value(operands[0]))
            case _:
                raise ValueError(instruction)
    return registers


class _Results:
    def __init__(self, handles: list[TensorHandle]) -> None:
        self.get_result = handles.__getitem__


def create_inline_asm(
    _: Any, text: str, constraints: str, values: Sequence[TensorHandle], kinds: Any, __: bool, pack: int
) -> _Results:
    """In place of the method of `triton.runtime.interpreter.InterpreterBuilder`.

    An operand of fewer than 32 bits fills registers with `pack` values in turn; one of 32 bits has a register for each of them.
    """
    given: dict[str, Number] = {"%lanemask_lt": (1 << np.arange(32, dtype=np.uint64)).astype(np.uint32) - 1}
    at = constraints.count("=")
    for handle in values:
        flat = np.ascontiguousarray(handle.data).reshape(-1)
        registers = flat.view(np.uint32).reshape(-1, pack * flat.itemsize // 4)
        for column in registers.T:
            given[f"${at}"] = column
            at += 1
    if values:
        del given["%lanemask_lt"]
    after = run(text, given)
    shape = values[0].data.shape if values else ()
    handles, at = [], 0
    for kind in (one.scalar for one in kinds):
        count = max(1, pack * kind.primitive_bitwidth // 32)
        columns = np.stack([after[f"${at + number}"] for number in range(count)], axis=1)
        at += count
        numbers = (
            columns.reshape(-1).view({32: np.float32, 16: np.float16}[kind.primitive_bitwidth]) if values else columns[:1, 0]
        )
        handles.append(TensorHandle(numbers.reshape(shape), kind))
    return _Results(handles)

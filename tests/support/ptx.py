"""What inline assembler computes, without a GPU: the few instructions that `tuneplan.kernels.gpu.lookup` uses.

Semantics after NVIDIA's PTX ISA 8.5: `mov`, `prmt`, `shfl.sync` and `ld` ("Data Movement and Conversion Instructions"), `and`,
`shr`, `mad`. Operands are arrays of uint32, a number for each thread, 32 threads a warp.
"""

import numpy as np
from numpy.typing import NDArray

Number = NDArray[np.uint32]
WARP = 32


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


def _shuffled(value: Number, lane: Number) -> Number:
    """`shfl.sync.idx` over whole warps: what the thread of that number, five bits of it, has."""
    warps = value.reshape(-1, WARP)
    return np.take_along_axis(warps, (lane & np.uint32(31)).reshape(-1, WARP).astype(np.int64), axis=1).reshape(-1)


def run(text: str, given: dict[str, Number], memory: NDArray[np.float32] | None = None) -> dict[str, Number]:
    """All registers after a block of assembler.

    Args:
        text: instructions, each ended by a semicolon; `.reg` lines are skipped.
        given: registers and operands (`$8`) that it reads, of whole warps.
        memory: fp32 values that loads find, from address 0 on.

    Raises ValueError for an instruction, an operand or a way to use them that is not known.
    """
    registers = dict(given)
    like = next(iter(given.values()))

    def value(name: str) -> Number:
        return registers[name] if name in registers else np.full_like(like, int(name, 0))

    for line in text.strip().removeprefix("{").removesuffix("}").split(";"):
        instruction = line.strip()
        if not instruction or instruction.startswith(".reg"):
            continue
        name, rest = instruction.split(maxsplit=1)
        into, *operands = rest.split(", ")
        match name, operands:
            case "mov.u32", ["%laneid"]:
                registers[into] = np.arange(like.size, dtype=np.uint32) % np.uint32(WARP)
            case "and.b32", [a, b]:
                registers[into] = value(a) & value(b)
            case "shr.u32", [a, b]:
                registers[into] = value(a) >> value(b)
            case "mad.wide.u32", [a, b, c]:
                registers[into] = value(a) * value(b) + value(c)
            case "prmt.b32", [a, b, c]:
                registers[into] = _prmt(value(a), value(b), value(c))
            case "shfl.sync.idx.b32", [a, lane, "31", "0xffffffff"]:
                registers[into] = _shuffled(value(a), value(lane))
            case "ld.global.nc.f32", [address] if memory is not None:
                registers[into] = memory[value(address.strip("[]")) // 4].view(np.uint32)
            case _:
                raise ValueError(instruction)
    return registers

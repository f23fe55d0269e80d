"""What the compiler makes of a Triton program: instructions a value, wide loads and stores, spills. Needs no GPU.

Triton compiles for any architecture with the `ptxas` of its wheel, whose `nvdisasm` shows the result. A kernel that moves as many
bytes as it must is at the memory's speed if its instructions fit beside: on an H200 about 17.5 a value for 4-bit weights to bf16
(4.8 TB/s by its data sheet, 132 multiprocessors of 4 x 32 lanes at 1.98 GHz, 2.516 bytes a value).

TRITON_INTERPRET must not be set: a program decorated for the interpreter cannot be compiled.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tuneplan.kernels.backend import interpreted
from tuneplan.kernels.errors import KernelUnavailableError

_DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"\.L_x_\d+")
_IDLE = ("NOP", "BRA", "EXIT")


@dataclass(frozen=True, slots=True)
class Assembly:
    """A compiled program, as one thread runs it.

    Args:
        instructions: by name with its modifiers, of the whole program; branches and padding left out.
        loop: the same of its longest loop without another inside; empty where it has none.
        registers: of a thread, the highest that is named.
        shared_bytes: a program's.
        spilled: whether registers went to local memory.
        partial_shuffles: shuffles under a predicate, which threads may miss that others wait for.
    """

    instructions: Counter[str]
    loop: Counter[str]
    registers: int
    shared_bytes: int
    spilled: bool
    partial_shuffles: int

    def count(self, *prefixes: str) -> int:
        """Instructions whose name begins with one of the prefixes, in the whole program."""
        return sum(number for name, number in self.instructions.items() if name.startswith(prefixes))

    def a_value(self, values: int, threads: int) -> float:
        """Instructions a value, each thread's counted: those of the loop where there is one, else of the whole program.

        Args:
            values: that a program handles, in one turn of the loop where there is one.
            threads: of a program.
        """
        return sum((self.loop or self.instructions).values()) * threads / values


def assembly(
    program: Any, types: Mapping[str, str], constants: Mapping[str, Any], capability: int, warps: int = 4, fusion: bool = False
) -> Assembly:
    """Compile a Triton program and take it apart.

    Args:
        program: decorated with `triton.jit`.
        types: of each parameter that is not a constant, in Triton's words ("*bf16", "i64"). Pointers and whole numbers are taken
            to be multiples of 16, as the launch finds them for torch's tensors and the usual sizes.
        constants: the `tl.constexpr` parameters.
        capability: 80 for sm_80 and so on.
        warps: of a program.
        fusion: whether multiply and add may become one instruction with one rounding.

    Raises:
        KernelUnavailableError: where Triton's interpreter is on.
    """
    if interpreted():
        raise KernelUnavailableError("TRITON_INTERPRET is set: interpreted programs cannot be compiled; unset it")
    signature = {name: types.get(name, "constexpr") for name in program.arg_names}
    place = {name: (program.arg_names.index(name),) for name in signature}
    whole = {place[name]: [["tt.divisibility", 16]] for name in types if types[name] != "fp32"}
    source = ASTSource(program, signature, {place[name]: value for name, value in constants.items()}, whole)
    options = {"num_warps": warps, "enable_fp_fusion": fusion}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        text = subprocess.run([_DISASSEMBLER, file.name], check=True, capture_output=True, text=True).stdout
    return _parsed(text, result.metadata.shared)


def _parsed(text: str, shared_bytes: int) -> Assembly:
    names: list[str] = []
    partial_shuffles = 0
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        label = _LABEL.match(line.strip())
        if label:
            labels[label.group(1)] = len(names)
        found = _INSTRUCTION.search(line)
        if not found:
            continue
        predicate, name, operands = found.groups()
        target = _TARGET.search(operands)
        if name.startswith("BRA") and target and labels.get(target.group(), len(names)) < len(names):
            loops.append((labels[target.group()], len(names)))
        partial_shuffles += bool(predicate) and name.startswith("SHFL")
        names.append(name)
    inner = [one for one in loops if not any(other != one and one[0] <= other[0] and other[1] <= one[1] for other in loops)]
    first, last = max(inner, key=lambda one: one[1] - one[0], default=(0, 0))
    registers = max((int(number) for number in re.findall(r"\bR(\d+)\b", text)), default=-1) + 1
    kept = [name for name in names if not name.startswith(_IDLE)]
    return Assembly(
        Counter(kept),
        Counter(name for name in names[first:last] if not name.startswith(_IDLE)),
        registers,
        shared_bytes,
        any(name.startswith(("LDL", "STL")) for name in kept),
        partial_shuffles,
    )

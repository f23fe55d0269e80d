"""Print the tables of docs/accuracy.md that need nothing but the real code on the meta device.

    PYTHONPATH=src:tests/support python docs/accuracy_table.py small    about 2 minutes
    PYTHONPATH=src:tests/support python docs/accuracy_table.py large    about 10 minutes, 3 GiB of memory

`small` uses the four-layer models of tests/planner/test_against_trace.py, `large` real models of the catalog at full size.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from traced import Case, estimated, small, traced

from tuneplan.planner.models.lookup import find
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB

LORA_QV = "lora(r=8,target_modules=q_proj,v_proj,lora_dropout=0.1,autocast_adapter_dtype=false)"
METHODS = {"full": "full", "LoRA": "lora", "LoRA q,v, 16-bit": LORA_QV, "QLoRA": "qlora"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite")
CHECKPOINTING = ("off", "non-reentrant", "reentrant")
ATTENTION = ("eager", "sdpa", "flash")
SMALL = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")


@dataclass(frozen=True)
class Result:
    """Allocated peak of one case, estimated and traced [bytes], and how long the trace took."""

    estimated: int
    traced: int
    op: str
    kernel: str
    seconds: float

    @property
    def error(self) -> float:
        """Estimated over traced, less one, in percent."""
        return 100 * (self.estimated / self.traced - 1)


def compare(case: Case) -> Result:
    """Highest peak of the phases that a trace sees whole.

    A weight dequantized inside one operator is invisible to a trace, so the forward of a quantized base is left out of both
    sides, as in the tests.
    """
    network, memory = estimated(case)
    start = time.perf_counter()
    _, trace = traced(case)
    seconds = time.perf_counter() - start
    names = [name for name in trace.phases if name != "forward" or not network.quantized]
    top = max(names, key=lambda name: memory.phases[name].peak_bytes)
    return Result(
        max(memory.phases[name].peak_bytes for name in names),
        max(trace.phases[name].peak_bytes for name in names),
        f"{top.replace('_', ' ')}, {memory.phases[top].op}",
        network.notes["attention_kernel"],
        seconds,
    )


def show(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    """A Markdown table, row by row as they come."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def cell(results: list[Result]) -> str:
    """The error that is largest in size, signed."""
    return f"{max((r.error for r in results), key=abs):+.4f} %"


def by_attention(everything: list[Result]) -> Iterator[tuple[str, ...]]:
    """Methods and checkpointing against attention, over grouped and plain heads."""
    for label, method in METHODS.items():
        for checkpointing in CHECKPOINTING:
            cells = []
            for attention in ATTENTION:
                settings = replace(SMALL, gradient_checkpointing=checkpointing, attention=attention)
                results = [compare(Case(small(num_key_value_heads=heads), method, settings)) for heads in (4, 8)]
                everything += results
                cells.append(cell(results))
            yield (label, checkpointing, *cells)


def by_family(everything: list[Result]) -> Iterator[tuple[str, ...]]:
    """Families against methods, checkpointing off and on."""
    for family in FAMILIES:
        cells = []
        for method in METHODS.values():
            config = small(family, tie_word_embeddings=family != "mistral", **({"head_dim": 96} if family == "qwen3" else {}))
            results = [
                compare(Case(config, method, replace(SMALL, gradient_checkpointing=checkpointing)))
                for checkpointing in CHECKPOINTING[:2]
            ]
            everything += results
            cells.append(cell(results))
        yield (family, *cells)


def catalog(name: str) -> Mapping[str, Any]:
    """The bundled config of a model."""
    config: dict[str, Any] = json.loads(find(name).config_path.read_text(encoding="utf-8"))
    return config


LARGE: tuple[tuple[str, int, int, tuple[tuple[str, str], ...]], ...] = (
    ("qwen2.5-0.5b", 1, 1024, (("full", "off"), ("lora", "off"), ("qlora", "off"))),
    ("qwen2.5-1.5b", 1, 1024, (("full", "off"), ("lora", "off"), ("qlora", "off"))),
    ("qwen2.5-7b", 1, 1024, (("full", "off"), ("lora", "off"), ("qlora", "off"))),
    ("llama-3.2-3b", 4, 512, (("full", "off"), ("lora", "off"), ("qlora", "non-reentrant"))),
    (
        "llama-2-7b",
        8,
        512,
        tuple((method, checkpointing) for method in ("full", "lora", "qlora") for checkpointing in CHECKPOINTING[:2]),
    ),
    ("mistral-7b", 1, 2048, (("full", "non-reentrant"), ("lora", "off"), ("qlora", "non-reentrant"))),
    ("llama-2-70b", 1, 2048, (("lora", "non-reentrant"), ("qlora", "non-reentrant"))),
)


def real_models(everything: list[Result]) -> Iterator[tuple[str, ...]]:
    """Models at their real size."""
    for name, batch, length, runs in LARGE:
        for method, checkpointing in runs:
            settings = Settings(micro_batch_size=batch, seq_len=length, gradient_checkpointing=checkpointing)
            r = compare(Case(catalog(name), method, settings))
            everything.append(r)
            sizes = (f"{r.estimated / GIB:.3f}", f"{r.traced / GIB:.3f}", f"{r.error:+.4f} %")
            yield (
                find(name).id.split("/")[1],
                f"{batch} x {length}",
                method,
                checkpointing,
                r.kernel,
                *sizes,
                r.op,
                f"{r.seconds:.0f} s",
            )


def summary(everything: list[Result]) -> None:
    """Count, median and worst of the errors."""
    sizes = [abs(r.error) for r in everything]
    print(f"\n{len(sizes)} cases: median {median(sizes):.4f} %, worst {max(sizes):.4f} %\n", flush=True)


def main() -> None:
    """The tables that the command line names."""
    results: list[Result] = []
    if "small" in sys.argv[1:]:
        show(("method", "checkpointing", *ATTENTION), by_attention(results))
        summary(results)
        results = []
        show(("family", *METHODS), by_family(results))
        summary(results)
    if "large" in sys.argv[1:]:
        header = ("model", "batch", "method", "checkpointing", "kernel", "estimated GiB", "traced GiB", "error", "op", "trace")
        results = []
        show(header, real_models(results))
        summary(results)


if __name__ == "__main__":
    main()

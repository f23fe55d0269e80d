"""Print the tables of docs/accuracy.md that compare with published runs, as Markdown.

    PYTHONPATH=src python docs/published_tables.py             a few seconds
    PYTHONPATH=src python docs/published_tables.py evidence    writes planner/reserved_errors.csv, which intervals rest on

The published rows are in tests/golden/published, each with its source. Configurations are those of the tests.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from types import ModuleType

from tuneplan.planner import uncertainty
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.replay import Replay, replay
from tuneplan.planner.replay_weights import Program
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.units import GIB, GIGA


def module(name: str) -> ModuleType:
    """A test module by its path under tests/planner, whose rows and configurations are used here."""
    spec = spec_from_file_location(name.replace("/", "_"), Path(__file__).parents[1] / "tests" / "planner" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import published_speeds as timing  # noqa: E402

memory = module("test_replay")
inline = module("test_published")
steps = module("test_published_phases")


def show(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def percent(predicted: float, published: float) -> float:
    """Predicted over published, less one, in percent."""
    return 100 * (predicted / published - 1)


def spread(label: str, errors: list[float]) -> str:
    """Median and worst of the errors in size."""
    sizes = [abs(e) for e in errors]
    return f"{label}: {len(sizes)} rows, median {median(sizes):.2f} %, worst {max(sizes):.2f} %"


def evidence() -> None:
    """Write planner/reserved_errors.csv: every published reserved peak that can be estimated, with its estimate."""
    rows = []
    for r, played in rtx_runs():
        on = "checkpointing" if r["gradient_checkpointing"] == "True" else "no checkpointing"
        label = f"{r['model_id']} {r['method']} {r['micro_batch_size']} x {r['seq_len']} {on}"
        measured = round(float(r["peak_reserved_GiB"]) * GIB)
        rows.append(("RTX 4080, can-i-finetune-this@053ce9e", label, played.reserved_bytes, measured))
    for row in inline.RESERVED:
        label = f"{row.model} {row.method} {row.batch} x {row.length}"
        rows.append((f"L40S, {row.source.split()[0]}", label, inline.estimated(row).reserved_bytes, row.measured_bytes))
    with uncertainty.ROWS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("source", "run", "estimated_bytes", "measured_bytes"))
        writer.writerows(rows)


def rtx_runs() -> Iterator[tuple[dict[str, str], Replay]]:
    """Each run on the RTX 4080 and its replay."""
    for r in memory._rows():
        on = r["gradient_checkpointing"] == "True"
        name, method, batch, length = r["model_id"], r["method"], int(r["micro_batch_size"]), int(r["seq_len"])
        case = memory.Case(name, method, length, batch, "non-reentrant" if on else "off", "paged_adamw_8bit", kept=True)
        lora = Lora(r=int(r["lora_rank"]), target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
        built = memory._build(case, lora, (7, 5) if method == "lora" else (8, 9))
        yield r, replay(*built, program=Program(empties_cache=False))


def rtx_4080() -> None:
    """Replayed against measured allocated and reserved peaks."""
    rows, allocated, reserved = [], [], []
    for r, played in rtx_runs():
        cells = []
        for size, column, errors in (
            (played.allocated_bytes / GIB, "peak_allocated_GiB", allocated),
            (played.reserved_bytes / GIB, "peak_reserved_GiB", reserved),
        ):
            errors.append(percent(size, float(r[column])))
            cells += [f"{size:.3f}", f"{float(r[column]):.3f}", f"{errors[-1]:+.2f} %"]
        on = "on" if r["gradient_checkpointing"] == "True" else "off"
        rows.append((r["model_id"].split("/")[1], r["method"], f"{r['micro_batch_size']} x {r['seq_len']}", on, *cells))
    sizes = ("replayed GiB", "measured GiB", "error")
    show(
        ("model", "method", "batch", "checkpointing", *(f"allocated {s}" for s in sizes), *(f"reserved {s}" for s in sizes)), rows
    )
    print(spread("allocated", allocated))
    print(spread("reserved", reserved) + "\n")


def phases() -> None:
    """Phases of the first step against an RTX 4080."""
    rows, errors = [], []
    for r in steps.rows():
        found = steps.first_step(r)
        cells = []
        for column, estimated in found.items():
            errors.append(percent(estimated / GIB, float(r[column])))
            cells.append(f"{estimated / GIB:.3f} / {float(r[column]):.3f} ({errors[-1]:+.1f} %)")
        rows.append((r["model_id"].split("/")[1], r["method"], f"{r['micro_batch_size']} x {r['seq_len']}", *cells))
    names = ("loaded", "after forward", "highest in forward", "highest in backward", "after the update")
    show(("model", "method", "batch", *names), rows)
    print(spread("phases", errors) + "\n")


def a100() -> None:
    """The ledger against allocated peaks on A100s (fms-acceleration)."""
    rows, errors = [], []
    for r, parts, settings, ranks in timing.fms_runs():
        if ranks > 1:
            continue
        net = timing.network_of(r["model"], parts, settings)
        estimated = step_memory(net, settings, find("adamw")).peak.peak_bytes / GIGA
        published = int(r["torch_peak_alloc_bytes"]) / GIGA
        errors.append(percent(estimated, published))
        label = f"{r['method']}, {r['framework_config']}"
        sizes = (f"{estimated:.2f}", f"{published:.2f}", f"{errors[-1]:+.1f} %")
        rows.append((r["model"].split("/")[1], label, f"{settings.micro_batch_size} x 4096", *sizes))
    for row in inline.ALLOCATED:
        estimated, published = inline.estimated(row).allocated_bytes / GIGA, row.measured_bytes / GIGA
        errors.append(percent(estimated, published))
        sizes = (f"{estimated:.2f}", f"{published:.2f}", f"{errors[-1]:+.1f} %")
        rows.append((row.model, f"{row.method}, {row.ranks} GPUs, FSDP full shard", f"{row.batch} x {row.length}", *sizes))
    show(("model", "method", "batch", "estimated GB", "published GB", "error"), rows)
    print(spread("allocated", errors) + "\n")


def l40s() -> None:
    """Estimated against measured reserved peaks of PEFT's comparison."""
    rows, errors = [], []
    for row in inline.RESERVED:
        estimated, published = inline.estimated(row).reserved_bytes / GIB, row.measured_bytes / GIB
        errors.append(percent(estimated, published))
        rows.append((row.method, f"{estimated:.2f}", f"{published:.2f}", f"{errors[-1]:+.1f} %"))
    show(("method", "estimated GiB", "published GiB", "error"), rows)
    print(spread("reserved", errors) + "\n")


def step_times() -> None:
    """Predicted against published tokens per second and card."""
    rows, judged = [], []
    for table in timing.TABLES_OF.values():
        found = table()
        errors = [percent(row.predicted, row.published) for row in found if row.judges]
        judged += errors
        print("- " + (spread(found[0].table, errors) if errors else f"{found[0].table}: no row judges"))
        for row in found:
            cells = (f"{row.published:,.0f}", f"{row.predicted:,.0f}", f"{percent(row.predicted, row.published):+.0f} %")
            rows.append((row.table, row.label, *cells, "chose a constant" if row.calibrates else row.apart))
    print("- " + spread("all", judged) + "\n")
    show(("table", "run", "published", "predicted", "error", "does not judge because"), rows)


def main() -> None:
    """All tables, or the rows that intervals rest on."""
    if "evidence" in sys.argv[1:]:
        evidence()
        return
    rtx_4080()
    phases()
    a100()
    l40s()
    step_times()


if __name__ == "__main__":
    main()

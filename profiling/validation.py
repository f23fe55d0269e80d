"""The validation suite: one table of cases, each estimated and traced; its results are the tables of docs/accuracy.md.

    python -m tuneplan.profiling.validation small docs/accuracy/small.json     under two minutes on two cores
    python -m tuneplan.profiling.validation large docs/accuracy/large.json     models at their real size, some minutes
    python -m tuneplan.profiling.validation families docs/accuracy/families.json [MODEL ...]     every family on small models
    python -m tuneplan.profiling.validation render docs/accuracy.md            the tables between the markers, from the results

The tests run every small case and hold it against the file, so that the published table is that of the code beside it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import find as find_model
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB
from tuneplan.profiling import family_matrix, small_models

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite")
STEP_PHASES = ("forward", "backward", "optimizer_step")
REFUSES_CHECKPOINTING = ("prefix_tuning",)
TABLES = ("small", "large")
_TWO = ("llama", "qwen2")
METHODS = {
    **dict.fromkeys(("full", "lora", "qlora"), FAMILIES),
    **dict.fromkeys(("dora", "rslora", "lora_fa", "adalora", "vera", "loha", "lokr", "oft", "boft", "fourierft", "miss"), _TWO),
    **dict.fromkeys(("ia3", "ln_tuning", "prompt_tuning", "p_tuning", "prefix_tuning", "llm_int8", "partial_layers"), _TWO),
    "bitfit": ("qwen2",),
    "adaption_prompt(adapter_layers=2)": ("llama", "mistral"),
}
"""Methods, by the families that they are checked on: those with biases, those that PEFT adapts."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration, in the planner's words; `model` is a catalog name or, for a small model, its `model_type`."""

    model: str
    method: str
    micro_batch_size: int = 2
    seq_len: int = 256
    dtype: str = "bf16"
    precision: str = "pure"
    optimizer: str = "adamw"
    gradient_checkpointing: str = "off"
    attention: str = "sdpa"
    loss: str = "eager"

    @property
    def settings(self) -> Settings:
        """As the planner takes them."""
        own = asdict(self)
        return Settings(**{name: own[name] for name in Settings.__dataclass_fields__ if name in own})

    @property
    def config(self) -> dict[str, Any]:
        """Contents of the config.json: small with the proportions of a real model, or the catalog's."""
        if self.model not in FAMILIES:
            config: dict[str, Any] = json.loads(find_model(self.model).config_path.read_text(encoding="utf-8"))
            return config
        return small_models.config(self.model)


@dataclass(frozen=True, slots=True)
class Row:
    """A case with its peaks, by phase [bytes], and the attention kernel."""

    case: Case
    kernel: str
    estimated: Mapping[str, int]
    traced: Mapping[str, int]

    @property
    def peaks(self) -> tuple[int, int]:
        """Highest of all phases, estimated and traced."""
        return max(self.estimated.values()), max(self.traced.values())

    @property
    def percent(self) -> float:
        """Estimated over traced at the peak, less one, in percent."""
        return error(*self.peaks)


def error(estimated: int, traced: int) -> float:
    """Estimated over traced, less one, in percent."""
    return 100 * (estimated / traced - 1)


def small_cases() -> list[Case]:
    """Every method that PEFT builds on two families, the common ones on all, and each other option once or twice."""
    cases = [
        Case(family, method, gradient_checkpointing=checkpointing)
        for method, families in METHODS.items()
        for family in families
        for checkpointing in ("off", "non-reentrant")
        if not (checkpointing != "off" and method in REFUSES_CHECKPOINTING)
    ]
    for method in ("full", "lora", "qlora"):
        cases += [Case("llama", method, attention=a, gradient_checkpointing="off") for a in ("eager", "flash")]
        cases += [Case("llama", method, gradient_checkpointing="reentrant")]
        cases += [Case("llama", method, 1, 64), Case("llama", method, 4, 512), Case("qwen2", method, 3, 100)]
        cases += [Case("llama", method, loss=loss) for loss in ("shifted", "liger", "chunked")]
        cases += [Case("llama", method, precision="autocast", dtype=dtype) for dtype in ("fp32", "bf16")]
    cases += [Case("llama", method, dtype="fp32") for method in ("full", "lora")]
    cases += [Case("llama", "full", precision="master-weights", seq_len=64)]
    cases += [Case("llama", "full", 1, 64, optimizer=o) for o in OPTIMIZERS]
    return list(dict.fromkeys(cases))


def large_cases() -> list[Case]:
    """Models of the catalog at their real size."""
    cases = [Case(f"qwen2.5-{size}", method, 1, 1024) for size in ("0.5b", "1.5b", "7b") for method in ("full", "lora", "qlora")]
    cases += [Case("llama-3.2-3b", method, 4, 512) for method in ("full", "lora")]
    cases += [Case("llama-3.2-3b", "qlora", 4, 512, gradient_checkpointing="non-reentrant")]
    for method in ("full", "lora", "qlora"):
        cases += [Case("llama-2-7b", method, 8, 512, gradient_checkpointing=c) for c in ("off", "non-reentrant")]
    for method, checkpointing in (("full", "non-reentrant"), ("lora", "off"), ("qlora", "non-reentrant")):
        cases += [Case("mistral-7b", method, 1, 2048, gradient_checkpointing=checkpointing)]
    cases += [Case("llama-2-70b", method, 1, 2048, gradient_checkpointing="non-reentrant") for method in ("lora", "qlora")]
    cases += [Case("llama-2-7b", "full", 1, 2048, "fp32", "autocast", gradient_checkpointing="non-reentrant")]
    return cases


def estimate(case: Case) -> tuple[str, dict[str, int]]:
    """The attention kernel and the planner's peaks by phase [bytes]."""
    settings = case.settings
    spec = read_spec(case.model, ConfigReader(case.config, case.model))
    network = build(spec, parse(case.method), settings)
    memory = step_memory(network, settings, find_optimizer(case.optimizer))
    return network.notes["attention_kernel"], {name: int(memory.phases[name].peak_bytes) for name in STEP_PHASES}


def run(case: Case) -> Row:
    """Estimate and trace one case. Raises InputError where the libraries refuse it."""
    from tuneplan.profiling import attention
    from tuneplan.profiling.build import build as build_real
    from tuneplan.profiling.step import trace_step
    from tuneplan.profiling.subject import Subject

    optimizer = find_optimizer(case.optimizer)
    attention.register()
    subject = Subject(case.model, case.config, parse(case.method), settings=case.settings, optimizer=optimizer)
    trace = trace_step(build_real(subject, attention.NAMES[case.attention], "meta"), case.settings)
    return Row(case, *estimate(case), {name: trace.phases[name].peak_bytes for name in STEP_PHASES})


def write(rows: Iterable[Row], path: Path) -> None:
    """Results as JSON, a row a line, so that a change shows as one line."""
    lines = [json.dumps(asdict(row)) for row in rows]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Results as `write` left them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Row(Case(**row["case"]), row["kernel"], row["estimated"], row["traced"]) for row in content]


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _spread(errors: list[float]) -> tuple[str, str, str]:
    return str(len(errors)), f"{median(abs(e) for e in errors):.4f} %", f"{max(errors, key=abs):+.4f} %"


def _by(rows: list[Row], key: Callable[[Row], str], title: str) -> Iterator[str]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row.percent)
    yield from _table((title, "cases", "median", "worst"), ((name, *_spread(errors)) for name, errors in groups.items()))
    yield ""


def render(rows: list[Row]) -> str:
    """The Markdown of a table of results: by method, family and phase, and every row."""
    lines = [*_by(rows, lambda row: row.case.method, "method"), *_by(rows, lambda row: row.case.model, "model")]
    phases = [
        (name.replace("_", " "), *_spread([error(row.estimated[name], row.traced[name]) for row in rows])) for name in STEP_PHASES
    ]
    lines += [*_table(("phase", "cases", "median", "worst"), [*phases, ("peak", *_spread([r.percent for r in rows]))]), ""]
    header = ("model", "method", "batch", "checkpointing", "attention", "other", "estimated GiB", "traced GiB", "error")
    lines += ["<details><summary>every row</summary>", "", *_table(header, (_cells(row) for row in rows)), "", "</details>", ""]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    case = row.case
    plain = replace(case, dtype="bf16", precision="pure", optimizer="adamw", loss="eager")
    other = ", ".join(str(value) for name, value in asdict(case).items() if value != getattr(plain, name))
    kernel = case.attention if case.attention == row.kernel else f"{case.attention}: {row.kernel}"
    sizes = (f"{size / GIB:.4f}" for size in row.peaks)
    batch = f"{case.micro_batch_size} x {case.seq_len}"
    return (case.model, case.method, batch, case.gradient_checkpointing, kernel, other, *sizes, f"{row.percent:+.4f} %")


def rendered(text: str, folder: Path) -> str:
    """The page with the part between each pair of markers replaced by its table."""
    tables = {name: render(read(folder / f"{name}.json")) for name in TABLES}
    tables["families"] = family_matrix.render(family_matrix.read(folder / "families.json"))
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


def main(arguments: list[str]) -> None:
    """Run one table's cases, or render the page."""
    what, path = arguments[0], Path(arguments[1])
    if what == "render":
        page = rendered(path.read_text(encoding="utf-8"), path.with_suffix(""))
        path.write_text(page, encoding="utf-8")
        return
    from tuneplan.profiling.quiet import quiet

    quiet()
    if what == "families":
        _families(path, arguments[2:] or list(small_models.names()))
        return
    rows = []
    for case in {"small": small_cases, "large": large_cases}[what]():
        rows.append(run(case))
        print(f"{rows[-1].percent:+.4f} %  {case}", flush=True)
    write(rows, path)


def _families(path: Path, models: list[str]) -> None:
    for model in models:
        rows = []
        for cell in family_matrix.cells(model):
            rows.append(family_matrix.run(cell))
            print(f"{rows[-1].worst:+.4f} %" if rows[-1].points else "refused", cell, flush=True)
        family_matrix.write(rows, path)


if __name__ == "__main__":
    main(sys.argv[1:])

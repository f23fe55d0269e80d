"""Real training steps on this machine's GPU beside their estimates, as evidence: one command, JSON out, stops by itself.

    python -m tuneplan.profiling.campaign --out results.jsonl --seconds 540

Weights are random (memory and speed do not depend on values). Each case is one line of JSON, written as soon as it is measured;
cases that the file has already are skipped, so that an interrupted campaign goes on. On a machine without a GPU, `--device cpu`
runs a few tiny models and counts live bytes with the storage tracker instead of the allocator.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from tuneplan.planner.estimate import estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import find as find_model
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling.build import build
from tuneplan.profiling.step import run_step, trace_step
from tuneplan.profiling.subject import Subject

WARM_STEPS = 2
TIMED_STEPS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration to measure, in the planner's words."""

    model: str
    method: str = "lora"
    micro_batch_size: int = 1
    seq_len: int = 1024
    gradient_checkpointing: str = "off"
    attention: str = "sdpa"
    optimizer: str = "adamw"
    dtype: str = "bf16"


def gpu_cases() -> Iterator[Case]:
    """Cases for a large card, the ones that say most first."""
    for checkpointing in ("off", "non-reentrant"):
        for method in ("lora", "full", "lora(r=16,target_modules=q_proj,v_proj)"):
            yield Case("qwen2.5-0.5b", method, 4, 1024, checkpointing)
            yield Case("llama-3.2-1b", method, 4, 2048, checkpointing)
            yield Case("7b", method, 8, 512, checkpointing)
            yield Case("8b", method, 2, 2048, checkpointing)
        yield Case("7b", "lora", 2, 1024, checkpointing, "eager")
        yield Case("7b", "lora(autocast_adapter_dtype=false)", 8, 512, checkpointing)
    for optimizer in ("adamw_fused", "adamw_forloop", "sgd", "sgd_momentum", "adafactor"):
        yield Case("llama-3.2-1b", "full", 1, 512, "non-reentrant", optimizer=optimizer)
    yield Case("qwen2.5-0.5b", "full", 2, 512, "off", dtype="fp32")
    yield Case("8b", "lora", 8, 4096, "non-reentrant")


def cpu_cases() -> Iterator[Case]:
    """Cases small enough for a test; the model is shrunk by `config_of`."""
    for method in ("full", "lora"):
        for checkpointing in ("off", "non-reentrant"):
            yield Case("qwen2.5-0.5b", method, 1, 64, checkpointing, "eager")


def config_of(case: Case, shrink: bool) -> dict[str, Any]:
    """The model's config.json, or a tiny one of the same family."""
    config: dict[str, Any] = json.loads(find_model(case.model).config_path.read_text(encoding="utf-8"))
    if shrink:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config |= {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "vocab_size": 512, **heads}
    return config


def request_of(case: Case, config: dict[str, Any]) -> Request:
    """The same case for the planner."""
    settings = Settings(
        micro_batch_size=case.micro_batch_size,
        seq_len=case.seq_len,
        dtype=case.dtype,
        attention=case.attention,
        gradient_checkpointing=case.gradient_checkpointing,
    )
    spec = read_spec(case.model, ConfigReader(config, case.model))
    if torch.cuda.is_available():
        settings = replace(settings, compute_capability=torch.cuda.get_device_capability())
    return Request(spec, parse(case.method), settings, find_optimizer(case.optimizer))


def measure(case: Case, config: dict[str, Any], device: str) -> dict[str, Any]:
    """Peaks of every phase of a steady step [bytes], and seconds of a step on a GPU."""
    planned = request_of(case, config)
    subject = Subject(case.model, config, planned.method, settings=planned.settings, optimizer=planned.optimizer)
    built = build(subject, case.attention, device)
    if device == "cpu":
        trace = trace_step(built, subject.settings)
        return {"phases": {n: p.peak_bytes for n, p in trace.phases.items()}, "allocated_bytes": trace.peak_bytes}

    def step(phase: Callable[[str], None]) -> None:
        run_step(built, subject.settings, phase, nullcontext, 1, [], None)

    return _allocated(step)


def _allocated(step: Callable[[Callable[[str], None]], None]) -> dict[str, Any]:
    peaks: dict[str, int] = {}
    current = ""

    def phase(name: str) -> None:
        nonlocal current
        torch.cuda.synchronize()
        if current:
            peaks[current] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        current = name

    def nothing(name: str) -> None:
        pass

    for _ in range(WARM_STEPS):
        step(nothing)
    reserved = torch.cuda.max_memory_reserved()
    step(phase)
    free, total = torch.cuda.mem_get_info()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step(nothing)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / TIMED_STEPS
    phases = {name: peaks[name] for name in ("forward", "backward", "optimizer_step")}
    return {
        "phases": phases,
        "allocated_bytes": max(phases.values()),
        "reserved_bytes": max(reserved, torch.cuda.max_memory_reserved()),
        "device_bytes": total - free,
        "total_bytes": total,
        "step_seconds": seconds,
    }


def run(case: Case, device: str) -> dict[str, Any]:
    """A line of the result: the case, the estimate, what was measured or why not, and on what."""
    config = config_of(case, shrink=device == "cpu")
    predicted = estimate(request_of(case, config), advice=False)
    line: dict[str, Any] = {
        "case": asdict(case),
        "estimated": {
            "allocated_bytes": predicted.allocated_bytes,
            "reserved_bytes": predicted.reserved_bytes,
            "phases": {name: phase.peak_bytes for name, phase in predicted.memory.phases.items() if name != "load"},
            "attention_kernel": predicted.network.notes["attention_kernel"],
        },
        "provenance": provenance(device),
    }
    try:
        line["measured"] = measure(case, config, device)
    except torch.cuda.OutOfMemoryError:
        line["measured"] = {"out_of_memory": True, "reserved_bytes": torch.cuda.max_memory_reserved()}
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return line


def provenance(device: str) -> dict[str, str]:
    """Card, driver-visible memory and versions."""
    name = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": str(torch.version.cuda),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, until the time is over."""
    parser = argparse.ArgumentParser(description="Real training steps beside their estimates.")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; cases in it are skipped")
    parser.add_argument("--seconds", type=float, default=540.0, help="start no case after this time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    given = parser.parse_args(arguments)
    done = set()
    if given.out.exists():
        done = {json.dumps(json.loads(line)["case"]) for line in given.out.read_text(encoding="utf-8").splitlines()}
    start = time.monotonic()
    for case in gpu_cases() if given.device == "cuda" else cpu_cases():
        if time.monotonic() - start > given.seconds or json.dumps(asdict(case)) in done:
            continue
        line = run(case, given.device)
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        measured = line["measured"].get("allocated_bytes")
        gap = f"{100 * (line['estimated']['allocated_bytes'] / measured - 1):+.2f} %" if measured else "out of memory"
        print(f"{case.model} {case.method} {case.micro_batch_size} x {case.seq_len} {case.gradient_checkpointing}: {gap}")


if __name__ == "__main__":
    main()

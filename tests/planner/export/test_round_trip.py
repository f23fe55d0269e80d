"""Export, read back, same estimate, over random plans: TRL, axolotl, LLaMA-Factory and torchtune."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tuneplan.planner.configs.read import read_configs
from tuneplan.planner.errors import InputError
from tuneplan.planner.export.bundle import bundle
from tuneplan.planner.export.files import write_all
from tuneplan.planner.export.job import Data, ExportJob
from tuneplan.planner.job import Job
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import explicit, parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.plan import Plan
from tuneplan.planner.request import Request
from tuneplan.planner.search import find
from tuneplan.planner.target import of_memory
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import GIB

pytest.importorskip("yaml")

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
FILES = ("train.yaml", "axolotl.yaml", "torchtune.yaml", "adapter/adapter_config.json", "accelerate.yaml", "deepspeed.json")
READ_AS = {
    "train.yaml": {"trl": "trl-sft", "llama-factory": "llama-factory"},
    "axolotl.yaml": {"axolotl": "axolotl"},
    "torchtune.yaml": {"torchtune": "torchtune"},
}
METHODS = {
    "trl": ["full", "lora", "lora(r=4,target_modules=q_proj,v_proj)", "lora(autocast_adapter_dtype=false)", "qlora",
            "lora(lora_dropout=0.1,use_dora=true)", "ia3", "lora(r=4)+modules_to_save(modules=lm_head)", "loha"],
    "axolotl": ["full", "lora", "lora(r=4,target_modules=q_proj,v_proj)", "lora(lora_dropout=0.1)"],
    "torchtune": ["full", "lora(autocast_adapter_dtype=false)",
                  "lora(r=4,target_modules=q_proj,v_proj,autocast_adapter_dtype=false)"],
    "llama-factory": ["full", "lora", "lora(r=4,target_modules=q_proj,v_proj)", "lora(use_rslora=true)"],
}  # fmt: skip
OPTIONS = (
    "seq_len", "micro_batch_size", "dtype", "precision", "attention", "loss", "padded", "max_grad_norm",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model's config, and room for exports."""
    root = tmp_path_factory.mktemp("round")
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


@st.composite
def words(draw: Any) -> dict[str, Any]:
    """A tool, a method of it, and the options of a plan."""
    tool = draw(st.sampled_from(sorted(METHODS)))
    return {
        "tool": tool,
        "method": draw(st.sampled_from(METHODS[tool])),
        "micro": draw(st.sampled_from([1, 2, 4])),
        "steps": draw(st.sampled_from([1, 2, 8])),
        "gpus": draw(st.sampled_from([1, 2, 4])),
        "stage": draw(st.sampled_from([0, 2, 3])),
        "checkpointing": draw(st.sampled_from(["off", "non-reentrant", "reentrant"])),
        "optimizer": draw(
            st.sampled_from(["adamw", "adamw_fused", "adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor", "lion"])
        ),
        "settings": Settings(
            seq_len=draw(st.sampled_from([64, 256])),
            attention=draw(st.sampled_from(["sdpa"] if tool == "torchtune" else ["eager", "sdpa", "flash"])),
            loss=draw(st.sampled_from({"trl": ["eager", "trl"]}.get(tool, ["eager"]))),
            padded=draw(st.booleans()),
            max_grad_norm=draw(st.sampled_from([0.5, 1.0])),
        ),
    }


def planned(config: str, drawn: dict[str, Any]) -> Plan:
    """The plan of the words."""
    count = drawn["gpus"]
    stage = drawn["stage"] if count > 1 else 0
    return _only(Job(
        spec=read_spec(*load(config)),
        methods=(parse(drawn["method"]),),
        targets=(of_memory(64 * GIB, (count,)),),
        tokens=10**6,
        global_batch_size=drawn["micro"] * drawn["steps"] * count,
        settings=drawn["settings"],
        precision="autocast" if drawn["tool"] == "axolotl" else "pure",
        dtype="bf16",
        checkpointing=(drawn["checkpointing"],),
        micro_batch_sizes=(drawn["micro"],),
        optimizers=(find_optimizer(drawn["optimizer"]),),
        zero_stages=(stage,),
        fsdp_units="root" if drawn["tool"] == "torchtune" else "accelerate",
    ))  # fmt: skip


def _only(job: Job) -> Plan:
    answer = find(job, date(2026, 1, 1))
    return answer.plans[0] if answer.plans else answer.rejected[0].plan


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(drawn=words())
def test_same_estimate(folder: Path, drawn: dict[str, Any]) -> None:
    """Every option, the method in full, and the peak come back; what a tool cannot express it refuses by name."""
    plan = planned(str(folder / "config.json"), drawn)
    job = ExportJob(plan, str(folder), 10**6, Data("some/texts"), date(2026, 1, 1))
    try:
        made = bundle(job, drawn["tool"])
    except InputError:
        assume(False)
    out = folder / "out"
    write_all(str(out), made.files, force=True)
    names = [name for name in FILES if name in made.files]
    kinds = [READ_AS.get(name, {}).get(drawn["tool"]) for name in names]
    others = {"adapter": "peft", "acceler": "accelerate", "deepspe": "deepspeed"}
    formats = [kind or others[name[:7]] for kind, name in zip(kinds, names, strict=True)]
    read = read_configs([out / name for name in names], formats, str(folder) if drawn["tool"] == "torchtune" else None)
    request, options = plan.request, read.options
    method = read.method or parse("full")
    # PEFT's file leaves out what is at its default for the model, and torchtune's names every module
    if "adapter/adapter_config.json" not in names and not (drawn["tool"] == "torchtune" and "target" not in drawn["method"]):
        assert explicit(request.method) == explicit(method)
    # one sequence is not padded, whatever a file says; and a gap has been said aloud when it was written
    told = [name for name in OPTIONS if name != "padded" or (request.settings.micro_batch_size > 1 and not made.gaps)]
    for name in told:
        assert getattr(request.settings, name) == options.get(name, getattr(Settings(), name)), name
    assert request.gradient_accumulation_steps == options["gradient_accumulation_steps"]
    assert request.optimizer.name == options["optimizer"]
    kind = "off" if not options["gradient_checkpointing"] else "reentrant" if options["reentrant"] else "non-reentrant"
    assert request.settings.gradient_checkpointing == kind
    if request.sharding.data_parallel > 1 and "accelerate.yaml" in names:
        found = Sharding(options["data_parallel"], options.get("zero_stage", 0))
        assert (request.sharding.data_parallel, request.sharding.zero_stage) == (found.data_parallel, found.zero_stage)
    changes = {name: options.get(name, getattr(Settings(), name)) for name in told}
    again = replace(request, method=method, settings=replace(request.settings, **changes))
    assert peak(request) == peak(again)


def peak(request: Request) -> int:
    """Allocated peak of a request."""
    network = build(request.spec, request.method, request.settings)
    return int(step_memory(network, request.settings, request.optimizer, request.sharding).peak.peak_bytes)

"""Which plan is exported: one that a search has just found, or one of a document of `plan --json`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.planner.device_memory import usable_bytes
from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.plan import Answer, Plan
from tuneplan.planner.report.json_report import plan_json
from tuneplan.planner.search import find
from tuneplan.planner.target import Target, targets
from tuneplan.planner.training.objective import objective_of
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import BITSANDBYTES, Settings

MOST_BYTES = 2**26


def from_answer(answer: Answer, choice: int) -> Plan:
    """Plan number `choice` of a search, 1 for the best. Raises InputError where there is none such."""
    if not answer.plans:
        reason = answer.rejected[0].reason if answer.rejected else "nothing was left to look at"
        raise InputError(f"no plan fits, so there is nothing to export ({reason}); see the same options without export")
    return answer.plans[_index(choice, len(answer.plans))]


def from_file(path: str, choice: int, today: date, fsdp_units: str = "root") -> tuple[Plan, int, tuple[str, ...]]:
    """A plan of a document of `plan --json`, worked out again by this version.

    Returns:
        The plan, the tokens to train on, and notes where the document says otherwise than this version.

    Raises:
        InputError: the file cannot be read, or is no such document.
    """
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise InputError(f"{path!r} cannot be read: {reason}; give a file of plan ... --json > plan.json") from None
    if len(raw) > MOST_BYTES:
        raise InputError(f"{path!r} is larger than {MOST_BYTES // 2**20} MiB; give a file of plan ... --json")
    try:
        content = json.loads(raw)
        request, plans = content["request"], content["plans"]
        assert isinstance(plans, list)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise InputError(f"{path!r} is no document of plan --json; write one with plan ... --json > plan.json") from None
    if not plans:
        raise InputError(f"{path!r} has no plan that fits, so there is nothing to export; plan again with other options")
    chosen = plans[_index(choice, len(plans))]
    try:
        plan = _again(request, chosen, today, fsdp_units)
        tokens = int(request["tokens"])
    except (TuneplanError, ProfileError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            f"{path!r}: the plan lacks, or has in another form, {error}; write it anew with plan ... --json"
        ) from None
    return plan, tokens, _differences(chosen, plan_json(plan))


SPLITS = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")


def _index(choice: int, count: int) -> int:
    if not 1 <= choice <= count:
        raise InputError(f"--choice {choice} is none of the {count} plans; use 1 for the best, to {count}")
    return choice - 1


def _again(request: Mapping[str, Any], chosen: Mapping[str, Any], today: date, fsdp_units: str) -> Plan:
    """The same plan from the words of a document."""
    count = int(chosen["gpu_count"])
    if any(int(chosen["parallelism"].get(name, 1)) > 1 for name in SPLITS):
        raise InputError(
            f"the plan splits the model ({chosen['parallelism']['label']}), and files for that are not written yet; take another "
            "one with --choice, or plan with --layouts data"
        )
    target = _target(request, chosen, count)
    how = chosen["gradient_checkpointing"]
    training = request.get("training") or {}
    reference, completion, generations = (
        training.get(name) or None for name in ("reference", "completion_length", "num_generations")
    )
    objective = objective_of(str(training.get("name", "sft")), reference, completion, generations, int(request["seq_len"]))
    settings = Settings(
        objective=replace(objective, vllm_bytes=int(training.get("vllm_bytes") or 0)),
        micro_batch_size=int(chosen["micro_batch_size"]),
        seq_len=int(request["seq_len"]),
        dtype=str(chosen["dtype"]),
        precision=str(chosen["precision"]),
        attention=str(request["attention"]),
        loss=str(request["loss"]),
        gradient_checkpointing="non-reentrant" if how is True else "off" if how is False else str(how),
        max_grad_norm=float(request.get("max_grad_norm", 1.0)),
        attention_dropout=request.get("attention_dropout"),
        padded=bool(request.get("padded", False)),
        keep_outputs=bool(request.get("keep_outputs", False)),
        use_cache=bool(request.get("use_cache", False)),
        kernels=str(request.get("kernels", BITSANDBYTES)),
    )
    method = parse(str(chosen["method"]))
    optimizer = find_optimizer(str(chosen["optimizer"]))
    stage = int(chosen["parallelism"]["zero_stage"])
    spec = read_spec(*load(str(request["model"])))
    margin = float(request["safety_margin"]) if target.gpu is not None else 0.0
    job = Job(
        spec=spec,
        methods=(method,),
        targets=(target,),
        tokens=int(request["tokens"]),
        global_batch_size=int(request["global_batch_size"]),
        settings=settings,
        precision=settings.precision,
        dtype=settings.dtype,
        checkpointing=(settings.gradient_checkpointing,),
        micro_batch_sizes=(int(settings.micro_batch_size),),
        optimizers=(optimizer,),
        zero_stages=(stage,),
        fsdp_units=fsdp_units,
        purchase=str(request["purchase"]),
        safety_margin=margin,
    )
    answer = find(job, today)
    if not answer.plans and not answer.rejected:
        raise InputError(f"{count} GPUs cannot share global-batch-size {job.global_batch_size} as the plan says; plan anew")
    return answer.plans[0] if answer.plans else answer.rejected[0].plan


def _target(request: Mapping[str, Any], chosen: Mapping[str, Any], count: int) -> Target:
    """The card or instance that the document names; for an unknown card its usable memory."""
    usable = int(chosen["peak"]["usable_bytes"])
    for label in request["gpus"]:
        if label == "unknown card":
            continue
        found = targets([str(label)], (count,))[0]
        if found.gpu is not None and found.gpu.id == chosen["gpu"]:
            return found
    if "unknown card" in request["gpus"]:
        memory = usable
        while usable_bytes(memory, 0.0) < usable:
            memory += usable - usable_bytes(memory, 0.0)
        return Target("unknown card", None, memory, (count,))
    raise InputError(f"the plan is for {chosen['gpu']}, which is no card of the bundled data; plan and export in one command")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """What the document's version counted otherwise."""
    notes = []
    given, counted = old["peak"].get("allocated_bytes"), new["peak"]["allocated_bytes"]
    if given != counted:
        notes.append(f"the file says a peak of {given} bytes, and this version counts {counted}; the files state the latter")
    return tuple(notes)

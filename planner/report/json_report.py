"""Plans as the JSON document of `plan --json`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import explicit
from tuneplan.planner.plan import Answer, Plan, Rejected, front
from tuneplan.planner.savings import Saving

if TYPE_CHECKING:
    from tuneplan.planner.why_not import WhyNot


def answer_json(answer: Answer, savings: Sequence[Saving] = (), why: "WhyNot | None" = None) -> dict[str, Any]:
    """The whole answer: the request with every default, the plan that is recommended, all plans, and what cannot be.

    Args:
        answer: what was found.
        savings: what switches would save or cost the recommended plan.
        why: what is wrong with a configuration that the user named.
    """
    on_front = front(answer.plans)
    plans = [{**plan_json(plan), "pareto": best} for plan, best in zip(answer.plans, on_front, strict=True)]
    return {
        "request": job_json(answer.job),
        "recommended": plans[0] if plans else None,
        "plans": plans,
        "infeasible": [rejected_json(rejected) for rejected in answer.rejected],
        "savings": [saving.to_json() for saving in savings],
        "evaluated": answer.evaluated,
        "plans_left_out": answer.plans_left_out,
        "infeasible_left_out": answer.rejected_left_out,
        **({"why_not": _why_json(why)} if why is not None else {}),
        **({"config": answer.job.config.to_json()} if answer.job.config else {}),
        **warnings_json(answer.job),
    }


def counted(job: Job) -> str:
    """Where the bytes of a job's plans come from, in a word."""
    return "counted" if job.spec.source is None else "traced"


def warnings_json(job: Job) -> dict[str, Any]:
    """What the user should know of the files that the job was read from, and of a model that was traced, which is said."""
    said = list(job.config.config.warnings) if job.config else []
    said += [job.spec.note] if job.spec.source is not None else []
    traced = {"source": "traced"} if job.spec.source is not None else {}
    return {**traced, **({"warnings": said} if said or job.config else {})}


def _why_json(why: "WhyNot") -> dict[str, Any]:
    """The wish, the configuration that it led to, and the reasons."""
    return {
        "wish": why.wish,
        "plan": plan_json(why.plan) if why.plan else None,
        "infeasible": rejected_json(why.rejected) if why.rejected else None,
        "reasons": list(why.reasons),
    }


def job_json(job: Job) -> dict[str, Any]:
    """What was asked, defaults included."""
    s = job.settings
    return {
        "model": job.spec.id,
        "methods": [method.name for method in job.methods],
        "methods_in_full": [explicit(method) for method in job.methods],
        "gpus": [target.label for target in job.targets],
        "gpu_counts": sorted({count for target in job.targets for count in target.counts}),
        "gpu_counts_left_out": job.left_out,
        "seq_len": s.seq_len,
        "global_batch_size": job.global_batch_size,
        "tokens": job.tokens,
        "dtype": job.dtype,
        "precision": job.precision,
        "optimizers": [optimizer.name for optimizer in job.optimizers],
        "gradient_checkpointing": list(job.checkpointing),
        "attention": s.attention,
        "loss": s.loss,
        "training": s.objective.to_json(),
        "attention_dropout": s.attention_dropout,
        "padded": s.padded,
        "keep_outputs": s.keep_outputs,
        "use_cache": s.use_cache,
        "kernels": s.kernels,
        "max_grad_norm": s.max_grad_norm,
        "zero_stages": list(job.zero_stages),
        "layouts": job.layouts,
        "objective": job.objective,
        "purchase": job.purchase,
        "safety_margin": job.safety_margin,
        "max_hours": job.max_hours,
        "overheads": {
            "startup_seconds": job.overheads.startup_seconds,
            "evaluation_tokens": job.overheads.evaluation_tokens,
            "evaluations": job.overheads.evaluations,
            "save_steps": job.overheads.save_steps,
            "disk_bytes_per_second": job.overheads.disk_bytes_per_second,
            "interruption_hours": job.overheads.interruption_hours,
        },
        "max_usd": None if job.max_usd is None else float(job.max_usd),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """One plan."""
    request, settings, time = plan.request, plan.request.settings, plan.time
    levels = dict(zip(CATEGORIES, plan.memory.peak.levels, strict=True))
    allocated = plan.memory.peak.peak_bytes
    return {
        "method": request.method.name,
        "gpu": plan.target.gpu.id if plan.target.gpu else plan.target.label,
        "instance": _instance(plan),
        "gpu_count": plan.gpu_count,
        "micro_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": request.gradient_accumulation_steps,
        "gradient_checkpointing": settings.gradient_checkpointing != "off",
        "optimizer": request.optimizer.name,
        "dtype": settings.dtype,
        "precision": settings.precision,
        "parallelism": {
            "data_parallel": request.sharding.data_parallel,
            "zero_stage": request.sharding.zero_stage,
            **(request.sharding.more() if request.sharding.splits_model else {}),
            "label": request.sharding.label,
        },
        "peak": {
            "allocated_bytes": allocated,
            "reserved_bytes": allocated + plan.fragmentation_bytes,
            "device_bytes": plan.device_bytes,
            "usable_bytes": plan.usable_bytes,
            "phase": plan.memory.peak_phase,
            "op": plan.memory.peak.op,
        },
        "components": {**levels, "runtime": plan.runtime.total_bytes},
        "step_seconds": time.seconds if time else None,
        "tokens_per_second": time.tokens_per_second if time else None,
        "hours": plan.hours,
        "wall_clock": plan.clock.to_json() if plan.clock is not None and plan.hours is not None else None,
        "usd": None if plan.usd is None else float(plan.usd),
        "price": plan.price.to_json() if plan.price else None,
        "basis": {
            "allocated_bytes": "counted" if plan.network.recorded is None else plan.network.recorded.basis,
            "reserved_bytes": "modelled: replayed" if plan.replayed else "modelled: an allowance on the allocated peak",
            "time": "modelled" if time else None,
        },
    }


def rejected_json(rejected: Rejected) -> dict[str, Any]:
    """The closest configuration that is not a plan, why, by how much, and what would help."""
    return {
        **plan_json(rejected.plan),
        "reason": rejected.reason,
        "short_by_bytes": max(0, rejected.plan.short_by_bytes),
        "component": rejected.plan.largest_component,
        "smallest_change": rejected.remedy or None,
    }


def _instance(plan: Plan) -> str | None:
    if plan.target.instance is not None:
        return plan.target.instance.id
    return plan.price.offer.instance.id if plan.price else None

"""A comparison of methods as the JSON document of `plan compare --json`."""

from typing import Any

from tuneplan.planner.compare import Comparison, Row
from tuneplan.planner.guide import guide
from tuneplan.planner.methods.compose import explicit
from tuneplan.planner.report.json_report import counted, job_json, plan_json, rejected_json, warnings_json
from tuneplan.planner.timing.decoding import Decoding


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """What was asked, every row, what was left out and why, and the guide."""
    common = comparison.settings
    return {
        "request": {
            **job_json(comparison.job),
            "common": {
                "micro_batch_size": common.micro_batch_size,
                "seq_len": common.seq_len,
                "gradient_checkpointing": common.gradient_checkpointing,
                "optimizer": comparison.job.optimizers[0].name,
                "gpu_count": 1,
            },
        },
        "methods": [_row_json(row) for row in comparison.rows],
        "left_out": [{"method": name, "reason": reason} for name, reason in comparison.left_out],
        "guide": [
            {
                "need": advice.need,
                "rule": advice.rule,
                "methods": [{"method": name, "because": figure} for name, figure in advice.methods],
                "met_by": advice.met,
            }
            for advice in guide(comparison.rows)
        ],
        **warnings_json(comparison.job),
        "basis": {
            "parameters": "counted",
            "flops_per_token": "counted: matrix products of forward and backward, a multiply-add is 2",
            "training_memory": f"{counted(comparison.job)} (allocated); modelled (reserved, runtime)",
            "inference": "counted (FLOPs, bytes, kernels); modelled (seconds: one token, batch 1, empty cache)",
            "checkpoint_bytes": "counted",
            "plan": "modelled: the best plan of each method for the same tokens",
            "evidence": "published by others; see the source of each result",
        },
    }


def _row_json(row: Row) -> dict[str, Any]:
    found, parts = row.estimate, row.method.parts
    return {
        "method": row.method.name,
        "method_in_full": explicit(row.method),
        "families": list(dict.fromkeys(part.family for part in parts)),
        "parameters": {
            "total": found.network.total_parameters,
            "trainable": found.network.trainable_parameters,
            "trainable_share": row.trained_share,
        },
        "training_compute": {
            "flops_per_token": row.flops_per_token,
            "recomputed_flops_per_token": row.recomputed_flops_per_token,
        },
        "training_memory": {
            "peak": found.peak_json(),
            "components": found.components,
            "gradient_checkpointing": found.request.settings.gradient_checkpointing,
            "precision": found.request.settings.precision,
            "fits": found.request.capacity_bytes is None or found.device_bytes <= found.request.capacity_bytes,
        },
        "inference": _serving_json(row),
        "checkpoint_bytes": found.checkpoint_bytes,
        "full_model_bytes": row.full_model_bytes,
        "adapters_per_full_model": row.adapters_per_model,
        "plan": plan_json(row.plan) if row.plan else None,
        "refused": rejected_json(row.refused) if row.refused and row.plan is None else None,
        "integration": {
            "effort": row.effort,
            "code_changes": list(row.code_changes),
            "changes_served_model": not row.leaves_model_alone,
            "swappable": row.swappable,
            "batchable": row.batchable,
        },
        "quality": _quality_json(row),
        "evidence": [finding.to_json() for finding in row.findings],
        "papers": [part.paper for part in parts],
        "not_modelled": [part.not_modelled for part in parts if part.not_modelled],
    }


def _serving_json(row: Row) -> dict[str, Any]:
    serving = row.serving
    merging = {"mergeable": row.method.mergeable, "merge_notes": list(row.merge_notes)}
    if serving is None:
        return {**merging, **dict.fromkeys(("weight_bytes", "cache", "added", "token_seconds", "unmerged_overhead"))}
    return {
        **merging,
        "weight_bytes": {"merged": row.merged_bytes, "unmerged": serving.weight_bytes, "adapter": serving.adapter_bytes},
        "cache": {"bytes_per_token": serving.token_bytes, "virtual_tokens": serving.cached_tokens, "bytes": serving.cached_bytes},
        "added": {"flops": serving.flops, "moved_bytes": serving.moved_bytes, "kernels": serving.launches},
        "token_seconds": {
            "base": _decoding_json(row.base),
            "merged": _decoding_json(row.merged),
            "unmerged": _decoding_json(row.unmerged),
        },
        "unmerged_overhead": row.overhead,
    }


def _decoding_json(time: Decoding | None) -> dict[str, float] | None:
    return None if time is None else {"device": time.device_seconds, "eager": time.eager_seconds}


def _quality_json(row: Row) -> dict[str, Any] | None:
    quality = row.quality
    if quality is None:
        return None
    return {"results": quality.count, "median": quality.median, "lowest": quality.lowest, "highest": quality.highest}

"""`plan diff --json`: both configurations and what changes between them."""

from typing import Any

from tuneplan.planner.diff import Diff, Side


def diff_json(found: Diff) -> dict[str, Any]:
    """The document's body."""
    return {
        "old": _side(found.old),
        "new": _side(found.new),
        "settings": [{"name": name, "old": old, "new": new} for name, old, new in found.settings],
        "peak": _change(found.old.estimate.device_bytes, found.new.estimate.device_bytes),
        "allocated": _change(found.old.estimate.allocated_bytes, found.new.estimate.allocated_bytes),
        "components": {name: _change(old, new) for name, old, new in found.components},
        "phases": {name: _change(old, new) for name, old, new in found.phases},
        "step_seconds": _change(found.old.step_seconds, found.new.step_seconds),
        "tokens_per_second": _change(found.old.tokens_per_second, found.new.tokens_per_second),
        "usd_per_million_tokens": _change(_float(found.old), _float(found.new)),
        "breaches": list(found.breaches),
    }


def _float(side: Side) -> float | None:
    return None if side.usd_per_million_tokens is None else float(side.usd_per_million_tokens)


def _change(old: float | None, new: float | None) -> dict[str, float | None]:
    difference = None if old is None or new is None else new - old
    percent = None if difference is None or not old else 100 * difference / old
    return {"old": old, "new": new, "change": difference, "percent": percent}


def _side(side: Side) -> dict[str, Any]:
    result = side.estimate
    return {
        "name": side.name,
        "request": result.request.to_json(),
        "parameters": {"total": result.network.total_parameters, "trainable": result.network.trainable_parameters},
        "peak": result.peak_json(),
        "checkpoint_bytes": result.checkpoint_bytes,
        "fits": side.fits,
        "price": None if side.price is None else side.price.to_json(),
        "config": None if result.request.config is None else result.request.config.to_json(),
        "warnings": list(result.warnings),
    }

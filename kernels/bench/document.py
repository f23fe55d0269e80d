"""The result of a session as one JSON document: `plan bench --json`. Its schema is docs/schemas/bench.json."""

from typing import Any

from tuneplan.kernels.bench.ceilings import Ceilings
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.rows import WRONG, Row
from tuneplan.kernels.bench.session import Session

OWN = "tuneplan"


def document(machine: Machine, ceilings: Ceilings, session: Session, seconds: float) -> dict[str, Any]:
    """All of it, without `schema_version`."""
    return {
        "request": {"device": machine.device.type, "seconds": seconds},
        "provenance": machine.provenance,
        "ceilings": ceilings.as_json(),
        "clock": "CUDA graphs, inputs beyond the cache" if machine.on_gpu else "wall time of calls on a CPU",
        "rows": [{key: value for key, value in one.items() if key not in ("kind", "provenance")} for one in session.rows],
        "left": [case.label for case in session.left],
        "done_before": session.done_before,
    }


def is_wrong(rows: list[Row]) -> bool:
    """Whether a kernel of this package gave a wrong result."""
    return any(one["state"] == WRONG and one["implementation"] == OWN for one in rows)

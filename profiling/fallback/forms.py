"""Forms of many sizes at once, and a traced step's events as arrays, which read back from the cache without an object each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuneplan.planner.graph.tensor import ACTIVATIONS, WEIGHTS, round_block

Ints: TypeAlias = NDArray[np.int64]
EXISTING, BATCH = "existing", "batch"
"""How the tracker names what was there before the steps."""


def values(table: Ints, batch: int, length: int) -> Ints:
    """Every form of a table at a batch and a length; see `sizes.Form` for the columns."""
    base, power, multiple, mixed, c0, c1, c2 = table.T
    u = -(-length // multiple) * multiple
    t = np.where(mixed == 1, length, u)
    found: Ints = base + (c0 + c1 * u + c2 * u * t) * np.where(power == 1, batch, 1)
    return found


@dataclass(frozen=True, slots=True)
class Events:
    """Births and deaths of a program, in order.

    Attributes:
        table: forms.
        form: of each storage, a row of `table`.
        category: of each storage; the batch is an activation.
        existing: whether it is a weight or a buffer that was there from the start.
        kind: of each storage, a row of `names`.
        names: phase, operator and module of a storage.
        storage: of each entry of the log.
        born: whether the entry is a birth.
    """

    table: Ints
    form: Ints
    category: Ints
    existing: NDArray[np.bool_]
    kind: Ints
    names: list[tuple[str, str, str]]
    storage: Ints
    born: NDArray[np.bool_]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Events":
        """Those of a program as `codec.encode` gives it. Raises what numpy does where the parts do not belong together."""
        kinds = content["storages"]
        names = [(str(phase), str(op), str(module)) for phase, op, module, _ in kinds]
        of_kind = [ACTIVATIONS if op == BATCH else int(category) for _, op, _, category in kinds]
        kind = np.array(content["storage_numbers"], np.int64)
        log = np.array(content["log"], np.int64)
        loaded = [op == EXISTING and category == WEIGHTS for (_, op, _), category in zip(names, of_kind, strict=True)]
        return cls(
            np.array(content["forms"], np.int64).reshape(-1, 7),
            np.array(content["form_numbers"], np.int64)[: len(kind)],
            np.array(of_kind, np.int64)[kind],
            np.array(loaded, np.bool_)[kind],
            kind,
            names,
            np.where(log >= 0, log, -1 - log),
            log >= 0,
        )

    def sizes(self, batch: int, length: int) -> Ints:
        """Bytes of each storage, as the allocator counts them."""
        found: Any = round_block(values(self.table, batch, length)[self.form])  # type: ignore[arg-type]
        return np.asarray(found, np.int64)

    def label(self, storage: int) -> str:
        """Module and operator of a storage."""
        _, op, module = self.names[int(self.kind[storage])]
        return f"{module}.{op}".strip(".")

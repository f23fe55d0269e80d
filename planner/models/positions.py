"""Tables of positions that end, and sequences that do not fit them."""

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import Size


def check(id: str, rows: int, tokens: Size) -> None:
    """Raise InputError for sequences, virtual tokens and a prefix included, that are longer than a table of positions.

    `id`: of the model; `rows`: positions that the table has; `tokens`: of a sequence, or of several configurations.
    """
    longest = tokens if isinstance(tokens, int) else int(tokens.max())
    if longest > rows:
        raise InputError(
            f"{id} has a table of {rows} positions, so that sequences of {longest} (virtual tokens and a prefix included) fail; "
            f"use --seq-len {rows} or less"
        )

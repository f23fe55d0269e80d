"""How many rows each expert of a layer gets where a loop runs them one by one."""

from collections.abc import Sequence

from tuneplan.planner.graph.tensor import Size


def rows_of_experts(tokens: Size, top_k: int, experts: int, routing: str) -> list[Size]:
    """Rows of each expert, of which a token has `top_k`, all different.

    Args:
        tokens: of a forward.
        top_k: experts of a token.
        experts: how many there are.
        routing: "even": one row after the other goes to the next expert; "worst": all tokens choose the same experts.
    """
    if routing == "worst":
        return [tokens if index < top_k else 0 for index in range(experts)]
    rows = tokens * top_k
    return [rows // experts + 1 * (index < rows % experts) for index in range(experts)]


def hit(rows: Sequence[Size]) -> list[Size]:
    """Those that have rows, in turn. Arrays of sizes come in the order of rows: some have none in some configurations.

    The backward then begins with experts that have rows, to whose gradients nothing is added by those that have none.
    """
    if all(isinstance(count, int) for count in rows):
        return [count for count in rows if count]
    return [count for count in reversed(rows) if not isinstance(count, int) or count]

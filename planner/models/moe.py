"""A mixture of experts: stacked weights, a router, and the implementations that transformers chooses from.

Mirrors transformers 5.23 integrations/moe.py (`grouped_mm_experts_forward`, `batched_mm_experts_forward`) and the `Experts`
and `TopKRouter` classes of models/mixtral and its relatives; the loop over experts is in expert_loop.py. `grouped_mm` is what
transformers runs unless `experts_implementation` says otherwise (`get_correct_experts_implementation`). T tokens, k experts of a
token, S = T * k rows, H hidden size, I intermediate size, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Size, Tensor
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.expert_loop import looped
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.router_logits import record
from tuneplan.planner.training.settings import EXPERTS, LOOP

Made: TypeAlias = tuple[Callable[[], Tensor], Callable[[], Tensor]]


@dataclass(frozen=True, slots=True)
class Routed:
    """What a router gives: weights `(T, k)`, experts `(T, k)` int64, and what the block's code holds to its end."""

    weights: Tensor
    experts: Tensor
    held: tuple[Tensor, ...] = ()


def softmax_router(
    model: Assembly, module: str, x: Tensor, experts: int, k: int, *, normed: bool = True, cast_back: bool = True
) -> Routed:
    """Softmax over all experts in fp32, then the k largest; `MixtralTopKRouter`, `Qwen3MoeTopKRouter` of transformers 5.23.

    Args:
        model: where ops are recorded.
        module: name of the router within the layer.
        x: tokens `(T, H)`.
        experts: how many there are.
        k: how many a token gets.
        normed: the k weights are divided by their sum.
        cast_back: they return to the dtype of the logits (Mixtral's stay in fp32).
    """
    tape = model.tape
    logits = router_logits(model, module, x, experts)
    probabilities = pw.softmax(tape, pw.cast(tape, logits, "fp32"))
    values, chosen = rt.topk(tape, probabilities, k)
    if normed:
        values = rt.divide_in_place(tape, values, rt.summed(tape, values, (x.shape[0], 1)))
    weights = pw.cast(tape, values, logits.dtype) if cast_back else values
    tape.hold(probabilities)
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def grouped_sigmoid_router(model: Assembly, module: str, x: Tensor, experts: int, k: int, groups: int, normed: bool) -> Routed:
    """`DeepseekV3TopkRouter`: sigmoid scores in fp32; a bias, which is no parameter, and groups decide which experts run.

    `groups`: of experts, the best of which are searched. Other arguments as for `softmax_router`.
    """
    tape = model.tape
    logits = router_logits(model, module, x, experts, dtype="fp32")
    scores = pw.sigmoid(tape, logits)
    tokens = x.shape[0]

    def step(kind: str, shape: tuple[Size, ...], dtype: str, *read: Tensor) -> Tensor:
        return tape.record(kind, read, tape.fresh(shape, dtype, False))

    biased = step("add", scores.shape, "fp32", scores)
    pair, positions = step("topk", (tokens, groups, 2), "fp32", biased), step("topk", (tokens, groups, 2), "int64")
    best = step("sum", (tokens, groups), "fp32", pair)
    chosen_groups = step("topk", (tokens, groups), "int64", best)
    mask = step("scatter_", (tokens, groups), "fp32", chosen_groups)
    spread = step("reshape", scores.shape, "fp32", mask)
    bits = step("bool", scores.shape, "bool", spread)
    dropped = step("not", scores.shape, "bool", bits)
    filled = step("masked_fill", scores.shape, "fp32", biased, dropped)
    tape.hold(biased, positions, dropped)
    values, chosen = step("topk", (tokens, k), "fp32", filled), step("topk", (tokens, k), "int64")
    tape.hold(values)
    weights = rt.gather(tape, scores, chosen, (tokens, k), "gather")
    if normed:
        total = pw.shift(tape, rt.summed(tape, weights, (tokens, 1)))
        weights = rt.divide_in_place(tape, weights, total)
    weights = pw.scale(tape, weights)
    tape.hold(scores, best, chosen_groups, mask, spread, filled)
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def sigmoid_router(model: Assembly, module: str, x: Tensor, experts: int, k: int) -> Routed:
    """`MiniMaxM2TopKRouter`: sigmoid scores in fp32; a bias, which is no parameter, decides which experts run.

    Arguments as for `softmax_router`.
    """
    tape = model.tape
    logits = router_logits(model, module, x, experts)
    wide = pw.cast(tape, logits, "fp32")
    scores = pw.sigmoid(tape, wide)
    biased = tape.record("add", (scores,), tape.fresh(scores.shape, "fp32", False))
    best = tape.record("topk", (biased,), tape.fresh((x.shape[0], k), "fp32", False))
    chosen = rt.indices(tape, "topk", (x.shape[0], k))
    weights = rt.gather(tape, scores, chosen, (x.shape[0], k), "gather")
    weights = rt.divide_in_place(tape, weights, rt.summed(tape, weights, (x.shape[0], 1)))
    tape.hold(scores, biased, best)
    tape.scope = ""
    return Routed(weights, chosen, (logits,))


def router_logits(model: Assembly, module: str, x: Tensor, experts: int, dtype: str = "", wide: bool = False) -> Tensor:
    """`F.linear` with the router's own weight, which is no module that PEFT or bitsandbytes would take. Gives `(T, E)`.

    `dtype`: in which it is computed, where its code says so; `wide`: the router casts them to fp32 and gives those.
    """
    tape = model.tape
    tape.scope = module
    weight = model.stacked_weight(module, "weight", (experts, x.shape[-1]), kind="router")()
    if dtype:
        x, weight = pw.cast(tape, x, dtype), pw.cast(tape, weight, dtype)
    logits = linear(tape, x, weight)
    logits = pw.cast(tape, logits, "fp32") if wide else logits
    record(model, logits)
    tape.hold(weight, *model.wrapped)
    model.wrapped = []
    return logits


def run_experts(model: Assembly, x: Tensor, routed: Routed, experts: Experts) -> Tensor:
    """The experts' outputs, weighted and summed. Shapes: x `(T, H)` -> `(T, H)`."""
    settings = model.settings
    model.notes.setdefault("experts_implementation", settings.experts)
    tape = model.tape
    outer, tape.scope = tape.scope, experts.module
    if settings.experts == "grouped_mm":
        y = _grouped(model, x, routed, experts, experts.weights(model))
    elif settings.experts == "batched_mm":
        y = _batched(model, x, routed, experts, experts.weights(model))
    elif settings.experts == LOOP:
        y = looped(model, x, routed.weights, routed.experts, experts, experts.weights(model))
    else:
        raise InputError(
            f"experts_implementation {settings.experts!r} is not modelled; choose one of {', '.join(EXPERTS)} "
            "(transformers runs grouped_mm unless it is told otherwise)"
        )
    tape.hold(*model.wrapped)
    model.wrapped = []
    tape.scope = outer
    return y


def touched(tokens: Size, experts: Experts) -> Size:
    """Experts that have any rows, each of which is read: as many as the rows can reach."""
    rows = tokens * experts.top_k
    return rows + (rows > experts.count) * (experts.count - rows)


def _grouped(model: Assembly, x: Tensor, routed: Routed, experts: Experts, made: Made) -> Tensor:
    tape = model.tape
    tokens, hidden = x.shape
    rows = tokens * experts.top_k
    weights = tape.view("reshape", routed.weights, (rows,))
    ordered = rt.indices(tape, "sort", (rows,), "int64", routed.experts)
    order = rt.indices(tape, "sort", (rows,))
    chosen = rt.gather(tape, x, rt.indices(tape, "floor_divide", (rows,), "int64", order), (rows, hidden))
    weights = rt.gather(tape, weights, order, (rows,))
    whole = rt.indices(tape, "int", (rows,), "int32", ordered)
    counts = rt.indices(tape, "histc", (experts.count,), "int32", whole)
    offsets = rt.indices(tape, "cumsum", (experts.count,), "int32", counts)
    share = touched(tokens, experts)
    up = made[0]()
    shift = experts.bias(model, "up")
    per_row = rt.gather(tape, shift, ordered, (rows, experts.up_features)) if shift is not None else None
    y = rt.grouped_linear(tape, chosen, up, offsets, experts.up_features, share * experts.matrix_bytes(up))
    y = y if per_row is None else pw.add_in_place(tape, y, per_row)
    y = experts.activate(model, y)
    down = made[1]()
    shift = experts.bias(model, "down")
    lower = rt.gather(tape, shift, ordered, (rows, hidden)) if shift is not None else None
    tape.hold(*[t for t in (per_row,) if t is not None])
    y = rt.grouped_linear(tape, y, down, offsets, hidden, share * experts.matrix_bytes(down))
    y = y if lower is None else pw.add_in_place(tape, y, lower)
    weighted = pw.multiply(tape, y, tape.view("unsqueeze", weights, (rows, 1)))
    back = rt.indices(tape, "empty_like", (rows,))
    rt.indices(tape, "arange", (rows,))
    restored = rt.gather(tape, weighted, back, (rows, hidden))
    total = rt.summed(tape, restored, (tokens, hidden), copied=True)
    out = pw.cast(tape, total, x.dtype)
    biases = tuple([t for t in (lower,) if t is not None])
    tape.hold(x, ordered, order, chosen, weights, whole, counts, offsets, y, back, restored, total, *biases)
    return out


def _batched(model: Assembly, x: Tensor, routed: Routed, experts: Experts, made: Made) -> Tensor:
    """Every row gets a copy of its expert's matrices."""
    tape = model.tape
    tokens, hidden = x.shape
    rows = tokens * experts.top_k
    chosen = pw.repeated(tape, x, (rows, hidden))
    weights = tape.view("reshape", routed.weights, (rows,))
    y = chosen
    held: list[Tensor] = []
    for name in ("up", "down"):
        stacked = made[name == "down"]()
        shift = experts.bias(model, name)
        width = experts.up_features if name == "up" else hidden
        matrices = rt.gather(tape, stacked, routed.experts, (rows, *stacked.shape[1:]))
        per_row = rt.gather(tape, shift, routed.experts, (rows, width)) if shift is not None else None
        y = rt.batched_linear(tape, y, matrices, width)
        y = y if per_row is None else pw.add_in_place(tape, y, per_row)
        if name == "up":
            y = experts.activate(model, y)
        held = [matrices] if per_row is None else [matrices, per_row]
    weighted = pw.multiply(tape, y, tape.view("unsqueeze", weights, (rows, 1)))
    total = rt.summed(tape, weighted, (tokens, hidden), copied=True)
    out = pw.cast(tape, total, x.dtype)
    tape.hold(chosen, y, weighted, total, *held)
    return out

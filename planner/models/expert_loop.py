"""The loop over experts: one after the other, each with the tokens that chose it.

Mirrors the `forward` of `MixtralExperts`, `GptOssExperts` and `NemotronHExperts` of transformers 5.23, which
`experts_implementation="eager"` runs; those of the relatives are Mixtral's. Which tokens an expert gets depends on values, so
`Settings.routing` says what is assumed. T tokens, k experts a token, E experts, H hidden size, I intermediate size.
"""

from collections.abc import Callable
from typing import TypeAlias

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Size, Tensor
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.expert_rows import hit, rows_of_experts
from tuneplan.planner.models.expert_weights import Experts

Made: TypeAlias = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def looped(model: Assembly, x: Tensor, weights: Tensor, chosen: Tensor, experts: Experts, made: Made) -> Tensor:
    """The experts' outputs, weighted and summed: `(T, H)`.

    Args:
        model: where ops are recorded.
        x: tokens `(T, H)`.
        weights: of each token's experts `(T, k)`.
        chosen: which they are, `(T, k)`.
        experts: names and shapes.
        made: the stacked weights, made when they are first asked for.
    """
    tape = model.tape
    tokens = x.shape[0]
    total = tape.fresh(x.shape, x.dtype if experts.gated else weights.dtype, False)
    tape.record("zeros", (), total)
    classes = experts.count + (0 if experts.biased else 1)
    mask = rt.indices(tape, "one_hot", (tokens, experts.top_k, classes), "int64", chosen)
    counts = rt.indices(tape, "sum", (classes,), "int64", mask)
    found = rt.indices(tape, "nonzero", (experts.count,), "int64", rt.indices(tape, "greater", (classes,), "bool", counts))
    turns = hit(rows_of_experts(tokens, experts.top_k, experts.count, model.settings.routing))
    loop = _Loop(model, experts, made, x, weights, mask)
    for index, rows in enumerate(turns):
        total = loop.turn(rows, total, last=index == len(turns) - 1)
    out = pw.cast(tape, total, x.dtype)
    tape.hold(mask, found, total, *loop.variables.values())
    return out


class _Loop:
    """What the turns share.

    Attributes:
        variables: tensors that the loop's variables hold until the next turn gives them others, by name.
    """

    def __init__(self, model: Assembly, experts: Experts, made: Made, x: Tensor, weights: Tensor, mask: Tensor) -> None:
        self.variables: dict[str, Tensor] = {}
        self._model = model
        self._experts = experts
        self._made = made
        self._x = x
        self._weights = weights
        self._mask = mask
        self._stacks: dict[str, Tensor] = {}

    def turn(self, rows: Size, total: Tensor, last: bool) -> Tensor:
        """One expert, with so many rows; gives the sum that its outputs were added to.

        `last`: no other follows, so its gradients of the stacks are the first to be there.
        """
        e, tape = self._experts, self._model.tape
        where = self._set("where", rt.places(tape, self._mask, rows))
        state = self._set("state", rt.gather(tape, self._x, where, (rows, e.hidden)))
        wide = self._set("up" if e.gated else "hidden", self._product(state, "up", rows, last))
        inside = e.activate(self._model, wide) if e.gated else activation(tape, wide, e.activation)
        self._set("inside" if e.biased else "hidden", inside)
        out = self._set("out" if e.biased else "hidden", self._product(inside, "down", rows, last))
        share = rt.gather(tape, self._weights, where, (rows, 1))
        weighted = self._set("hidden", pw.multiply(tape, out, share))
        return rt.add_rows(tape, total, pw.cast(tape, weighted, total.dtype), where)

    def _set(self, name: str, value: Tensor) -> Tensor:
        """A variable gets a tensor; the one that it had goes."""
        before = self.variables.get(name)
        if before is not None:
            self._model.tape.hold(before)
        self.variables[name] = value
        return value

    def _product(self, x: Tensor, which: str, rows: Size, last: bool) -> Tensor:
        """Rows times the expert's "up" or "down" matrix, and its bias added where there is one."""
        e, tape = self._experts, self._model.tape
        if which not in self._stacks:
            self._stacks[which] = self._made[which == "down"]()
        shape = (e.up_features, e.hidden) if which == "up" else (e.hidden, e.intermediate)
        found: Size = 1 if isinstance(rows, int) else 1 * (rows > 0)
        y = linear(tape, x, rt.select(tape, self._stacks[which], shape, last, found))
        shift = e.bias(self._model, which)
        if shift is None:
            return y
        return pw.add(tape, y, rt.select(tape, shift, shift.shape[1:], last, found))

"""The stacked weights of a layer's experts, as transformers 5 keeps them: one parameter of three dimensions for all experts."""

from collections.abc import Callable
from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.tensor import Size, Tensor
from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Experts:
    """Names and shapes of one layer's experts, E of them.

    Attributes:
        module: name of the module within the layer, such as "mlp.experts".
        count: how many experts.
        top_k: experts of a token.
        hidden: width of the residual stream, H.
        intermediate: width inside an expert, I.
        activation: the fused activation between the products.
        gated: gate and up lie in one `gate_up_proj`; else there is an `up_proj` alone.
        transposed: weights are `(E, in, out)` instead of `(E, out, in)`.
        biased: every product has a bias of each expert.
        gate: how gate and up become one; "" is `act(gate) * up` of the two halves.
    """

    module: str
    count: int
    top_k: int
    hidden: int
    intermediate: int
    activation: str = "silu"
    gated: bool = True
    transposed: bool = False
    biased: bool = False
    gate: str = ""

    @property
    def up_features(self) -> int:
        """Columns of the first product."""
        return 2 * self.intermediate if self.gated else self.intermediate

    @property
    def _up_name(self) -> str:
        return "gate_up_proj" if self.gated else "up_proj"

    def weights(self, model: Assembly) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """The first weight `(E, 2I, H)` or, without a gate, `(E, I, H)`, and the second `(E, H, I)`, made when asked for.

        The wrapper of the second is the outer one, so that it comes first.
        """
        down = self._weight(model, "down_proj", self.hidden, self.intermediate)
        return self._weight(model, self._up_name, self.up_features, self.hidden), down

    def _weight(self, model: Assembly, name: str, rows: int, columns: int) -> Callable[[], Tensor]:
        shape = (self.count, columns, rows) if self.transposed else (self.count, rows, columns)
        return model.stacked_weight(self.module, name, shape, self.transposed)

    def bias(self, model: Assembly, which: str) -> Tensor | None:
        """The bias of the "up" or "down" product of every expert `(E, columns)`, if there is one."""
        if not self.biased:
            return None
        name, width = (self._up_name, self.up_features) if which == "up" else ("down_proj", self.hidden)
        return model.weight(self.module, (self.count, width), "bias", f"{name}_bias", "experts")

    def matrix_bytes(self, weight: Tensor) -> int:
        """Bytes of one expert's matrix."""
        return weight.nbytes // self.count

    def activate(self, model: Assembly, x: Tensor) -> Tensor:
        """What lies between the products. Shapes: x `(S, 2I)` or `(S, I)` -> `(S, I)`."""
        tape = model.tape
        if not self.gated:
            return activation(tape, x, self.activation)
        if self.gate:
            return GATES[self.gate](model, x, self.intermediate)
        gate, up = pw.split(tape, x, [(*x.shape[:-1], self.intermediate)] * 2)
        y = pw.multiply(tape, activation(tape, gate, self.activation), up)
        tape.hold(gate, up)
        return y


def clamped_gate(model: Assembly, x: Tensor, intermediate: Size) -> Tensor:
    """`GptOssExperts._apply_gate`: halves interleaved and clamped, `(up + 1) * gate * sigmoid(alpha * gate)`."""
    tape = model.tape
    shape = (*x.shape[:-1], intermediate)
    gate, up = (pw.activation(tape, pw.narrow(tape, x, shape), "clamp") for _ in range(2))
    glu = pw.multiply(tape, gate, pw.sigmoid(tape, pw.scale(tape, gate)))
    y = pw.multiply(tape, pw.shift(tape, up), glu)
    tape.hold(x, gate, up, glu)
    return y


GATES = {"clamped": clamped_gate}

"""Res-Tuning-Bypass: small bottlenecks beside the frozen layers, which read every layer's output."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.side_network import SideNetwork

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class ResTuning(SideNetwork):
    """b_i = g T(h_i) + (1 - g) T'(b_(i-1)), T and T' bottlenecks with the identity added; the head gets b_n.

    Attributes:
        bottleneck: width of a tuner.
    """

    label: ClassVar[str] = "res_tuning"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = (
        "Jiang et al. 2023, Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone"
    )
    source: ClassVar[str] = "section 3.3, equations 6 and 7 (Res-Tuning-Bypass), with Res-Adapters as the tuners"
    not_modelled: ClassVar[str] = (
        "Res-Tuning inside the layers, which costs what the unbound tuners cost: lora, bottleneck_adapter"
    )

    bottleneck: int = 64

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a width that makes no bottleneck."""
        SideNetwork.check_spec(self, spec, settings)
        if not 1 <= self.bottleneck <= spec.hidden_size:
            raise InputError(f"res_tuning: bottleneck={self.bottleneck} is no width from 1 to {spec.hidden_size}")

    def first(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The embeddings through a tuner: the bypass starts with them."""
        return self._tuner(model, "bypass_first", hidden)

    def step(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """Blend the layer's output and the state, each through a tuner."""
        across = self._tuner(model, "bypass_horizontal", hidden)
        along = self._tuner(model, "bypass_vertical", state)
        model.tape.scope = "bypass"
        return self.blend(model, "bypass_gate", across, along)

    def last(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """The state."""
        model.tape.hold(hidden)
        return state

    def _tuner(self, model: "Assembly", name: str, x: Tensor) -> Tensor:
        """`x + U f(D x)`, with biases."""
        tape = model.tape
        tape.scope = name
        width, inner = model.spec.hidden_size, self.bottleneck
        low = linear(
            tape,
            x,
            model.adapter(f"{name}.down.weight", (inner, width), x.dtype),
            model.adapter(f"{name}.down.bias", (inner,), x.dtype),
        )
        active = pw.activation(tape, low, "gelu")
        up = linear(
            tape,
            active,
            model.adapter(f"{name}.up.weight", (width, inner), x.dtype),
            model.adapter(f"{name}.up.bias", (width,), x.dtype),
        )
        out = pw.add(tape, x, up)
        tape.hold(x)
        return out

"""Networks beside a frozen model: the model runs without gradients, and what is trained reads its hidden states.

The backward goes through the side network alone, so nothing of the model's layers is kept but what the side network read.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Fields of a family's spec that are widths."""


@dataclass(frozen=True, slots=True)
class SideNetwork(Part, ABC):
    """What every network beside the layers has: it goes on at each layer's entry, and ends before the model's last norm."""

    mergeable: ClassVar[bool] = False
    code_changes: ClassVar[str] = "a second stack of modules, and a forward that runs the model under no_grad beside it"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "model code"
    clashes: ClassVar[Mapping[str, str | None]] = {
        "*": "the model runs without gradients, so that nothing inside it can be trained",
        "quantized_base": None,
    }

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError with gradient checkpointing, which a frozen model has no use for."""
        if settings.gradient_checkpointing != "off":
            raise InputError(
                f"{self.label}: nothing of the frozen layers is kept for a backward, so gradient checkpointing has nothing to "
                "save; use --no-gradient-checkpointing"
            )

    def allows(self, settings: "Settings") -> bool:
        """Only without gradient checkpointing."""
        return settings.gradient_checkpointing == "off"

    def layer_entry(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Move the side network on by what enters the layer; the layer itself is untouched."""
        model.beside = self.first(model, hidden) if model.beside is None else self.step(model, hidden, model.beside)
        model.tape.scope = ""
        return hidden

    def stack_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """What the head gets."""
        assert model.beside is not None
        out = self.last(model, hidden, self.step(model, hidden, model.beside))
        model.tape.scope = ""
        return out

    @abstractmethod
    def first(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The state before the first layer, from the embeddings."""

    @abstractmethod
    def step(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """The state after a layer, whose output is `hidden`."""

    def last(self, model: "Assembly", hidden: Tensor, state: Tensor) -> Tensor:
        """What the model's last norm gets of the last layer's output and the last state: by default that output."""
        return hidden

    def project(self, model: "Assembly", name: str, x: Tensor, width: int) -> Tensor:
        """A trained linear map without bias, in the model's dtype."""
        return linear(model.tape, x, model.adapter(f"{name}.weight", (width, int(x.shape[-1])), x.dtype))

    def blend(self, model: "Assembly", name: str, a: Tensor, b: Tensor) -> Tensor:
        """`g a + (1 - g) b` with `g` the sigmoid of one trained number."""
        tape = model.tape
        gate = model.adapter(name, (1,), a.dtype)
        share = tape.fresh((1,), a.dtype, True)
        tape.record("sigmoid", (gate,), share, saved=(share,), gradients=(Gradient(gate, round_block(gate.nbytes)),))
        other = pw.shift(tape, pw.scale(tape, share, "neg"))
        first = pw.multiply(tape, share, a)
        second = pw.multiply(tape, other, b)
        out = pw.add(tape, first, second)
        tape.hold(a, b, share)
        return out


@dataclass(frozen=True, slots=True)
class NarrowCopy(SideNetwork):
    """A side network of the model's own layers, narrower.

    Attributes:
        reduction_factor: the model's widths over the side network's (of the hidden states, of the MLP, and of a head).
    """

    reduction_factor: int = 8

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for widths that do not divide."""
        SideNetwork.check_spec(self, spec, settings)
        factor = self.reduction_factor
        if factor < 1:
            raise InputError(f"{self.label}: reduction_factor={factor} is no ratio; use a whole number such as 8")
        if any(getattr(spec, name) % factor for name in ("hidden_size", "head_dim")) or spec.head_dim // factor % 2:
            raise InputError(
                f"{self.label}: hidden_size {spec.hidden_size} and head_dim {spec.head_dim} of {spec.id} do not divide by "
                f"reduction_factor={factor} into whole, even heads; use a smaller one"
            )

    def narrow(self, spec: "ModelSpec") -> "ModelSpec":
        """The dimensions of the side network."""
        own = {f.name for f in fields(spec)}
        widths: dict[str, Any] = {}
        for name in WIDTHS:
            if name in own and isinstance(getattr(spec, name), int):
                widths[name] = max(getattr(spec, name) // self.reduction_factor, 1)
        return replace(spec, **widths)

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The side network's rotary tables."""
        tape = model.tape
        length = hidden.shape[1]
        for name in ("cos", "sin"):
            table = tape.fresh((1, length, model.spec.head_dim // self.reduction_factor), hidden.dtype, False)
            tape.record(f"side_{name}", (), table, scratch=3 * round_block(2 * table.nbytes))
            tape.held.append(table.storage)
            model.side_rotary = (*model.side_rotary, table)
        return hidden

    def run_layer(self, model: "Assembly", x: Tensor) -> Tensor:
        """One narrow layer, recorded by the model's own family."""
        from tuneplan.planner.models.registry import family

        spec = self.narrow(model.spec)
        inner = model.within("side", spec, Method("side", (Full(),)))
        inner.layer = model.spec.num_hidden_layers - 1 if model.layer is None else model.layer
        tables = dict(zip([id(t) for t in model.rotary], model.side_rotary, strict=False))  # a model may have no tables
        inner.rotary = model.side_rotary if model.rotary else ()
        shared = tuple([tables.get(id(t), t) for t in model.layers_share])
        block = family(spec.model_type).layer(inner, spec, x, shared)
        model.adopt(inner)
        out: Tensor = block.exit
        return out

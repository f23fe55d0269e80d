"""Reversible layers: the hidden states run in two streams, so that a layer's input can be computed from its output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

FORMS = ("layer", "adapter")
_SIDE = "it runs the layers without gradients, and reversible layers exist for theirs"


@dataclass(frozen=True, slots=True)
class Reversible(Part):
    """y1 = l x1 + F(x2), y2 = b x2 + G(y1), and the streams change places; one of F and G is the layer, the other an adapter.

    The backward computes x2 and x1 from y1 and y2, layer by layer, and runs F and G again.

    Attributes:
        bottleneck: width of the adapter.
        f_arch: what F is, layer (MEFT1) or adapter (MEFT2).
    """

    label: ClassVar[str] = "reversible"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = (
        "Liao, Tan and Monz 2023, Make Pre-trained Model Reversible: From Parameter to Memory Efficient Fine-Tuning"
    )
    source: ClassVar[str] = "sections 3.2 and 3.3, equations 1 and 2; BaohaoLiao/mefts models/modeling_revbert.py"
    not_modelled: ClassVar[str] = (
        "MEFT3, whose F is attention and G the MLP; F's and G's graphs are counted together, though G's goes before F runs again"
    )
    mergeable: ClassVar[bool] = False
    code_changes: ClassVar[str] = "the model's loop over layers, and an autograd function that inverts each layer"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "model code"
    clashes: ClassVar[Mapping[str, str | None]] = {
        "lst": _SIDE,
        "side_tuning": _SIDE,
        "res_tuning": _SIDE,
        "full": "full fine-tuning changes what the streams were set up to keep; add reversible to adapters",
        "prompt_tuning": "the streams start as two copies of the embeddings alone",
        "p_tuning": "the streams start as two copies of the embeddings alone",
        "prefix_tuning": "a prefix gets its gradient from every layer's graph, and none is kept",
    }

    bottleneck: int = 64
    f_arch: str = "layer"

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        if self.f_arch not in FORMS:
            raise InputError(f"reversible: f_arch={self.f_arch!r} is not known; choose one of {', '.join(FORMS)}")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a width that is no bottleneck, and with gradient checkpointing."""
        if not 1 <= self.bottleneck <= spec.hidden_size:
            raise InputError(f"reversible: bottleneck={self.bottleneck} is no width from 1 to {spec.hidden_size}")
        if settings.gradient_checkpointing != "off":
            raise InputError(
                "reversible: layers are computed again from their outputs already, so gradient checkpointing has nothing to "
                "save; use --no-gradient-checkpointing"
            )
        if settings.use_cache:
            raise InputError("reversible: a layer that runs again would append to the cache again; leave out --use-cache")

    def allows(self, settings: "Settings") -> bool:
        """Only without gradient checkpointing."""
        return settings.gradient_checkpointing == "off"

    def reversible(self) -> bool:
        """Nothing of a layer is kept."""
        return True

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Two streams, both of them the embeddings."""
        batch, length, width = hidden.shape
        pair = model.tape.fresh((2 * batch, length, width), hidden.dtype, True)
        model.tape.held.append(hidden.storage)
        return model.tape.record("cat", (hidden,), pair, gradients=(Gradient(hidden, None),))

    def layer_entry(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The stream that the layer runs on."""
        model.streams = _halves(model, hidden)
        first, second = model.streams
        scaled = _scaled(model, first)
        if self.f_arch == "layer":
            model.streams = (scaled, second)
            return second
        changed = pw.add(model.tape, scaled, self._adapter(model, second))
        model.streams = (_scaled(model, second), changed)
        return changed

    def layer_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Both streams after the layer, the changed one last."""
        tape = model.tape
        scaled, other = model.streams
        if self.f_arch == "layer":
            one = pw.add(tape, scaled, hidden)
            scaled = _scaled(model, other)
            two = pw.add(tape, scaled, self._adapter(model, one))
        else:
            one, two = other, pw.add(tape, scaled, hidden)
        batch, length, width = one.shape
        out = tape.fresh((2 * batch, length, width), one.dtype, True)
        tape.record("cat", (two, one), out, gradients=(Gradient(two, 0), Gradient(one, 0)))  # parts of what comes in
        tape.hold(one, two, hidden)
        return out

    def stack_exit(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """The mean of the streams."""
        first, second = _halves(model, hidden)
        return pw.scale(model.tape, pw.add(model.tape, first, second))

    def _adapter(self, model: "Assembly", x: Tensor) -> Tensor:
        """`U relu(D x)`, with biases."""
        tape, width, dtype = model.tape, model.spec.hidden_size, x.dtype
        outer, tape.scope = tape.scope, "rev_adapter"
        down, up = (
            (
                model.adapter(f"rev_adapter.{name}.weight", shape, dtype),
                model.adapter(f"rev_adapter.{name}.bias", shape[:1], dtype),
            )
            for name, shape in (("down", (self.bottleneck, width)), ("up", (width, self.bottleneck)))
        )
        low = linear(tape, x, *down)
        active = tape.fresh(low.shape, low.dtype, True)
        tape.record("relu", (low,), active, saved=(active,), gradients=(Gradient(low, round_block(low.nbytes)),))
        out = linear(tape, active, *up)
        tape.scope = outer
        return out


def _halves(model: "Assembly", pair: Tensor) -> tuple[Tensor, Tensor]:
    """The streams, as views; their gradients are joined to one."""
    tape = model.tape
    shape = (pair.shape[0] // 2, *pair.shape[1:])
    halves = []
    for fresh in (0, round_block(pair.nbytes)):  # the backward meets the last one first
        halves.append(tape.view("chunk", pair, shape))
        tape.ops[-1].gradients = (Gradient(pair, fresh),)
    return halves[0], halves[1]


def _scaled(model: "Assembly", x: Tensor) -> Tensor:
    """`l x`; its gradient is scaled in place."""
    scaled = model.tape.fresh(x.shape, x.dtype, True)
    return model.tape.record("scale", (x,), scaled, gradients=(Gradient(x, None),))

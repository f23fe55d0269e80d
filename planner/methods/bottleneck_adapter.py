"""Bottleneck adapters: small two-layer networks after, or beside, attention and the MLP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import BITS, Tensor, round_block
from tuneplan.planner.methods import gate
from tuneplan.planner.methods.layer_span import Layered

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

NON_LINEARITIES = ("relu", "swish", "gelu")


@dataclass(frozen=True, slots=True)
class BottleneckAdapter(Layered):
    """y + s U f(D y), or y + s U f(D h) beside the module, h being the residual stream.

    Attributes:
        reduction_factor: the model's width over the adapter's.
        mh_adapter: one after attention.
        output_adapter: one after the MLP.
        is_parallel: beside the module instead of after it.
        non_linearity: relu, swish or gelu.
        use_gating: what is added is multiplied by a gate from the adapter's input (Mao et al. 2022, UniPELT).
        sparsity: share of the weights that a mask, drawn before training, sets to zero (He et al. 2022, SparseAdapter, equation
            2); the checkpoint has the others and a bit for each place, and all count as trained.
        skip_layers: how many of the lowest layers have none (AdapterDrop, Rueckle et al. 2021, section 3).
    """

    label: ClassVar[str] = "bottleneck_adapter"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = (
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP; Pfeiffer et al. 2021, AdapterFusion; "
        "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning"
    )
    source: ClassVar[str] = (
        "Houlsby section 2.1; He table 1; adapters 1.3 methods/bottleneck.py and methods/adapter_layer_base.py"
    )
    not_modelled: ClassVar[str] = "AdapterFusion's attention over adapters, dropout, layer norms inside the adapter"
    mergeable: ClassVar[bool] = False
    code_changes: ClassVar[str] = "adapters.init(model) of the adapters library, or a module in every layer"
    effort: ClassVar[str] = "model code"
    batchable: ClassVar[bool] = True
    module: ClassVar[str] = "adapter"

    reduction_factor: float = 16
    mh_adapter: bool = True
    output_adapter: bool = True
    is_parallel: bool = False
    non_linearity: str = "relu"
    use_gating: bool = False
    sparsity: float = 0.0
    skip_layers: int = 0

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        if self.reduction_factor <= 0:
            raise InputError(f"{self.label}: reduction_factor={self.reduction_factor} is no ratio; use such as 16")
        if self.non_linearity not in NON_LINEARITIES:
            known = ", ".join(NON_LINEARITIES)
            raise InputError(f"{self.label}: non_linearity={self.non_linearity!r} is not known; choose one of {known}")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"{self.label}: sparsity={self.sparsity} is not a share below 1; use such as 0.4")
        if not (self.mh_adapter or self.output_adapter) or self.skip_layers < 0:
            raise InputError(f"{self.label}: nothing is adapted; turn mh_adapter or output_adapter on, skip_layers from 0")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError where no layer is left."""
        if self.skip_layers >= spec.num_hidden_layers:
            raise InputError(f"{self.label}: skip_layers={self.skip_layers} leaves none of {spec.num_hidden_layers} layers")
        if spec.hidden_size < self.reduction_factor:
            raise InputError(f"{self.label}: reduction_factor={self.reduction_factor} leaves nothing of {spec.hidden_size}")

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer has adapters."""
        return index >= self.skip_layers and self.in_layer(index)

    def submodule(self, model: "Assembly", name: str, x: Tensor, residual: Tensor, y: Tensor) -> Tensor:
        """Run the network on the module's output, or on the residual stream, and add."""
        wanted = self.mh_adapter if name == "self_attn" else self.output_adapter
        if not wanted or model.layer is None or model.layer < self.skip_layers or not self.in_layer(model.layer):
            return y
        tape = model.tape
        tape.scope = f"{name}.{self.module}"
        width = model.spec.hidden_size
        inner = max(int(width // self.reduction_factor), 1)
        dtype = y.dtype
        given = residual if self.is_parallel else y
        low = self.dense(model, f"{name}.{self.module}_down", given, inner, dtype)
        if self.non_linearity == "relu":
            active = tape.fresh(low.shape, low.dtype, True)
            tape.record("relu", (low,), active, saved=(active,), gradients=(Gradient(low, round_block(low.nbytes)),))
        else:
            active = pw.activation(tape, low, self.non_linearity)
        added = pw.scale(tape, self.dense(model, f"{name}.{self.module}_up", active, width, dtype))
        if self.use_gating:
            added = pw.multiply(tape, added, gate.record(model, f"{name}.{self.module}_gate", given))
        out = pw.add(tape, added, y)
        tape.hold(y)
        tape.scope = ""
        return out

    def dense(self, model: "Assembly", name: str, x: Tensor, width: int, dtype: str) -> Tensor:
        """One layer of the network, with its bias."""
        tape, shape = model.tape, (width, int(x.shape[-1]))
        bits = (1 - self.sparsity) * BITS[dtype] + 1 if self.sparsity else 0
        weight = model.adapter(f"{name}.weight", shape, dtype, saved_bits=bits)
        bias = model.adapter(f"{name}.bias", (width,), dtype)
        if self.sparsity:
            weight = pw.multiply(tape, weight, model.buffer(f"{name}.mask", shape, dtype))
        y = linear(tape, x, weight, bias)
        if self.sparsity:
            tape.hold(weight)
        return y

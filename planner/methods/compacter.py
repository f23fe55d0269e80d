"""Compacter: bottleneck adapters whose weights are sums of Kronecker products of shared and low-rank factors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Compacter(Part):
    """y + U f(D y) with D = sum of A_i kron (s_i t_i), the A_i shared by all adapters.

    Attributes:
        reduction_factor: the model's width over the adapter's.
        phm_dim: number of products, and size of each A_i.
        phm_rank: rank of the other factors.
        mh_adapter: one after attention too (without it: Compacter++).
    """

    label: ClassVar[str] = "compacter"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers"
    source: ClassVar[str] = "sections 3.1 and 3.2, equations 2 and 5"
    not_modelled: ClassVar[str] = "other sharing of factors than A_i over all adapters"
    mergeable: ClassVar[bool] = False
    code_changes: ClassVar[str] = "adapters.init(model) of the adapters library, or a module in every layer"
    effort: ClassVar[str] = "model code"

    reduction_factor: float = 32
    phm_dim: int = 4
    phm_rank: int = 1
    mh_adapter: bool = True

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError where the widths do not divide by `phm_dim`."""
        inner = int(spec.hidden_size // self.reduction_factor) if self.reduction_factor > 0 else 0
        if min(inner, self.phm_dim, self.phm_rank) < 1 or spec.hidden_size % self.phm_dim or inner % self.phm_dim:
            raise InputError(
                f"compacter: widths {spec.hidden_size} and {inner} do not divide by phm_dim={self.phm_dim}; "
                "change reduction_factor"
            )

    def submodule(self, model: "Assembly", name: str, x: Tensor, residual: Tensor, y: Tensor) -> Tensor:
        """Build both weights and run the network on the module's output."""
        if name == "self_attn" and not self.mh_adapter:
            return y
        tape = model.tape
        tape.scope = f"{name}.compacter"
        width = model.spec.hidden_size
        inner = int(width // self.reduction_factor)
        low = self._dense(model, f"{name}.adapter_down", y, inner)
        active = pw.activation(tape, low, "gelu")
        out = pw.add(tape, self._dense(model, f"{name}.adapter_up", active, width), y)
        tape.hold(y)
        tape.scope = ""
        return out

    def _dense(self, model: "Assembly", name: str, x: Tensor, width: int) -> Tensor:
        tape, n, r, dtype = model.tape, self.phm_dim, self.phm_rank, x.dtype
        columns = int(x.shape[-1])
        shared = model.common("compacter.phm_rule", (n, n, n), dtype)
        left = model.adapter(f"{name}.W_left", (n, columns // n, r), dtype)
        right = model.adapter(f"{name}.W_right", (n, r, width // n), dtype)
        factors = batched(tape, left, right, (n, columns // n, width // n), r)
        products = tape.fresh((n, columns, width), dtype, True)
        full = round_block(products.nbytes)
        gradients = (
            Gradient(shared, round_block(shared.nbytes)),
            Gradient(factors, round_block(factors.nbytes), scratch=full),
        )
        tape.record("kron", (shared, factors), products, saved=(shared, factors), gradients=gradients, workspace=full)
        weight = tape.fresh((columns, width), dtype, True)
        tape.record("sum", (products,), weight, gradients=(Gradient(products, 0),))
        out = batched(tape, x, weight, (*x.shape[:-1], width), columns)
        result = pw.add(tape, out, model.adapter(f"{name}.bias", (width,), dtype))
        tape.hold(weight)
        return result

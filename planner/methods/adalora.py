"""AdaLoRA: a low-rank product with singular values, whose rank is divided over modules while training."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class AdaLora(Targeted):
    """y = W x + (alpha / r) B (E A) x, with a loss that keeps A and B orthogonal.

    Attributes:
        init_r: rank of every module at the start, which sets the memory.
        target_r: mean rank at the end; no effect before the end.
        lora_alpha: numerator of the scaling; no effect on memory or time.
        lora_dropout: probability of dropping an input of A.
        trains_ranknum: peft 0.21 moves the number that the product is divided by to the model's device and dtype, which makes
            it trained, so that every product is kept for its gradient; peft 0.19 and 0.20 leave it frozen.
    """

    label: ClassVar[str] = "adalora"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning"
    source: ClassVar[str] = "equations 3 and 4; peft 0.21 tuners/adalora/layer.py SVDLinear.forward and model.py forward"
    not_modelled: ClassVar[str] = "ranks that shrink while training; importance scores of the rank allocator"
    code_changes: ClassVar[str] = "one call a step: model.base_model.update_and_allocate(step)"
    effort: ClassVar[str] = "training loop"

    init_r: int = 12
    target_r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    trains_ranknum: bool = True

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        Targeted.check(self)
        if not 1 <= self.target_r <= self.init_r:
            raise InputError(f"adalora: target_r={self.target_r} must be from 1 to init_r={self.init_r}")

    def at_inference(self) -> Part:
        """The same without dropout."""
        return replace(self, lora_dropout=0.0)

    def peft_config(self) -> dict[str, Any]:
        """`AdaLoraConfig` of peft 0.21."""
        ranks = {"init_r": self.init_r, "target_r": self.target_r, "total_step": 1000}
        rest = {"lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout}
        return {"peft_type": "ADALORA", **self.peft_targets(), **ranks, **rest}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the product to the module's result in place."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        out_features, in_features = site.weight.shape
        dtype, r = self.dtype(model), self.init_r
        a = model.adapter(f"{site.module}.lora_A", (r, in_features), dtype)
        e = model.adapter(f"{site.module}.lora_E", (r, 1), dtype)
        b = model.adapter(f"{site.module}.lora_B", (out_features, r), dtype)
        rank = model.adapter(f"{site.module}.ranknum", (1,), dtype, trained=self.trains_ranknum, saved=False)
        tape = model.tape
        wide = pw.cast(tape, x, dtype)
        dropped = pw.dropout(tape, wide, self.lora_dropout)
        weighted = pw.multiply(tape, a, e)
        low = batched(tape, dropped, weighted, (*x.shape[:-1], r), in_features)
        product = pw.scale(tape, batched(tape, low, b, (*x.shape[:-1], out_features), r))
        product = pw.divide(tape, product, pw.shift(tape, rank))
        tape.hold(wide)
        return pw.add_in_place(tape, y, product)

    def loss(self, model: "Assembly", loss: Tensor) -> Tensor:
        """Add the orthogonality of every A and B: their gradients from it are there before those from the layers.

        For each of them five kernels forward (product, identity, difference, norm, sum) and ten backward, as dispatched.
        """
        tape = model.tape
        adapted = [p for p in model.parameters.values() if p.name.endswith((".lora_A", ".lora_B"))]
        kept = sum(p.count * (round_block(4 * self.init_r**2) + round_block(4)) for p in adapted)
        norms = tape.fresh((kept // 4,), "fp32", False)
        tape.record("orthogonality", (), norms, moved=sum(p.tensor.nbytes * p.count for p in adapted))
        tape.ops[-1].launches = 5 * sum(p.count for p in adapted)
        gradients = [Gradient(p.tensor, p.count * round_block(p.tensor.nbytes), launches=10 * p.count) for p in adapted]
        out = tape.fresh((1,), "fp32", True)
        return tape.record("orthogonal_loss", (loss, norms), out, saved=(norms,), gradients=(Gradient(loss, None), *gradients))

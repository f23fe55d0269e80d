"""LoRA: a low-rank product beside each adapted linear layer."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site

ALL_LINEAR = "all-linear"
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, slots=True)
class Lora(Part):
    """y = W x + (alpha / r) B A x with W frozen.

    Attributes:
        r: rank.
        lora_alpha: numerator of the scaling; no effect on memory or time.
        target_modules: module names (matched at the end of the path, as PEFT does) or "all-linear" (all but the head).
        lora_dropout: probability of dropping an input of A.
        bias: which biases of the base are trained: none, all or lora_only.
        use_rslora: scaling by sqrt(r); no effect on memory or time.
        autocast_adapter_dtype: adapters of a 16-bit model are kept in fp32 (PEFT's default), so the input of every adapted
            module is copied to fp32.
    """

    label: ClassVar[str] = "lora"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models"
    source: ClassVar[str] = "section 4.1, equation 3; peft 0.21 tuners/lora/layer.py Linear.forward and bnb.py"
    not_modelled: ClassVar[str] = "rank_pattern, layers_to_transform, modules_to_save, embeddings as targets"
    batchable: ClassVar[bool] = True

    r: int = 8
    lora_alpha: float = 16
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    autocast_adapter_dtype: bool = True

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        if self.r < 1:
            raise InputError(f"r={self.r} is not a rank; it must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout={self.lora_dropout} is not a probability below 1; use a value such as 0.05")
        if self.bias not in BIASES:
            raise InputError(f"bias={self.bias!r} is not known; choose one of {', '.join(BIASES)}")
        if not self.target_modules or not all(self.target_modules):
            raise InputError("target_modules is empty; name modules such as q_proj,v_proj, or all-linear")

    def check_model(self, linears: set[str]) -> None:
        """Raise InputError where a target names no module of the model."""
        for target in self.target_modules:
            if target != ALL_LINEAR and not any(m == target or m.endswith(f".{target}") for m in linears):
                names = ", ".join(sorted({m.rsplit(".", 1)[-1] for m in linears}))
                raise InputError(
                    f"target module {target!r} matches nothing in this model; it has {names} (all-linear takes all of them)"
                )

    def targets(self, module: str) -> bool:
        """Whether a linear module is adapted: `all-linear`, its full path or the end of it."""
        return any(t in (ALL_LINEAR, module) or module.endswith(f".{t}") for t in self.target_modules)

    def trains(self, weight: Weight) -> bool:
        """Biases, as `bias` says."""
        if weight.kind != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or self.targets(weight.module)

    def at_inference(self) -> Part:
        """The same without dropout."""
        return replace(self, lora_dropout=0.0)

    def inputs_need_grad(self) -> bool:
        """PEFT hooks the embeddings when the model checkpoints."""
        return True

    def peft_config(self) -> dict[str, Any]:
        """`LoraConfig` of peft 0.21."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "bias": self.bias,
            "use_rslora": self.use_rslora,
            "target_modules": ALL_LINEAR if ALL_LINEAR in self.target_modules else list(self.target_modules),
        }

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the low-rank product to an adapted module.

        Mirrors `Linear.forward`, and for a 4-bit base `Linear4bit.forward`, which copies the base's result first. Raises
        InputError for a rank above both of the matrix's sides.
        """
        y = base(x)
        module = site.module
        if not self.targets(module):
            return y
        out_features, in_features = site.weight.shape
        if self.r > max(out_features, in_features):
            raise InputError(
                f"r={self.r} is larger than {module}, which is {out_features} x {in_features}; use a rank far below it"
            )
        dtype = "fp32" if self.autocast_adapter_dtype else model.settings.dtype
        a = model.adapter(f"{module}.lora_A.weight", (self.r, in_features), dtype)
        b = model.adapter(f"{module}.lora_B.weight", (out_features, self.r), dtype)
        tape = model.tape
        if site.quantized:
            y = pw.copy(tape, y)
        wide = pw.cast(tape, x, dtype)
        dropped = pw.dropout(tape, wide, self.lora_dropout)
        low = linear(tape, dropped, a)
        product = pw.scale(tape, linear(tape, low, b))
        if site.quantized:
            product = pw.cast(tape, product, y.dtype)
        result = pw.add(tape, y, product)
        tape.hold(wide)
        return pw.cast(tape, result, y.dtype)

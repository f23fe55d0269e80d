"""LN tuning: only the norms are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.part import Part, Weight, numbered

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class LnTuning(Part):
    """A trained copy of each norm stands in front of the frozen one, which stays in memory.

    Attributes:
        target_modules: norms, matched at the end of their path.
    """

    label: ClassVar[str] = "ln_tuning"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning"
    source: ClassVar[str] = "section 3; peft 0.21 tuners/ln_tuning/layer.py"

    target_modules: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "norm")

    def targets(self, path: str) -> bool:
        """Whether a norm is trained."""
        return any(path == target or path.endswith(f".{target}") for target in self.target_modules)

    def check_model(self, model: "Assembly", layers: int) -> None:
        """Raise InputError for a target that is no norm of the model."""
        names = {numbered(norm, index) for norm in model.norms for index in range(layers)}
        for target in self.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                known = ", ".join(sorted({norm.rsplit(".", 1)[-1] for norm in model.norms}))
                raise InputError(f"ln_tuning: target module {target!r} is no norm of {model.spec.id}; norms are {known}")

    def trains(self, weight: Weight) -> bool:
        """The norms that are targets, with their biases."""
        return weight.kind in ("norm", "bias") and self.targets(weight.path)

    def normed(self, model: "Assembly", module: str, y: Tensor) -> Tensor:
        """Declare the frozen norm that stays beside the trained one."""
        if self.targets(model.path(module)):
            for suffix in ("weight", "bias")[: 1 + model.has(module, "bias")]:
                name = f"{module}.base_layer.{suffix}"
                model.adapter(name, (y.shape[-1],), model.settings.dtype, trained=False, saved=False)
        return y

    def peft_config(self) -> dict[str, Any]:
        """`LNTuningConfig` of peft 0.21."""
        return {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "target_modules": list(self.target_modules)}

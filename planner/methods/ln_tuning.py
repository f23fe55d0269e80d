"""LN tuning: only the norms are trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


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

    def targets(self, module: str) -> bool:
        """Whether a norm is trained."""
        return any(module == target or module.endswith(f".{target}") for target in self.target_modules)

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a target that is no norm of a model of this kind."""
        known = ("input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm")
        for target in self.target_modules:
            if target.rsplit(".", 1)[-1] not in known:
                raise InputError(f"ln_tuning: target module {target!r} is no norm of {spec.id}; norms are {', '.join(known)}")

    def trains(self, weight: Weight) -> bool:
        """The norms that are targets."""
        return weight.kind == "norm" and self.targets(weight.module)

    def normed(self, model: "Assembly", module: str, y: Tensor) -> Tensor:
        """Declare the frozen norm that stays beside the trained one."""
        if self.targets(module):
            model.adapter(f"{module}.base_layer.weight", (y.shape[-1],), model.settings.dtype, trained=False, saved=False)
        return y

    def peft_config(self) -> dict[str, Any]:
        """`LNTuningConfig` of peft 0.21."""
        return {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "target_modules": list(self.target_modules)}

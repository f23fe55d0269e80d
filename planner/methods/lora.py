"""LoRA: a low-rank product beside each adapted linear layer."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.part import Part, Weight
from tuneplan.planner.methods.targeted import Targeted
from tuneplan.planner.training.settings import OURS

if TYPE_CHECKING:
    from tuneplan.planner.methods.expert_adapters import Weight as StackedWeight
    from tuneplan.planner.models.assembly import Assembly, Base, Site

BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, slots=True)
class Lora(Targeted):
    """y = W x + (alpha / r) B A x with W frozen.

    Attributes:
        r: rank.
        lora_alpha: numerator of the scaling; no effect on memory or time.
        lora_dropout: probability of dropping an input of A.
        bias: which biases of the base are trained: none, all or lora_only.
        use_rslora: scaling by sqrt(r) (Kalajdzievski 2023, rsLoRA, theorem 3.2); no effect on memory or time.
        use_dora: a trained magnitude for each output (Liu et al. 2024, DoRA).
        freeze_a: only B is trained (Zhang et al. 2023, LoRA-FA).
        freeze_b: only A is trained (MiCA of peft 0.21, `init_lora_weights="mica"`).
        gate: a trained factor for each rank between A and B (Ding et al. 2023, SoRA, equation 3); its pruning is not modelled.
        use_gating: the product is multiplied by a gate from the module's input instead of alpha / r (Mao et al. 2022, UniPELT).
        lora_bias: B has a trained bias.
        frozen_tasks: adapters of earlier tasks that stay beside the new one, frozen (Wang et al. 2023, O-LoRA, section 3).
        rank_pattern: other ranks for modules whose path ends in a name, written name:rank.
        target_parameters: weights that no module holds, matched at the end of their path, such as `mlp.experts.gate_up_proj`.
    """

    label: ClassVar[str] = "lora"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models"
    source: ClassVar[str] = "section 4.1, equation 3; peft 0.21 tuners/lora/layer.py Linear.forward and bnb.py"
    not_modelled: ClassVar[str] = "embeddings and the head as targets; dropout at inference"
    batchable: ClassVar[bool] = True

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    freeze_a: bool = False
    freeze_b: bool = False
    gate: bool = False
    use_gating: bool = False
    lora_bias: bool = False
    frozen_tasks: int = 0
    rank_pattern: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        Targeted.check(self)
        if self.freeze_a and self.freeze_b:
            raise InputError("freeze_a and freeze_b leave nothing of LoRA to train; turn one off")
        if self.lora_bias and self.use_dora:
            raise InputError("lora_bias and use_dora do not go together in peft; turn one off")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout={self.lora_dropout} is not a probability below 1; use a value such as 0.05")
        if self.bias not in BIASES:
            raise InputError(f"bias={self.bias!r} is not known; choose one of {', '.join(BIASES)}")
        for item in self.rank_pattern:
            name, _, rank = item.rpartition(":")
            if not name or not rank.isdigit() or int(rank) < 1 or not _is_pattern(name):
                raise InputError(f"rank_pattern has {item!r}; write name:rank, such as q_proj:16")

    def rank_of(self, path: str) -> int:
        """The rank of a module: that of the first entry of `rank_pattern` that its path ends in, else `r`.

        Entries are regular expressions, as in `get_pattern_key` of peft 0.21 utils/other.py.
        """
        for item in self.rank_pattern:
            name, _, rank = item.rpartition(":")
            if re.match(rf"(.*\.)?({name})$", path):
                return int(rank)
        return self.r

    def layer_form(self, index: int, count: int) -> object:
        """Besides the targets: layers that `rank_pattern` names are of their own form."""
        written = any(re.search(r"\d", item.rpartition(":")[0]) for item in self.rank_pattern)
        own = index if written else None
        return Targeted.layer_form(self, index, count), own

    def trains(self, weight: Weight) -> bool:
        """Biases, as `bias` says."""
        if weight.kind != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or self.targets(weight.path, weight.layer)

    def at_inference(self) -> Part:
        """The same without dropout."""
        return replace(self, lora_dropout=0.0)

    def peft_config(self) -> dict[str, Any] | None:
        """`LoraConfig` of peft 0.21; PEFT has no gates and no adapters of earlier tasks."""
        if self.gate or self.use_gating or self.frozen_tasks:
            return None
        parameters = {"target_parameters": list(self.target_parameters)} if self.target_parameters else {}
        return {
            "peft_type": "LORA",
            **self.peft_targets(),
            **parameters,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "bias": self.bias,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            **({"init_lora_weights": "mica"} if self.freeze_b else {}),
            "rank_pattern": {name: int(rank) for name, _, rank in (item.rpartition(":") for item in self.rank_pattern)},
        }

    def check_model(self, model: "Assembly", layers: int) -> None:
        """Raise InputError where a target names neither a module, nor the old name of an expert's, nor a parameter."""
        modules = self.target_modules
        if model.stacks:
            from tuneplan.planner.methods.expert_adapters import CONVERTED, asks

            old = CONVERTED.get(model.spec.model_type, {})
            modules = tuple([t for t in modules if not any(asks(t, name) for name in old)])
        if modules:
            Targeted.check_model(replace(self, target_modules=modules), model, layers)
        for target in self.target_parameters:
            if not any(name == target or name.endswith(f".{target}") for name in model.stacks):
                has = f"it has {', '.join(sorted(model.stacks))}" if model.stacks else "its weights all lie in modules"
                raise InputError(f"target parameter {target!r} matches nothing in this model; {has}")

    def adapts(self, model: "Assembly", site: "Site") -> bool:
        """As for every part with targets, but for names that PEFT takes for those of experts."""
        if model.spec.is_mixture:
            from tuneplan.planner.methods.expert_adapters import converted

            if converted(model.spec.model_type, site.module):
                return False
        return Targeted.adapts(self, model, site)

    def stacked_weight(
        self, model: "Assembly", name: str, weight: "StackedWeight", shape: tuple[int, ...], transposed: bool
    ) -> "StackedWeight":
        """Wrap it as `target_parameters` would."""
        from tuneplan.planner.methods.expert_adapters import targets_of, wrap

        rank = targets_of(self, model.spec.model_type).rank(name, self.r)
        return weight if rank is None else wrap(self, model, name, rank, weight, shape, transposed)

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Add the low-rank product to an adapted module.

        Mirrors `Linear.forward`, and for a 4-bit base `Linear4bit.forward`, which copies the base's result first. Raises
        InputError for a rank above both of the matrix's sides.
        """
        if not self.adapts(model, site):
            return base(x)
        out_features, in_features = site.weight.shape
        dtype = self.dtype(model)
        rank = self.rank_of(model.path(site.module))
        a = model.adapter(f"{site.module}.lora_A.weight", (rank, in_features), dtype, trained=not self.freeze_a)
        b = model.adapter(f"{site.module}.lora_B.weight", (out_features, rank), dtype, trained=not self.freeze_b)
        if model.settings.kernels == OURS and self._fuses(site):
            from tuneplan.planner.methods import fused_lora

            return fused_lora.record(model, site, x, a, b, self.lora_dropout)
        y = base(x)
        offset = model.adapter(f"{site.module}.lora_B.bias", (out_features,), dtype) if self.lora_bias else None
        tape = model.tape
        if site.form == "4bit":
            y = pw.copy(tape, y)
        wide = pw.cast(tape, x, dtype)
        dropped = pw.dropout(tape, wide, self.lora_dropout)
        if self.use_dora:
            from tuneplan.planner.methods import dora

            given = None if self.lora_dropout else y
            product = dora.record(model, site, dropped, given, a, b, dtype)
        else:
            low = linear(tape, dropped, a)
            if self.gate:
                low = pw.multiply(tape, low, model.adapter(f"{site.module}.lora_gate", (rank,), dtype))
            product = linear(tape, low, b, offset)
            if self.use_gating:
                from tuneplan.planner.methods import gate

                product = pw.multiply(tape, product, gate.record(model, f"{site.module}.lora_gate", wide))
            else:
                product = pw.scale(tape, product)
            if site.form:
                product = pw.cast(tape, product, y.dtype)
        result = pw.add(tape, y, product)
        for task in range(self.frozen_tasks):
            a = model.adapter(f"{site.module}.task{task}.lora_A.weight", (rank, in_features), dtype, trained=False, saved=False)
            b = model.adapter(f"{site.module}.task{task}.lora_B.weight", (out_features, rank), dtype, trained=False, saved=False)
            result = pw.add(tape, result, pw.scale(tape, linear(tape, linear(tape, dropped, a), b)))
        tape.hold(wide)
        return pw.cast(tape, result, y.dtype)

    def _fuses(self, site: "Site") -> bool:
        """Whether `tuneplan.kernels.patch` takes the layer: plain LoRA over a frozen weight of a kind that it decodes."""
        own = self.use_dora or self.gate or self.use_gating or self.lora_bias or self.frozen_tasks
        return not own and site.form in ("", "4bit", "8bit") and not site.weight.requires_grad and not site.apart


def _is_pattern(name: str) -> bool:
    try:
        re.compile(name)
    except re.error:
        return False
    return True

"""Parts that adapt chosen linear modules: which modules, in which layers, in which dtype."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.layer_span import Layered
from tuneplan.planner.methods.part import numbered

if TYPE_CHECKING:
    from typing_extensions import Self

    from tuneplan.planner.models.assembly import Assembly, Site
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

ALL_LINEAR = "all-linear"
PATTERN = "re:"


@dataclass(frozen=True, slots=True)
class Targeted(Layered):
    """A part with targets, matched as PEFT does (`check_target_module_exists`, peft 0.21 tuners/tuners_utils.py).

    Attributes:
        target_modules: module names (matched at the end of the path), "all-linear" (all but the head), or one pattern written
            "re:..." that has to match the whole path.
        exclude_modules: modules that are left alone whatever the targets say, written as those.
        layers_to_transform: indices of the decoder layers to adapt; empty for all.
        autocast_adapter_dtype: adapters of a 16-bit model are kept in fp32 (PEFT's default), so the input of every adapted
            module is copied to fp32.
    """

    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    exclude_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    autocast_adapter_dtype: bool = True

    def for_depth(self, count: int) -> "Self":
        """Spans of layers as indices, beside those that `layers_to_transform` has."""
        part = Layered.for_depth(self, count)
        if not part.layers:
            return part
        chosen = {int(index) for index in part.layers} | set(self.layers_to_transform)
        return replace(part, layers=(), layers_to_transform=tuple(sorted(chosen)))

    def check(self) -> None:
        """Raise InputError for targets that cannot be, and a rank below one."""
        if not self.target_modules or not all(self.target_modules):
            raise InputError("target_modules is empty; name modules such as q_proj,v_proj, or all-linear")
        for target in (*self.target_modules, *self.exclude_modules):
            if target.startswith(PATTERN):
                compiled(target)
        rank = getattr(self, "r", 1)
        if rank < 1:
            raise InputError(f"r={rank} is not a rank; it must be at least 1")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for a layer that the model does not have."""
        for index in self.layers_to_transform:
            if not 0 <= index < spec.num_hidden_layers:
                raise InputError(
                    f"{self.label}: layers_to_transform has {index}, but {spec.id} has layers 0 to {spec.num_hidden_layers - 1}"
                )

    def check_model(self, model: "Assembly", layers: int) -> None:
        """Raise InputError where a target names no module of the model."""
        chosen = self.layers_to_transform or range(layers)
        for target in self.target_modules:
            if target != ALL_LINEAR and not any(_matches(target, numbered(m, i)) for m in model.linears for i in chosen):
                names = ", ".join(sorted({m.rsplit(".", 1)[-1] for m in model.linears}))
                raise InputError(
                    f"target module {target!r} matches nothing in this model; it has {names} (all-linear takes all of them)"
                )
        if self.exclude_modules and not any(self.targets(numbered(m, i), i) for m in model.linears for i in chosen):
            raise InputError(f"{self.label}: exclude_modules={','.join(self.exclude_modules)} leaves nothing of the targets")

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer is adapted; where a pattern has digits each layer is one of its own."""
        if any(t.startswith(PATTERN) and re.search(r"\d", t) for t in (*self.target_modules, *self.exclude_modules)):
            return index
        return not self.layers_to_transform or index in self.layers_to_transform

    def targets(self, path: str, layer: int | None = None) -> bool:
        """Whether a linear module is adapted, given its whole path and the index of its layer."""
        if self.layers_to_transform and layer not in self.layers_to_transform:
            return False
        if any(_matches(name, path) for name in self.exclude_modules):
            return False
        return any(_matches(target, path) for target in self.target_modules)

    def peft_targets(self) -> dict[str, Any]:
        """What every PEFT configuration with targets has."""
        first = self.target_modules[0]
        targets: Any = list(self.target_modules)
        if first == ALL_LINEAR or first.startswith(PATTERN):
            targets = first.removeprefix(PATTERN)
        chosen = {"layers_to_transform": list(self.layers_to_transform)} if self.layers_to_transform else {}
        left: dict[str, Any] = {}
        if self.exclude_modules:
            names = list(self.exclude_modules)
            left["exclude_modules"] = names[0].removeprefix(PATTERN) if names[0].startswith(PATTERN) else names
        return {"task_type": "CAUSAL_LM", "target_modules": targets, **left, **chosen}

    def adapts(self, model: "Assembly", site: "Site") -> bool:
        """Whether the module being recorded is adapted. Raises InputError for a rank above both sides of its weight."""
        if not self.targets(model.path(site.module), model.layer):
            return False
        rank, (out_features, in_features) = getattr(self, "r", 1), site.weight.shape
        if rank > max(out_features, in_features):
            raise InputError(
                f"r={rank} is larger than {site.module}, which is {out_features} x {in_features}; use a rank far below it"
            )
        return True

    def dtype(self, model: "Assembly") -> str:
        """The dtype in which adapter weights compute, which is that they are kept in unless they are cast to gather them."""
        return "fp32" if self.autocast_adapter_dtype and not model.settings.gathered_cast else model.settings.dtype


def compiled(target: str) -> re.Pattern[str]:
    """The pattern of a target written "re:...". Raises InputError where it is none."""
    try:
        return re.compile(target[len(PATTERN) :])
    except re.error as error:
        raise InputError(f"target_modules={target!r} is not a regular expression: {error}") from None


def _matches(target: str, path: str) -> bool:
    if target.startswith(PATTERN):
        return bool(compiled(target).fullmatch(path))
    return target in (ALL_LINEAR, path) or path.endswith(f".{target}")

"""PEFT's `modules_to_save`: whole modules are trained as copies beside the frozen ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly


@dataclass(frozen=True, slots=True)
class ModulesToSave(Part):
    """Every weight of the named modules is copied; the copy is trained and saved.

    Attributes:
        modules: names, matched at the end of a module's path, such as lm_head.
    """

    label: ClassVar[str] = "modules_to_save"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "none: an option of PEFT's configurations"
    source: ClassVar[str] = "peft 0.21 utils/other.py ModulesToSaveWrapper"
    not_modelled: ClassVar[str] = "a tied head, whose copy is no longer tied"

    modules: tuple[str, ...] = ("lm_head",)

    def named(self, module: str) -> bool:
        """Whether a module is among them."""
        return any(module == name or module.endswith(f".{name}") for name in self.modules)

    def trains(self, weight: Weight) -> bool:
        """The copies."""
        return self.named(weight.module)

    def finish(self, model: "Assembly") -> None:
        """Declare the frozen originals. Raises InputError for a name that matches nothing."""
        found = [p for p in model.parameters.values() if not p.adapter and self.named(p.name.rsplit(".", 1)[0])]
        for name in self.modules:
            if not any(p.name.rsplit(".", 1)[0].endswith(name) for p in found):
                tied = " (its head is the embedding: name embed_tokens)" if model.spec.tie_word_embeddings else ""
                raise InputError(f"modules_to_save: {name!r} names no module of {model.spec.id}{tied}")
        for p in found:
            model.copy_frozen(p)

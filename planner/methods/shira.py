"""SHiRA: a sparse change of each weight, at fixed places."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.targeted import Targeted

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly, Base, Site


@dataclass(frozen=True, slots=True)
class Shira(Targeted):
    """y = (W + S) x with r (in + out) trained entries in S; masks of FishMask and others differ in the places alone.

    Attributes:
        r: trained entries of a module are r times (inputs + outputs), as many as LoRA's of that rank.
    """

    label: ClassVar[str] = "shira"
    family: ClassVar[str] = "selective"
    paper: ClassVar[str] = "Bhardwaj et al. 2024, Sparse High Rank Adapters; Sung et al. 2021, FishMask"
    source: ClassVar[str] = "SHiRA section 3; peft 0.21 tuners/shira/layer.py Linear.forward"

    r: int = 32

    def peft_config(self) -> dict[str, Any]:
        """`ShiraConfig` of peft 0.21."""
        return {"peft_type": "SHIRA", **self.peft_targets(), "r": self.r}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Copy the weight, add the sparse entries and multiply. Raises InputError for more entries than weights."""
        if not self.adapts(model, site):
            return base(x)
        tape = model.tape
        out_features, in_features = site.weight.shape
        count = self.r * (in_features + out_features)
        if count > site.weight.numel:
            raise InputError(f"shira: r={self.r} gives {count} entries, but {site.module} has {site.weight.numel}; lower r")
        values = model.adapter(f"{site.module}.shira_weight", (count,), self.dtype(model))
        model.buffer(f"{site.module}.shira_indices", (2, count), "int32")
        copied = pw.copy(tape, model.dense_weight(site, model.settings.dtype))
        changed = Tensor(copied.storage, copied.shape, copied.dtype, True)
        places = tape.fresh((2, count), "int64", False)
        tape.record("sparse", (), places)
        scaled = tape.fresh((count,), values.dtype, False)
        tape.record("scale", (values,), scaled)
        tape.view("add_", copied, copied.shape)
        add = tape.ops[-1]
        add.saved = (places.storage, scaled.storage)
        add.reads, add.output, add.saves = (copied.storage, *add.saved), changed, True
        wide = round_block(4 * site.weight.numel) if copied.dtype != values.dtype else 0
        add.gradients = (Gradient(values, round_block(values.nbytes), scratch=wide + places.storage.nbytes),)
        return linear(tape, x, changed, site.bias)

"""Shifted sparse attention: tokens attend within groups, in half of the heads shifted by half a group; for training alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class ShiftedAttention(Part):
    """Attention of `groups` groups of the tokens instead of one: 1 / `groups` of its FLOPs, and copies for the shift.

    Attributes:
        groups: of each sequence (group_size_ratio = 1/4 in the paper's code).
    """

    label: ClassVar[str] = "shifted_attention"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Chen et al. 2024, LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models"
    source: ClassVar[str] = "section 3.2 and algorithm 1"
    not_modelled: ClassVar[str] = (
        "the mask of the tokens that wrap around in shifted groups, which flash attention leaves out too"
    )
    merge_note: ClassVar[str] = ""
    trains_nothing: ClassVar[bool] = True
    code_changes: ClassVar[str] = "the attention function of every layer, while training"
    effort: ClassVar[str] = "model code"

    groups: int = 4

    def check(self) -> None:
        """Raise InputError for less than one group."""
        if self.groups < 1:
            raise InputError(f"shifted_attention: groups={self.groups} is no number of groups; use such as 4")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for lengths and heads that do not divide."""
        rest: Any = settings.seq_len % (2 * self.groups)
        if bool(rest) if isinstance(rest, int) else bool(rest.any()):
            raise InputError(f"shifted_attention: seq-len {settings.seq_len} is no multiple of twice the {self.groups} groups")
        if spec.num_attention_heads % 2 or spec.num_key_value_heads % 2:
            raise InputError(f"shifted_attention: half of the heads are shifted, and {spec.id} has an odd number")

    def at_inference(self) -> None:
        """The model answers with its own, full attention."""
        return

    def grouped(self, model: "Assembly", q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shift the second half of the heads, and take each group as a sequence of its own."""
        tape = model.tape
        found = []
        for x in (q, k, v):
            batch, heads, length, size = x.shape
            shifted = _shift(model, x, (batch, length, heads, size))
            shape = (batch * self.groups, heads, length // self.groups, size)
            found.append(pw.transpose(tape, shifted, shape, copied=False))
        tape.hold(q, k, v)
        return found[0], found[1], found[2]

    def ungrouped(self, model: "Assembly", out: Tensor) -> Tensor:
        """Put the groups together and shift the heads back."""
        rows, length, heads, size = out.shape
        whole = (rows // self.groups, length * self.groups, heads, size)
        joined = model.tape.view("join_groups", out, whole)
        return _shift(model, joined, whole)


def _shift(model: "Assembly", x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """`cat(first half of the heads, roll(second half))`, `(batch, length, heads, size)`."""
    tape = model.tape
    half = (*shape[:2], shape[2] // 2, shape[3])
    halves = []
    for fresh in (0, round_block(x.nbytes)):  # the backward joins both gradients to one
        halves.append(tape.view("chunk", x, half))
        tape.ops[-1].gradients = (Gradient(x, fresh),) if x.requires_grad else ()
    rolled = tape.fresh(half, x.dtype, x.requires_grad)
    tape.record("roll", (halves[1],), rolled, gradients=(Gradient(halves[1], round_block(rolled.nbytes)),))
    out = tape.fresh(shape, x.dtype, x.requires_grad)
    tape.record("cat", (halves[0], rolled), out, gradients=(Gradient(halves[0], None), Gradient(rolled, None)))
    return out

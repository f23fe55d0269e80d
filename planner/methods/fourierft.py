"""FourierFT: the change of a weight is the inverse Fourier transform of a few trained frequencies."""

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
class FourierFt(Targeted):
    """y = W x + s Re(ifft2(F)) x with n trained entries in F.

    Attributes:
        n_frequency: trained entries of each module.
        scaling: s; no effect on memory or time.
    """

    label: ClassVar[str] = "fourierft"
    family: ClassVar[str] = "reparameterized"
    paper: ClassVar[str] = "Gao et al. 2024, Parameter-Efficient Fine-Tuning with Discrete Fourier Transform"
    source: ClassVar[str] = "equations 2 to 4; peft 0.21 tuners/fourierft/layer.py get_delta_weight"
    not_modelled: ClassVar[str] = "workspace of the Fourier transform; n_frequency_pattern"

    n_frequency: int = 1000
    scaling: float = 150

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        Targeted.check(self)
        if self.n_frequency < 1:
            raise InputError(f"n_frequency={self.n_frequency} is not a number of frequencies; use such as 1000")

    def peft_config(self) -> dict[str, Any]:
        """`FourierFTConfig` of peft 0.21."""
        return {"peft_type": "FOURIERFT", **self.peft_targets(), "n_frequency": self.n_frequency, "scaling": self.scaling}

    def linear(self, model: "Assembly", site: "Site", x: Tensor, base: "Base") -> Tensor:
        """Build the change of the weight, as large as the weight, and multiply by it. Raises InputError for too many entries."""
        y = base(x)
        if not self.adapts(model, site):
            return y
        tape = model.tape
        if self.n_frequency > site.weight.numel:
            raise InputError(f"n_frequency={self.n_frequency} is more than {site.module} has weights ({site.weight.numel})")
        spectrum = model.adapter(f"{site.module}.fourierft_spectrum", (self.n_frequency,), self.dtype(model))
        indices = tape.fresh((2, self.n_frequency), "int64", False)
        tape.record("indices", (), indices)
        values = pw.cast(tape, spectrum, "fp32")
        dense = tape.fresh(site.weight.shape, "fp32", True)
        full = round_block(dense.nbytes)
        tape.record(
            "index_put", (values, indices), dense, saved=(indices,), gradients=(Gradient(values, round_block(values.nbytes)),)
        )
        turned = tape.fresh(site.weight.shape, "complex64", True)
        # to complex numbers, a pass over each dimension, the normalization (aten SpectralOps.cpp); the backward is the reverse
        tape.record(
            "ifft2",
            (dense,),
            turned,
            scratch=2 * full,
            gradients=(Gradient(dense, 2 * full, moved=15 * full, launches=5),),
            moved=15 * full,
        )
        tape.ops[-1].launches = 4
        real = tape.view("real", turned, site.weight.shape)
        tape.ops[-1].gradients = (Gradient(turned, 2 * full, moved=3 * full),)
        delta = tape.fresh(site.weight.shape, "fp32", True)
        tape.record("scale", (real,), delta, gradients=(Gradient(real, full),))
        tape.hold(dense)
        delta = pw.cast(tape, delta, spectrum.dtype)
        wide = pw.cast(tape, x, spectrum.dtype)
        result = pw.cast(tape, pw.add(tape, y, linear(tape, wide, delta)), y.dtype)
        tape.hold(delta, wide)
        return result

"""The Mamba 2 mixer that hybrids share: a projection, a convolution, a scan of states, a norm with a gate.

Mirrors transformers 5.23 `Mamba2Mixer`, `GraniteMoeHybridMambaLayer` and `NemotronHMamba2Mixer`, which are alike, with the scan
in torch, as they run without the packages mamba-ssm and causal-conv1d (`use_kernel_func_from_hub_with_fallback`).
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.convolution import causal_conv
from tuneplan.planner.graph.delta_rule import chunk_of, exp
from tuneplan.planner.graph.state_space import chunked_scan
from tuneplan.planner.graph.tape import Tape
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models.assembly import Assembly

TORCH_NOTE = (
    "state-space layers are planned as transformers runs them in torch; with the packages mamba-ssm and causal-conv1d they keep "
    "far less and are faster"
)


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Sizes of the mixer.

    Attributes:
        heads: of the state.
        head_dim: columns of a head.
        groups: of heads that share what writes and reads the state.
        state: columns of the state.
        conv_width: tokens that the convolution sees.
        conv_bias: it has a bias.
        bias: the two projections have biases.
        chunk: tokens of a chunk of the scan.
        act: activation behind the convolution.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    conv_width: int
    conv_bias: bool
    bias: bool
    chunk: int
    act: str

    @property
    def inner(self) -> int:
        """Columns inside the mixer."""
        return self.heads * self.head_dim

    @property
    def mixed(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.state

    def check(self, origin: str) -> None:
        """Raise InputError where heads do not fall into groups."""
        if self.heads % self.groups:
            raise InputError(f"{origin}: {self.heads} heads of the state do not fall into {self.groups} groups; check the config")


def refuse_states(model: Assembly, name: str) -> None:
    """Raise InputError for what needs keys and values in every layer: prefixes, and a cache that is kept in training."""
    if model.method.prefix_length:
        raise InputError(
            f"{name}: layers with a state have no keys and values, so peft's prefixes do not fit; use prompt_tuning or lora"
        )
    if model.settings.use_cache and model.settings.gradient_checkpointing == "off":
        raise InputError(f"{name}: a cache that is kept in training holds states, which tuneplan does not know; train without")


def state_space_mixer(model: Assembly, sizes: StateSpace, x: Tensor, module: str, hidden: int) -> Tensor:
    """Shapes: x `(batch, length, hidden)` -> the same. `module`: its name within the layer."""
    tape = model.tape
    model.notes.setdefault("state_space", "torch")
    batch, length, _ = x.shape
    given = x.dtype
    if model.settings.padded:
        x = pw.scale(tape, x, "padding")
    projected = model.linear(x, f"{module}.in_proj", sizes.inner + sizes.mixed + sizes.heads, sizes.bias)
    heads = (sizes.heads,)
    log = model.weight(module, heads, "other", "A_log")
    tape.scope = module
    rate = pw.scale(tape, exp(tape, pw.cast(tape, log, "fp32")), "neg")
    gate, mixed, dt = pw.split(tape, projected, [(batch, length, w) for w in (sizes.inner, sizes.mixed, sizes.heads)])
    seen = pw.transpose(tape, mixed, (batch, sizes.mixed, length), copied=False)
    weight = model.weight(f"{module}.conv1d", (sizes.mixed, 1, sizes.conv_width), "other")
    bias = model.weight(f"{module}.conv1d", (sizes.mixed,), "bias", "bias", "conv") if sizes.conv_bias else None
    seen = causal_conv(tape, pw.cast(tape, seen, weight.dtype), weight, bias, length)
    active = pw.cast(tape, pw.activation(tape, seen, sizes.act), mixed.dtype)
    active = pw.transpose(tape, active, (batch, length, sizes.mixed), copied=False)
    if model.settings.padded:
        active = pw.scale(tape, active, "padding")
    narrow = sizes.groups * sizes.state
    inner, b, c = pw.split(tape, active, [(batch, length, w) for w in (sizes.inner, narrow, narrow)])
    out = chunked_scan(
        tape,
        tape.view("view", inner, (batch, length, sizes.heads, sizes.head_dim)),
        dt,
        rate,
        tape.view("view", b, (batch, length, sizes.groups, sizes.state)),
        tape.view("view", c, (batch, length, sizes.groups, sizes.state)),
        model.weight(module, heads, "other", "D"),
        model.weight(module, heads, "other", "dt_bias"),
        chunk_of(length, sizes.chunk),
    )
    out = tape.view("reshape", out, (batch, length, sizes.inner))

    def run(tape_: Tape, y: Tensor, scale: Tensor) -> Tensor:
        return _gated_norm(tape_, y, gate, scale, sizes.groups)

    normed = model.rms_norm(out, f"{module}.norm", run)
    y = model.linear(pw.cast(tape, normed, given), f"{module}.out_proj", hidden, sizes.bias)
    tape.hold(x, projected, active, rate, normed)
    return y


def _gated_norm(tape: Tape, x: Tensor, gate: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`NemotronHRMSNormGated`: times the activated gate, then normed in groups, all in fp32."""
    active = pw.activation(tape, pw.cast(tape, gate, "fp32"), "silu")
    product = pw.multiply(tape, pw.cast(tape, x, "fp32"), active)
    grouped = tape.view("view", product, (*product.shape[:-1], groups, product.shape[-1] // groups))
    normal = tape.view("view", pw.over_rms(tape, grouped), product.shape)
    tape.hold(product)
    return pw.multiply(tape, weight, pw.cast(tape, normal, x.dtype))

"""What vision towers share: images cut into patches, and a layer of attention and MLP behind a norm each.

Mirrors transformers 5.23 models/vit and models/clip, whose layers differ in their names. An image of H x W pixels in patches of p
has (H // p) * (W // p) tokens, and one more where there is a class token. Not modelled: cuDNN's workspace for the convolution
that cuts the patches.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS, activation
from tuneplan.planner.graph.matmul import cut_patches
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block
from tuneplan.planner.models import encoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec

LARGEST_SIDE = 2**16
NO_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class VisionSpec(EncoderSpec):
    """A tower of layers over the patches of an image of one size.

    Attributes:
        image_size: height and width [pixels].
        patch_size: the same of a patch.
        num_channels: values of a pixel.
        class_token: a token stands before the patches.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int
    class_token: bool

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        (height, width), (rows, columns) = self.image_size, self.patch_size
        return (height // rows) * (width // columns) + self.class_token

    @property
    def pixels(self) -> str:
        """Width and height of an image."""
        return f"{self.image_size[1]} x {self.image_size[0]}"

    @property
    def longest(self) -> int | None:
        """As many positions as an image has tokens."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of the modules of a layer."""

    before: str
    attention: str
    output: str
    after: str


def dimensions(
    id: str, config: ConfigReader, defaults: dict[str, Any], keys: dict[str, str] | None = None, class_token: bool = True
) -> dict[str, Any]:
    """The fields of `VisionSpec` by name.

    Args:
        id: hub id or path.
        config: the config.json, or its part for the tower.
        defaults: what the upstream configuration class has, by BERT's names.
        keys: names of keys that are not BERT's.
        class_token: see `VisionSpec`.

    Raises:
        InputError: dimensions are missing, absurd or contradict each other.
    """
    image, patch = (_pair(config, key, defaults[key]) for key in ("image_size", "patch_size"))
    if patch[0] > image[0] or patch[1] > image[1]:
        raise InputError(
            f"{config.origin}: patch_size={_shown(patch)} is larger than image_size={_shown(image)}; check the config"
        )
    given = {"vocab_size": 1, "max_position_embeddings": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    fields = encoder.dimensions(id, config, {**given, **defaults}, keys, ACTIVATIONS)
    tower: dict[str, Any] = {"image_size": image, "patch_size": patch, "class_token": class_token}
    tower["num_channels"] = config.integer("num_channels", 3, maximum=2**16)
    return {**fields, **tower, "vocab_size": 0, "max_position_embeddings": NO_LIMIT}


def _pair(config: ConfigReader, key: str, default: int) -> tuple[int, int]:
    """Height and width, which a config gives as one number or as two. Raises InputError."""
    given = config.mapping.get(key)
    if not isinstance(given, list):
        side = config.integer(key, default, maximum=LARGEST_SIDE)
        return side, side
    config.asked.add(key)
    if len(given) != 2 or any(
        isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE for side in given
    ):
        raise InputError(f"{config.origin}: {key!r} must be a number of pixels, or two of them. Correct the file.")
    return given[0], given[1]


def _shown(pair: tuple[int, int]) -> str:
    return f"{pair[0]} x {pair[1]}"


def pixels(model: Assembly, spec: VisionSpec, images: Size) -> Tensor:
    """Images as a processor makes them, in fp32: `(images, channels, height, width)`."""
    tape = model.tape
    return tape.record("pixel_values", (), tape.fresh((images, spec.num_channels, *spec.image_size), "fp32", False))


def patches(model: Assembly, spec: VisionSpec, given: Tensor, module: str, bias: bool = True) -> Tensor:
    """A convolution whose kernel and stride are a patch: `(images, patches, hidden)`.

    `given`: pixels; `module`: name of the convolution.
    """
    tape = model.tape
    rows = given.shape[0]
    size = (spec.num_channels, *spec.patch_size)
    weight = model.weight(module, (spec.hidden_size, *size), "other")
    offset = model.weight(module, (spec.hidden_size,), "bias", "bias", "convolution") if bias else None
    x = pw.cast(tape, given, weight.dtype)
    count = spec.tokens - spec.class_token
    out = cut_patches(tape, x, weight, offset, (rows, spec.hidden_size, count))
    tape.hold(given, x)
    return tape.view("transpose", out, (rows, count, spec.hidden_size))


def behind_class(model: Assembly, x: Tensor, token: Tensor, leaf: bool = False) -> Tensor:
    """The class token before the patches, `(images, patches + 1, hidden)`.

    `leaf`: the patches were made to require a gradient, which is then a copy of a part of this one's.
    """
    tape = model.tape
    rows, count, width = x.shape
    spread = tape.view("expand", token, (rows, 1, width))
    if token.requires_grad:
        tape.ops[-1].gradients = (Gradient(token, round_block(token.nbytes)),)
    out = tape.fresh((rows, count + 1, width), x.dtype, x.requires_grad or token.requires_grad)
    back = Gradient(x, round_block(x.nbytes) if leaf else None, view=True)
    return tape.record("cat", (spread, x), out, gradients=(Gradient(spread, None, view=True), back))


def layer(
    model: Assembly, spec: Any, entry: Tensor, names: LayerNames, bias: bool, masks: tuple[Tensor, ...] = (), causal: bool = False
) -> Tensor:
    """What leaves a layer. `bias`: queries, keys and values have one; `masks`: of attention; `causal`: tokens look back."""
    tape = model.tape
    normed = model.layer_norm(entry, names.before)
    attended, weights = attention(model, spec, normed, names, bias, masks, causal)
    attended = model.submodule("self_attn", normed, entry, pw.dropout(tape, attended, spec.hidden_dropout))
    hidden = pw.add(tape, attended, entry)
    inner = model.layer_norm(hidden, names.after)
    out = mlp(model, spec, inner)
    out = model.submodule("mlp", inner, hidden, pw.dropout(tape, out, spec.hidden_dropout))
    exit = pw.add(tape, out, hidden)
    tape.hold(hidden, *weights)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return exit


def attention(
    model: Assembly,
    spec: Any,
    x: Tensor,
    names: LayerNames,
    bias: bool,
    masks: tuple[Tensor, ...] = (),
    causal: bool = False,
    output_bias: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attention between projections; also weights that the layer's code holds (eager)."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, x.dtype, masked=bool(masks))
    module = names.attention
    heads = encoder.projections(model, spec, kernel, x, [f"{module}.{name}_proj" for name in "qkv"], bias)
    tape.scope = module
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mixed, weights, held = encoder.both_ways(model, spec, kernel, heads, masks, dropout, prefixed=False, wide=True, causal=causal)
    tape.scope = ""
    y = model.linear(mixed, f"{module}.{names.output}", spec.hidden_size, bias=output_bias)
    tape.hold(x, *held, *weights)
    return y, weights


def mlp(model: Assembly, spec: Any, x: Tensor) -> Tensor:
    """`fc2(act(fc1(x)))`."""
    tape = model.tape
    inner = model.linear(x, "mlp.fc1", spec.intermediate_size, bias=True)
    tape.scope = "mlp"
    inner = activation(tape, inner, spec.hidden_act)
    tape.scope = ""
    y = model.linear(inner, "mlp.fc2", spec.hidden_size, bias=True)
    tape.hold(x)
    return y

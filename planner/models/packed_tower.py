"""Vision towers that read the patches of all images of a batch as one sequence, each image in its own size.

Mirrors transformers 5.23 models/qwen3_vl/modeling_qwen3_vl.py and models/qwen2_5_vl/modeling_qwen2_5_vl.py. The P patches of
all images lie behind each other; attention runs image by image (or window by window) and its outputs are joined. All images have
one size here. Not modelled: the workspace of the convolution that cuts patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS, activation
from tuneplan.planner.graph.matmul import cut_patches, embedding
from tuneplan.planner.graph.tape import Gradient, Op
from tuneplan.planner.graph.tensor import Size, Tensor, elements
from tuneplan.planner.models import encoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.spec import ModelSpec

DEFAULT_SIDE = 768
"""Pixels of a side where none are given: `image_max_pixels` of LLaMA-Factory is 768 * 768 (configs/keys/llamafactory.json)."""
LARGEST_SIDE = 2**14
AROUND = 2
"""Tokens that enclose those of an image in a chat template (`vision_start_token_id`, `vision_end_token_id`)."""
TAPS = 4
"""Rows of the table of positions that are mixed for a patch (bilinear)."""


@dataclass(frozen=True, slots=True)
class PackedTower:
    """A tower.

    Attributes:
        hidden_size: width of its layers.
        num_hidden_layers: how many.
        num_attention_heads: heads.
        head_dim: size of a head.
        intermediate_size: width inside the MLP.
        hidden_act: of the MLP.
        patch_size: side of a patch [pixels].
        frames: that a patch spans; a picture is repeated for each.
        channels: values of a pixel.
        merge: patches of a side that become one token.
        out_hidden_size: width of the language model.
        positions: rows of the table of learned positions, 0 for none.
        grid: patches of an image, high and wide.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    patch_size: int
    frames: int
    channels: int
    merge: int
    out_hidden_size: int
    positions: int
    grid: tuple[int, int]

    @property
    def patches(self) -> int:
        """Of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Of the language model's sequence that an image takes."""
        return self.patches // self.merge**2

    @property
    def pixels(self) -> str:
        """Width and height of an image as it is cut."""
        return f"{self.grid[1] * self.patch_size} x {self.grid[0] * self.patch_size}"

    @property
    def patch_values(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a patch."""
        return self.channels, self.frames, self.patch_size, self.patch_size


@dataclass(frozen=True, slots=True)
class PackedSpec(ModelSpec):
    """A model whose tower reads images of any size.

    Attributes:
        tower: the vision tower.
    """

    tower: PackedTower

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return self.tower.tokens

    @property
    def image_pixels(self) -> str:
        """Width and height of an image."""
        return self.tower.pixels

    def sized(self, image_size: tuple[int, int]) -> "PackedSpec":
        """The model as it reads images of a height and a width [pixels]."""
        return replace(self, tower=sized(self.id, self.tower, image_size))


def grid_of(patch_size: int, merge: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Patches that a processor cuts an image into: each side rounded to whole tokens.

    Mirrors `smart_resize` of transformers 5.23 models/qwen2_vl/image_processing_qwen2_vl.py between its least and most pixels.
    """
    unit = patch_size * merge
    high, wide = (max(1, round(side / unit)) * merge for side in image_size)
    return high, wide


def sized(id: str, tower: PackedTower, image_size: tuple[int, int]) -> PackedTower:
    """The tower for images of a height and a width [pixels]. Raises InputError for a size that cannot be. `id`: of the model."""
    if not all(1 <= side <= LARGEST_SIDE for side in image_size):
        raise InputError(f"{id}: images of {image_size[1]} x {image_size[0]} pixels cannot be; use 1 to {LARGEST_SIDE}")
    return replace(tower, grid=grid_of(tower.patch_size, tower.merge, image_size))


def read(config: ConfigReader, defaults: dict[str, Any], keys: dict[str, str]) -> PackedTower:
    """The tower of a `vision_config`.

    `defaults` of the configuration class; `keys`: names that differ from those of `PackedTower`. Raises InputError where
    dimensions are absurd or contradict each other.
    """

    def count(name: str, maximum: int = 2**20) -> int:
        return config.integer(keys.get(name, name), defaults.get(name), maximum=maximum)

    hidden, heads = count("hidden_size"), count("num_attention_heads", 2**12)
    if hidden % heads or (hidden // heads) % 4:
        raise InputError(
            f"{config.origin}: {keys.get('hidden_size', 'hidden_size')}={hidden} does not give heads of a multiple of 4 for "
            f"{keys.get('num_attention_heads', 'num_attention_heads')}={heads}; check the config"
        )
    act = config.text("hidden_act", defaults["hidden_act"])
    if act not in ACTIVATIONS:
        raise InputError(f"{config.origin}: hidden_act {act!r} is an activation that tuneplan does not know")
    patch, merge = count("patch_size", 2**10), count("merge", 2**6)
    return PackedTower(
        hidden_size=hidden,
        num_hidden_layers=count("num_hidden_layers", 2**12),
        num_attention_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=count("intermediate_size"),
        hidden_act=act,
        patch_size=patch,
        frames=count("frames", 2**6),
        channels=count("channels", 2**6),
        merge=merge,
        out_hidden_size=count("out_hidden_size"),
        positions=count("positions", 2**24) if "positions" in defaults else 0,
        grid=grid_of(patch, merge, (DEFAULT_SIDE, DEFAULT_SIDE)),
    )


def pixels(model: Assembly, tower: PackedTower, images: Size) -> tuple[Tensor, Tensor]:
    """What a processor makes of images: fp32 patches `(P, values)`, and each image's grid."""
    tape = model.tape
    given = tape.record("pixel_values", (), tape.fresh((images * tower.patches, elements(tower.patch_values)), "fp32", False))
    return given, tape.record("image_grid_thw", (), tape.fresh((images, 3), "int64", False))


def cut(model: Assembly, tower: PackedTower, given: Tensor, module: str, bias: bool) -> tuple[Tensor, Tensor]:
    """The convolution over each patch: `(P, hidden)`; also the pixels in the model's dtype, which the caller's code holds.

    `given`: pixels; `module`: name of the convolution.
    """
    tape = model.tape
    weight = model.weight(module, (tower.hidden_size, *tower.patch_values), "other")
    offset = model.weight(module, (tower.hidden_size,), "bias", "bias", "convolution") if bias else None
    x = pw.cast(tape, given, weight.dtype)
    return cut_patches(tape, x, weight, offset, (given.shape[0], tower.hidden_size), "conv3d"), x


def mixed_positions(model: Assembly, tower: PackedTower, x: Tensor, module: str) -> Tensor:
    """Patches with their positions: `TAPS` rows of a learned table, mixed in fp32."""
    tape = model.tape
    count = x.shape[0]
    taps = tape.record("interp_indices", (), tape.fresh((count, TAPS), "int64", False))
    shares = tape.record("interp_weights", (), tape.fresh((count, TAPS, 1), "fp32", False))
    table = model.weight(module, (tower.positions, tower.hidden_size), "embedding")
    rows = embedding(tape, (count, TAPS), table)
    if table.requires_grad:
        tape.save(taps)
    product = pw.multiply(tape, rows, shares)
    total = tape.fresh(x.shape, product.dtype, product.requires_grad)
    tape.record("sum", (product,), total, gradients=(Gradient(product, None, view=True),))
    out = pw.add(tape, x, pw.cast(tape, total, x.dtype))
    tape.held += [taps.storage, shares.storage, total.storage]
    return out


def tables(model: Assembly, tower: PackedTower, count: Size) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rows and columns of patches, in fp32: `(P, head)`."""
    tape = model.tape
    places = tape.record("position_ids", (), tape.fresh((count, 2), "int64", False))
    tape.held.append(places.storage)
    cos, sin = (tape.record("rotary_table", (), tape.fresh((count, tower.head_dim), "fp32", False)) for _ in range(2))
    return cos, sin


def attention(
    model: Assembly,
    tower: PackedTower,
    x: Tensor,
    turned: tuple[Tensor, ...],
    parts: Sequence[tuple[Size, int]],
    names: tuple[str, str],
) -> Tensor:
    """Attention within each part of the patches: `(P, hidden)` -> the same.

    Args:
        model: where ops are recorded.
        tower: the dimensions.
        x: normed states.
        turned: cosines and sines.
        parts: how many there are of each length, and the length.
        names: of the module and of its output projection.
    """
    tape = model.tape
    module, output = names
    heads, size = tower.num_attention_heads, tower.head_dim
    y = model.linear(x, f"{module}.qkv", 3 * tower.hidden_size, bias=True)
    tape.scope = module
    # the gradients of the three are stacked, and put back into the projection's layout
    swapped = pw.transpose(tape, y, (3, *x.shape), copied=True)
    q, k, v = pw.split(tape, swapped, [(x.shape[0], heads, size)] * 3)
    wide = pw.cast(tape, q, "fp32"), pw.cast(tape, k, "fp32")
    rotated = [pw.rotate(tape, t, *turned) for t in wide]
    q, k = (pw.cast(tape, t, v.dtype) for t in rotated)
    tape.hold(*wide, rotated[1])
    shapes: list[tuple[Size, ...]] = [(count, heads, length, size) for count, length in parts]
    pieces = zip(*[pw.split(tape, t, shapes) for t in (q, k, v)], strict=True)
    mixed = [_run(model, tower, *three) for three in pieces]
    joined = tape.fresh(x.shape, mixed[0].dtype, any(t.requires_grad for t in mixed))
    tape.record("cat", tuple(mixed), joined, gradients=tuple([Gradient(t, None, view=True) for t in mixed]))
    tape.scope = ""
    out = model.linear(joined, f"{module}.{output}", tower.hidden_size, bias=True)
    tape.hold(x, q, k, v, *mixed)
    return out


def _run(model: Assembly, tower: PackedTower, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel, called for one part after the other; all of these have one length."""
    tape = model.tape
    kernel = encoder.bidirectional(model, tower, v.dtype, masked=False)
    if kernel.name == "eager":
        return kernels.eager(tape, q, k, v, None, 0.0, one_by_one=True)[0]
    if kernel.name == "efficient":
        return kernels.efficient(tape, q, k, v, causal=False, one_by_one=True)
    q, k, v = (pw.cast(tape, t, model.settings.autocast or model.settings.dtype) for t in (q, k, v))
    return kernels.flash(tape, q, k, v, causal=False, one_by_one=True)


def merged(
    model: Assembly, tower: PackedTower, x: Tensor, module: str, names: tuple[str, str, str], late: bool, norm: Any
) -> Tensor:
    """Neighbouring patches as one token of the language model: `(P / merge^2, out_hidden_size)`.

    `names` of the norm and the two linear layers; `late`: patches are joined before the norm; `norm`: records it.
    """
    tape = model.tape
    width = tower.hidden_size * tower.merge**2
    shape = (x.shape[0] // tower.merge**2, width)
    if late:
        x = tape.view("view", x, shape)
    normed = norm(x, f"{module}.{names[0]}")
    joined = normed if late else tape.view("view", normed, shape)
    inner = model.linear(joined, f"{module}.{names[1]}", width, bias=True)
    tape.scope = module
    inner = activation(tape, inner, "gelu")
    tape.scope = ""
    out = model.linear(inner, f"{module}.{names[2]}", tower.out_hidden_size, bias=True)
    tape.hold(normed)
    return out


def passed_on(model: Assembly, x: Tensor) -> Tensor:
    """What enters a block and leaves it as it is, where something else in the block reads it too."""
    out = Tensor(x.storage, x.shape, x.dtype, x.requires_grad)
    gradients = (Gradient(x, None),) if x.requires_grad else ()
    model.tape.ops.append(Op("pass", (x.storage,), out, gradients=gradients, launches=0))
    return out

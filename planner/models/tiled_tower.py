"""The vision tower of Llama 3.2 Vision: tiles of an image side by side, with gated positions of patches and tiles.

Mirrors `MllamaVisionModel` of transformers 5.23 models/mllama/modeling_mllama.py. In every function `spec` is the model's: it has
the `tower` for a tile, `tiles` of an image, `ratios` (ways to lay them out), padded `rows` of a tile and the language model's
`hidden_size`.
"""

from typing import Any

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes
from tuneplan.planner.models import encoder, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.vision import LayerNames

TOWER = "model.vision_model."
NAMES = LayerNames("input_layernorm", "self_attn", "o_proj", "post_attention_layernorm")


def images_of(model: Assembly) -> Size:
    """Images of the micro-batch."""
    return model.token_shape[0] * model.settings.images


def patches(model: Assembly, spec: Any, pixels: Tensor, hooked: bool) -> tuple[Tensor, tuple[Any, ...]]:
    """What enters the first layer, `(images, tiles * rows, hidden)`, and what is held as a leaf."""
    tape, tower = model.tape, spec.tower
    tiles, width = pixels.shape[0], tower.hidden_size
    images = tiles // spec.tiles
    token = model.weight(TOWER.rstrip("."), (width,), "other", "class_embedding")
    x = vision.patches(model, tower, pixels, f"{TOWER}patch_embedding", bias=False)
    leaves = encoder.leaf(model, x) if hooked else ()
    x = _tile_positions(model, spec, tape.view("reshape", x, (images, spec.tiles, tower.tokens - 1, width)), "pre")
    x = vision.behind_class(model, tape.view("reshape", x, (tiles, tower.tokens - 1, width)), token)
    x = tape.view("reshape", x, (images, spec.tiles, tower.tokens, width))
    module = f"{TOWER}gated_positional_embedding"
    gate = model.weight(module, (1,), "other", "gate")
    table = model.weight(module, (tower.tokens, width), "other", "embedding")
    places = pw.multiply(tape, pw.shift(tape, pw.tanh(tape, gate)), table)
    x = pw.add(tape, x, tape.view("view", places, (1, 1, tower.tokens, width)))
    every = (spec.ratios + 1, spec.tiles * tower.tokens * width)
    of_tiles = embedding(tape, (images,), model.weight(f"{module}.tile_embedding", every, "embedding"))
    of_tiles = tape.view("reshape", of_tiles, x.shape)
    x = pw.add(tape, x, pw.multiply(tape, pw.tanh(tape, gate), of_tiles))
    tape.hold(places, of_tiles)
    x = model.layer_norm(x, f"{TOWER}layernorm_pre")
    padded = tape.fresh((images, spec.tiles, spec.rows, width), x.dtype, x.requires_grad)
    tape.record("pad", (x,), padded, gradients=(Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),))
    return tape.view("view", padded, (images, spec.tiles * spec.rows, width)), leaves


def _tile_positions(model: Assembly, spec: Any, x: Tensor, name: str) -> Tensor:
    """Gated positions of each tile added to its patches: `(images, tiles, patches, hidden)`."""
    tape, width = model.tape, spec.tower.hidden_size
    module = f"{TOWER}{name}_tile_positional_embedding"
    gate = model.weight(module, (1,), "other", "gate")
    rows = embedding(tape, (x.shape[0],), model.weight(f"{module}.embedding", (spec.ratios + 1, spec.tiles * width), "embedding"))
    rows = tape.view("reshape", rows, (x.shape[0], spec.tiles, 1, width))
    return pw.add(tape, x, pw.multiply(tape, rows, pw.tanh(tape, gate)))


def patch_mask(model: Assembly, spec: Any, dtype: str) -> Tensor:
    """What patches attend to, for every pair of those of an image, in the tower's dtype."""
    length = spec.tiles * spec.rows
    shape = (images_of(model), 1, length, length)
    return model.tape.record("patch_mask", (), model.tape.fresh(shape, dtype, False), scratch=tensor_bytes(shape, dtype))


def seen(model: Assembly, spec: Any, entry: Tensor, masks: tuple[Tensor, ...], gated: bool) -> Tensor:
    """Attention and MLP, each behind a norm and, where the layer is `gated`, before a gate."""
    tape = model.tape
    normed = model.layer_norm(entry, NAMES.before)
    mixed, weights = vision.attention(model, spec.tower, normed, NAMES, False, masks, output_bias=False)
    mixed = model.submodule("self_attn", normed, entry, mixed)
    hidden = pw.add(tape, entry, _gated(model, mixed, "gate_attn") if gated else mixed)
    normed = model.layer_norm(hidden, NAMES.after)
    out = model.submodule("mlp", normed, hidden, vision.mlp(model, spec.tower, normed))
    exit = pw.add(tape, hidden, _gated(model, out, "gate_ffn") if gated else out)
    tape.hold(*weights)
    return exit


def _gated(model: Assembly, x: Tensor, name: str) -> Tensor:
    """`tanh(gate) * x`."""
    return pw.multiply(model.tape, pw.tanh(model.tape, model.weight("", (1,), "other", name)), x)


def behind_layers(model: Assembly, spec: Any, x: Tensor) -> Tensor:
    """Positions of tiles added once more, between the tower's layers and the gated ones."""
    tape, shape = model.tape, x.shape
    x = tape.view("reshape", x, (shape[0], spec.tiles, spec.rows, shape[-1]))
    return tape.view("reshape", _tile_positions(model, spec, x, "post"), shape)


def projected(model: Assembly, spec: Any, x: Tensor, taken: list[Tensor]) -> Tensor:
    """`(images * tiles, patches, hidden)` of the language model, out of the tower's last output and those that were `taken`."""
    tape, tower = model.tape, spec.tower
    images, width, count = x.shape[0], tower.hidden_size, len(taken)
    short = (images, spec.tiles, tower.tokens)
    last = pw.narrow(tape, tape.view("reshape", x, (images, spec.tiles, spec.rows, width)), (*short, width))
    stacked = tape.fresh((*x.shape, count), x.dtype, any(t.requires_grad for t in taken))
    tape.record("stack", tuple(taken), stacked, gradients=tuple([Gradient(t, None, view=True) for t in taken]))
    others = tape.view("reshape", stacked, (images, spec.tiles, spec.rows, width * count))
    others = pw.narrow(tape, others, (*short, width * count))
    both = model.join("cat", last, others, (*short, width * (count + 1)))
    tape.held.append(both.storage)
    out = model.linear(both, "model.multi_modal_projector", spec.hidden_size, bias=True)
    tape.hold(stacked)
    return tape.view("reshape", out, (images * spec.tiles, tower.tokens, spec.hidden_size))

"""Llama 3.2 Vision: a tower over the tiles of an image, whose output some layers of a Llama attend to instead of text.

Mirrors transformers 5.23 models/mllama/modeling_mllama.py. A processor pads every image to the most tiles. The tower has no
gradient checkpointing. Not modelled: the padding of masks to 16 columns inside the memory-efficient kernel on CUDA.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tape import Tape
from tuneplan.planner.graph.tensor import Tensor, tensor_bytes
from tuneplan.planner.models import decoder, image_text, tasks, tiled_tower, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, gated_mlp, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama
from tuneplan.planner.models.families.llama import LlamaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.packed_tower import passed_on
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.tiled_tower import TOWER
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.IMAGE_TEXT,)
TEXT = "model.language_model."
MORE_WORDS = 8
"""Rows of the embedding that the head does not have."""
PADDED_TO = 8
"""Patches of a tile are padded to a multiple of this."""
SELF, CROSS = "self", "cross"
_TEXT = {
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
_TOWER = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
}
_CROSS = [3, 8, 13, 18, 23, 28, 33, 38]
_TAKEN = [3, 7, 15, 23, 30]


@dataclass(frozen=True, slots=True)
class MllamaSpec(ModelSpec):
    """Llama 3.2 Vision. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        tower: the vision tower, for a tile.
        global_layers: gated layers behind those of the tower.
        tiles: of an image.
        ratios: ways to lay out tiles.
        taken: layers of the tower whose output goes to the language model beside the last one's.
        cross: layers of the language model that attend to images.
    """

    text: LlamaSpec
    tower: VisionSpec
    global_layers: int
    tiles: int
    ratios: int
    taken: tuple[int, ...]
    cross: tuple[int, ...]

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return 1

    @property
    def image_pixels(self) -> str:
        """Width and height of the tiles of an image."""
        return f"{self.tiles} times {self.tower.pixels}"

    @property
    def rows(self) -> int:
        """Patches of a tile, padded."""
        return -(-self.tower.tokens // PADDED_TO) * PADDED_TO


def read(id: str, config: ConfigReader) -> MllamaSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    kind = "mllama_text_model"
    inner = image_text.section(config, "text_config", kind, {kind: _TEXT}, "Llama 3.2 Vision")
    kept = {key: value for key, value in inner.mapping.items() if key not in ("head_dim", "attention_bias", "mlp_bias")}
    text = llama.read(id, ConfigReader({**kept, "model_type": "llama", "tie_word_embeddings": False}, inner.origin))
    kind = "mllama_vision_model"
    given = image_text.section(config, "vision_config", kind, {kind: {}}, "Llama 3.2 Vision")
    tower = VisionSpec(**vision.dimensions(id, given, _TOWER, {"num_attention_heads": "attention_heads"}))
    taken = _indices(given, "intermediate_layers_indices", _TAKEN, tower.num_hidden_layers)
    width = given.integer("vision_output_dim", 7680)
    if width != tower.hidden_size * (1 + len(taken)):
        raise InputError(
            f"{given.origin}: vision_output_dim={width} is not hidden_size={tower.hidden_size} times the {len(taken)} "
            "intermediate_layers_indices and one more; check the config"
        )
    ratios = given.mapping.get("supported_aspect_ratios")
    given.asked.add("supported_aspect_ratios")
    config.integer("image_token_index", 128256, minimum=0)
    return MllamaSpec(
        id=id,
        model_type=config.text("model_type"),
        **image_text.of_text(text),
        text=replace(text, model_type="mllama_text_model"),
        tower=tower,
        global_layers=given.integer("num_global_layers", 8, maximum=2**12),
        tiles=given.integer("max_num_tiles", 4, maximum=2**10),
        ratios=len(ratios) if isinstance(ratios, list) else 8,
        taken=taken,
        cross=_indices(inner, "cross_attention_layers", _CROSS, text.num_hidden_layers),
    )


def _indices(config: ConfigReader, key: str, default: list[int], layers: int) -> tuple[int, ...]:
    """Rising indices of layers. Raises InputError."""
    given = config.mapping.get(key)
    config.asked.add(key)
    found = default if given is None else given
    if not isinstance(found, list) or any(type(index) is not int or not 0 <= index < layers for index in found):
        raise InputError(f"{config.origin}: {key!r} must be a list of layers from 0 to {layers - 1}. Correct the file.")
    if sorted(set(found)) != found:
        raise InputError(f"{config.origin}: {key!r} must rise. Correct the file.")
    return tuple(found)


@dataclass(slots=True)
class _Between:
    """What goes beside the hidden states from stack to stack.

    Attributes:
        taken: outputs of layers of the tower.
        states: what the language model attends to.
        masks: of that, and of rows that attend to nothing.
    """

    taken: list[Tensor] = field(default_factory=list)
    states: Tensor | None = None
    masks: tuple[Tensor, ...] = ()


def stacks(spec: MllamaSpec) -> tuple[Stack, ...]:
    """The tower's layers, the gated ones behind them, and the language model's."""
    between = _Between()
    tower = partial(_tower_layer, False)
    return (
        Stack(
            f"{TOWER}transformer.layers.*.",
            spec.tower.num_hidden_layers,
            _start,
            tower,
            checkpoints=False,
            joints=spec.taken,
            joint=partial(_take, between),
        ),
        Stack(
            f"{TOWER}global_transformer.layers.*.", spec.global_layers, _middle, partial(_tower_layer, True), checkpoints=False
        ),
        _text_stack(spec, partial(_bridge, between), partial(_text_layer, between, spec.cross)),
    )


def text_stacks(spec: MllamaSpec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images: tower and layers that attend to them stand beside it."""
    return (_text_stack(spec, _text_start, partial(_text_layer, None, spec.cross)),)


def _text_stack(spec: MllamaSpec, start: Any, layer: Any) -> Stack:
    crossing = frozenset(spec.cross)
    return Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, start, layer, lambda _, index: CROSS if index in crossing else SELF)


def _start(model: Assembly, spec: MllamaSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Pixels; patches behind the class token with the positions of patch and tile, normed and padded; the mask of patches."""
    if model.settings.gradient_checkpointing == "reentrant":
        raise InputError(
            f"{spec.id}: reentrant checkpointing goes back more than once through what several layers attend to, and torch "
            "refuses; use non-reentrant checkpointing, which is the default"
        )
    tape = model.begin("", 1)
    tiles = tiled_tower.images_of(model) * spec.tiles
    pixels = vision.pixels(model, spec.tower, tiles)
    hidden, leaves = tiled_tower.patches(model, spec, pixels, hooked=True)
    mask = tiled_tower.patch_mask(model, spec, hidden.dtype)
    carried = (pixels.storage, mask.storage, *leaves)
    block = close("embeddings", tape, None, hidden, carried, batch=1, leaves=leaves * 2, exit_held=False)
    block.stays, block.exit_passed = (pixels.storage,), False
    return block, (mask,)


def _tower_layer(gated: bool, model: Assembly, spec: MllamaSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    """A layer of the tower; its output stays until the tower is done."""
    block = close("tower_layer", model.tape, entry, tiled_tower.seen(model, spec, entry, masks, gated))
    block.entries_kept = not gated
    return block


def _take(between: _Between, model: Assembly, spec: MllamaSpec, index: int, entry: Tensor, _: Any) -> Block:
    """The output of a layer of the tower goes to the language model too."""
    taken = model.tape.view("taken", entry, entry.shape)
    taken.crosses = True
    between.taken.append(taken)
    return close("taken", model.tape, entry, passed_on(model, entry), entry_held=False)


def _middle(model: Assembly, spec: MllamaSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Behind the tower's layers: a norm, and positions of tiles."""
    assert entry is not None
    masks = model.layers_share
    model.begin("", 1)
    exit = tiled_tower.behind_layers(model, spec, model.layer_norm(entry, f"{TOWER}layernorm_post"))
    return close("middle", model.tape, entry, exit, exit_held=False), masks


def _bridge(between: _Between, model: Assembly, spec: MllamaSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Outputs of the tower side by side, projected, the masks of who attends to them, and what the language model starts with."""
    assert entry is not None
    tape = model.begin("", 1)
    made = tiled_tower.projected(model, spec, entry, between.taken)
    made.crosses = True
    between.states = made
    batch, length = model.token_shape
    width = model.settings.images * spec.tiles * spec.tower.tokens
    given = tape.record(
        "cross_attention_mask", (), tape.fresh((batch, length, model.settings.images, spec.tiles), "int64", False)
    )
    wide = tensor_bytes((batch, length, width), "int64")
    mask = tape.fresh((batch, 1, length, width), entry.dtype, False)
    tape.record("cross_attention_mask", (given,), mask, scratch=2 * wide)
    seen = tape.record("full_text_row_mask", (), tape.fresh((batch, 1, length, 1), entry.dtype, False))
    between.masks = (mask, seen)
    return _begin_text(model, spec, tape, entry, (made, *between.masks, given))


def _text_start(model: Assembly, spec: MllamaSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, lambda: _stand_by(model, spec))
    return _begin_text(model, spec, Tape(model.settings.autocast), None, ())


def _stand_by(model: Assembly, spec: MllamaSpec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    given, model.settings = model.settings, replace(model.settings, images=1)
    model.begin("", 1)
    x, _ = tiled_tower.patches(
        model, spec, vision.pixels(model, spec.tower, tiled_tower.images_of(model) * spec.tiles), hooked=False
    )
    masks = (tiled_tower.patch_mask(model, spec, x.dtype),)
    for name, layers, gated in (
        ("transformer", spec.tower.num_hidden_layers, False),
        ("global_transformer", spec.global_layers, True),
    ):
        for index in range(layers):
            model.begin(f"{TOWER}{name}.layers.{index}.", 1, index)
            x = tiled_tower.seen(model, spec, x, masks, gated)
        model.begin("", 1)
        if not gated:
            x = tiled_tower.behind_layers(model, spec, model.layer_norm(x, f"{TOWER}layernorm_post"))
    tiled_tower.projected(model, spec, x, [x] * len(spec.taken))
    model.settings = given


def _begin_text(
    model: Assembly, spec: MllamaSpec, before: Tape, entry: Tensor | None, shared: tuple[Tensor, ...]
) -> tuple[Block, tuple[Tensor, ...]]:
    """Embedded tokens and tables, in one block with what was recorded `before`. Raises InputError for prompts and prefixes."""
    if model.method.virtual_tokens or model.method.prefix_length:
        raise InputError(
            f"{spec.id}: peft takes the head for the embedding of prompts, and masks of what attends to images have no room for "
            "prefixes, so that the model's code fails; use lora"
        )
    image_text.enter_text(model, replace(spec.text, vocab_size=spec.vocab_size + MORE_WORDS), TEXT)
    block, tables = decoder.start(model, llama.EMBEDDING, (spec.head_dim,) * 2, (None,))
    model.spec = spec.text
    if entry is None:
        return block, tables
    before.append(model.tape)
    carried = (*block.carried, *[tensor.storage for tensor in shared], *before.held)
    joined = close("bridge", before, entry, block.exit, carried, batch=block.batch, leaves=block.leaves)
    joined.exit_held, joined.exit_passed = block.exit_held, block.exit_passed
    return joined, tables


def _text_layer(
    between: _Between | None, cross: tuple[int, ...], model: Assembly, spec: LlamaSpec, entry: Tensor, shared: tuple[Tensor, ...]
) -> Block:
    """A layer of the language model: of text, or one that attends to images, which is skipped without."""
    if model.layer in cross:
        return _cross_layer(model, spec, entry, between)
    if between is not None and between.states is not None:  # every layer is handed them, and its checkpoint holds them
        model.tape.hold(between.states, *between.masks)
    return llama.layer(model, spec, entry, shared)


def _cross_layer(model: Assembly, spec: LlamaSpec, entry: Tensor, between: _Between | None) -> Block:
    """Attention to images and an MLP, each behind a norm and before a gate."""
    tape = model.tape
    if between is None:
        model.tape = Tape(model.settings.autocast)
        rows = (*entry.shape[:2], spec.hidden_size)
        states = model.tape.fresh(rows, entry.dtype, False)
        masks = tuple([model.tape.fresh((entry.shape[0], 1, entry.shape[1], n), entry.dtype, False) for n in (entry.shape[1], 1)])
        image_text.idle(model, partial(_crossed, model, spec, entry, states, masks))
        model.tape = tape
        return close("skipped", tape, entry, passed_on(model, entry), entry_held=False)
    assert between.states is not None
    return close("cross_layer", tape, entry, _crossed(model, spec, entry, between.states, between.masks))


def _crossed(model: Assembly, spec: LlamaSpec, entry: Tensor, states: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """What leaves the layer. `states`: of the images; `masks`: of who attends to them, and of rows that attend to nothing."""
    tape = model.tape
    mask, seen = masks
    normed = model.rms_norm(entry, "input_layernorm")
    mixed, weights = _attention(model, spec, normed, states, mask)
    gate = pw.tanh(tape, model.weight("", (1,), "other", "cross_attn_attn_gate"))
    hidden = pw.add(tape, entry, pw.multiply(tape, gate, mixed))
    normed = model.rms_norm(hidden, "post_attention_layernorm")
    out = pw.multiply(tape, tape.view("slice", seen, (*entry.shape[:2], 1)), gated_mlp(model, spec, normed))
    gate = pw.tanh(tape, model.weight("", (1,), "other", "cross_attn_mlp_gate"))
    exit = pw.add(tape, hidden, pw.multiply(tape, gate, out))
    tape.hold(*weights)
    return exit


def _attention(model: Assembly, spec: LlamaSpec, x: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Queries of text, keys and values of images."""
    whole = model.settings
    model.settings = replace(whole, padded=True)  # there is a mask
    kernel = kernel_of(model, spec, x, None)
    heads: list[Tensor] = []
    for name, source, count in (("q", x, spec.num_attention_heads), ("k", states, spec.num_key_value_heads), ("v", states, 0)):
        width = (count or spec.num_key_value_heads) * spec.head_dim
        y = model.linear(source, f"cross_attn.{name}_proj", width)
        if name != "q":
            y = model.tape.view("view", y, (x.shape[0], y.shape[0] // x.shape[0] * y.shape[1], width))
        y = heads_first(model, split_heads(model, y, spec.head_dim), copied=True)
        heads.append(model.rms_norm(y, f"cross_attn.{name}_norm") if count else y)
    model.tape.scope = "cross_attn"
    mixed, weights, held = attend(model, spec, kernel, (heads[0], heads[1], heads[2]), (mask,))
    model.tape.scope = ""
    model.settings = whole
    y = model.linear(mixed, "cross_attn.o_proj", spec.hidden_size)
    model.tape.hold(x, *held)
    return y, weights


def finish(model: Assembly, spec: MllamaSpec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return llama.finish(model, spec.text, entry)

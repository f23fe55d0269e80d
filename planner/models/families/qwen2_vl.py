"""Qwen2-VL and Qwen2.5-VL: a tower over packed patches before a Qwen2; that of 2.5 attends within windows in most layers.

Mirrors transformers 5.23 models/qwen2_vl/modeling_qwen2_vl.py and models/qwen2_5_vl/modeling_qwen2_5_vl.py, which differ by
`_VARIANTS`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block
from tuneplan.planner.models import encoder, image_text, packed_tower, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import gated_mlp
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama
from tuneplan.planner.models.families.llama import LlamaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.packed_tower import PackedSpec, PackedTower

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.visual.", "model.language_model."
_TEXT = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
_TOWER = {
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "frames": 2,
    "channels": 3,
    "merge": 2,
    "out_hidden_size": 3584,
}
_KEYS = {
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "frames": "temporal_patch_size",
    "channels": "in_channels",
    "merge": "spatial_merge_size",
}


@dataclass(frozen=True, slots=True)
class _Variant:
    """How the towers differ.

    Attributes:
        windows: most layers attend within windows, for which patches change places.
        gated: the MLP has a gate, and norms are RMS norms.
        defaults: of the tower's configuration class.
        keys: of its config, by the names of `PackedTower`.
    """

    windows: bool
    gated: bool
    defaults: dict[str, Any]
    keys: dict[str, str]


_VARIANTS = {
    "qwen2_vl": _Variant(
        windows=False,
        gated=False,
        defaults={**_TOWER, "hidden_size": 1280, "intermediate_size": 0, "hidden_act": "quick_gelu"},
        keys={**_KEYS, "hidden_size": "embed_dim", "out_hidden_size": "hidden_size"},
    ),
    "qwen2_5_vl": _Variant(
        windows=True,
        gated=True,
        defaults={**_TOWER, "hidden_size": 3584, "intermediate_size": 3420, "hidden_act": "silu"},
        keys=_KEYS,
    ),
}


@dataclass(frozen=True, slots=True)
class Qwen2VlSpec(PackedSpec):
    """Qwen2-VL. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        window: tokens of a side of the windows that layers attend within, 0 for none.
        whole: layers that attend within whole images all the same.
    """

    text: LlamaSpec
    window: int
    whole: tuple[int, ...]


def read(id: str, config: ConfigReader) -> Qwen2VlSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    model_type = config.text("model_type")
    variant = _VARIANTS[model_type]
    text = _text(id, config, f"{model_type}_text")
    given = (
        config.section("vision_config") if config.has("vision_config") else ConfigReader({}, f"{config.origin}, vision_config")
    )
    if not variant.gated:
        inner = given.integer("embed_dim", 1280) * given.integer("mlp_ratio", 4, maximum=2**10)
        given = ConfigReader({**given.mapping, "intermediate_size": inner}, given.origin)
    tower = packed_tower.read(given, variant.defaults, variant.keys)
    if tower.out_hidden_size != text.hidden_size:
        raise InputError(
            f"{config.origin}: the tower gives {tower.out_hidden_size} values a token (vision_config) and the language model has "
            f"hidden_size={text.hidden_size}; check the config"
        )
    for key in ("image_token_id", "video_token_id"):
        config.integer(key, 151655, minimum=0)
    window, whole = _windows(given, tower) if variant.windows else (0, ())
    shared = image_text.of_text(text)
    return Qwen2VlSpec(id=id, model_type=model_type, **shared, text=text, tower=tower, window=window, whole=whole)


def _text(id: str, config: ConfigReader, kind: str) -> LlamaSpec:
    """The language model, whose keys stand in a section of their own or, on the hub, beside the tower's section."""
    flat = {key: value for key, value in config.mapping.items() if key not in ("vision_config", "model_type", "auto_map")}
    section = config if config.has("text_config") else ConfigReader({"text_config": flat}, config.origin)
    own = image_text.section(section, "text_config", kind, {kind: _TEXT}, "Qwen2-VL")
    if own.boolean("use_sliding_window", False):
        raise NotModelledError(
            f"{own.origin}: use_sliding_window gives windows to some layers, which tuneplan does not know here"
        )
    tied = config.boolean("tie_word_embeddings", False) or own.boolean("tie_word_embeddings", False)
    kept = {key: value for key, value in own.mapping.items() if key not in ("head_dim", "text_config")}
    text = llama.read(id, ConfigReader({**kept, "model_type": "qwen2", "tie_word_embeddings": tied}, own.origin))
    return replace(text, model_type=kind)


def _windows(config: ConfigReader, tower: PackedTower) -> tuple[int, tuple[int, ...]]:
    """Tokens of a side of a window, and layers without windows. Raises InputError."""
    side = config.integer("window_size", 112) // tower.merge // tower.patch_size
    given = config.mapping.get("fullatt_block_indexes", [7, 15, 23, 31])
    config.asked.add("fullatt_block_indexes")
    if not isinstance(given, list) or any(type(index) is not int for index in given):
        raise InputError(f"{config.origin}: 'fullatt_block_indexes' must be a list of layers' indices. Correct the file.")
    if not side:
        raise InputError(
            f"{config.origin}: window_size is smaller than a token of {tower.merge * tower.patch_size} pixels; check it"
        )
    return side, tuple(given)


def stacks(spec: Qwen2VlSpec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""
    layers = spec.tower.num_hidden_layers
    kept: list[Storage] = []
    return (
        Stack(
            f"{TOWER}blocks.*.",
            layers,
            _start,
            _tower_layer,
            form=lambda _, spec, index: index in spec.whole,
            joints=(layers - 1,),
            joint=partial(_merger, kept),
        ),
        Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, partial(_bridge, kept), llama.layer),
    )


def text_stacks(spec: Qwen2VlSpec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images; the tower stands beside it."""
    return (Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _text_start, llama.layer),)


def _start(model: Assembly, spec: Qwen2VlSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels and pixels; embeddings, which wait for the tower, and patches."""
    image_text.check_room(model, spec.image_tokens, packed_tower.AROUND)
    tape = model.begin("", 1)
    batch = image_text.tokens_and_labels(model, ("mm_token_type_ids",))
    batch += packed_tower.pixels(model, spec.tower, _images(model))
    pixels = batch[-2]
    leaves = image_text.words_of(model, llama.EMBEDDING, TEXT)
    x, narrow = packed_tower.cut(model, spec.tower, pixels, f"{TOWER}patch_embed.proj", bias=False)
    others = encoder.leaf(model, x)
    x, turned = _turned(model, spec, x)
    given = tuple([tensor.storage for tensor in batch])
    held = () if narrow is pixels else (narrow.storage,)
    behind = others if spec.window else ()
    carried = (*given, *[tensor.storage for tensor in turned], *held, *leaves, *behind, *tape.held)
    block = close("embeddings", tape, None, x, carried, batch=len(given), leaves=(*leaves, *others) * 2, exit_held=False)
    block.stays, block.exit_passed = (pixels.storage,), False
    return block, turned


def _images(model: Assembly) -> Size:
    return model.token_shape[0] * model.settings.images


def _turned(model: Assembly, spec: Qwen2VlSpec, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Patches in the order of windows, if there are any, and their cosines and sines."""
    turned = packed_tower.tables(model, spec.tower, x.shape[0])
    if not spec.window:
        return x, turned
    x = _ordered(model, x)
    ordered = tuple([_ordered(model, table) for table in turned])
    model.tape.hold(*turned)
    return x, ordered


def _ordered(model: Assembly, x: Tensor) -> Tensor:
    """Rows in another order (`index`): a copy, whose gradient is put back row by row."""
    out = model.tape.fresh(x.shape, x.dtype, x.requires_grad)
    return model.tape.record("index", (x,), out, gradients=(Gradient(x, round_block(x.nbytes), moved=2 * x.nbytes),))


def _parts(model: Assembly, spec: Qwen2VlSpec, index: int) -> list[tuple[Size, int]]:
    """Parts of the patches that a layer attends within: how many of each length, and the length.

    Mirrors `get_vision_window_index` of transformers 5.23 vision_utils.py: windows at the edges are smaller.
    """
    tower, images = spec.tower, _images(model)
    if not spec.window or index in spec.whole:
        return [(images, tower.patches)]
    found: dict[int, int] = {}
    high, wide = (_cut(side // tower.merge, spec.window) for side in tower.grid)
    for rows, times in high:
        for columns, more in wide:
            length = rows * columns * tower.merge**2
            found[length] = found.get(length, 0) + times * more
    return [(images * count, length) for length, count in found.items()]


def _cut(side: int, window: int) -> list[tuple[int, int]]:
    """Lengths of the pieces of a side, and how many of each."""
    whole, rest = divmod(side, window)
    return [piece for piece in ((window, whole), (rest, 1)) if piece[0] and piece[1]]


def _tower_layer(model: Assembly, spec: Qwen2VlSpec, entry: Tensor, turned: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    assert model.layer is not None
    exit = _seen(model, spec, entry, turned, model.layer)
    image_text.refuse_reentrant(model, entry, exit)
    return close("tower_layer", model.tape, entry, exit)


def _seen(model: Assembly, spec: Qwen2VlSpec, entry: Tensor, turned: tuple[Tensor, ...], index: int) -> Tensor:
    """Attention within each image or window, and an MLP."""
    tape, tower = model.tape, spec.tower
    gated = _VARIANTS[spec.model_type].gated
    normed = _norm(model, spec, entry, "norm1")
    mixed = packed_tower.attention(model, tower, normed, turned, _parts(model, spec, index), ("attn", "proj"))
    hidden = pw.add(tape, entry, model.submodule("self_attn", normed, entry, mixed))
    normed = _norm(model, spec, hidden, "norm2")
    if gated:
        out = gated_mlp(model, tower, normed, bias=True)
    else:
        inner = model.linear(normed, "mlp.fc1", tower.intermediate_size, bias=True)
        tape.scope = "mlp"
        inner = activation(tape, inner, tower.hidden_act)
        tape.scope = ""
        out = model.linear(inner, "mlp.fc2", tower.hidden_size, bias=True)
        tape.hold(normed)
    return pw.add(tape, hidden, model.submodule("mlp", normed, hidden, out))


def _norm(model: Assembly, spec: Qwen2VlSpec, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module) if _VARIANTS[spec.model_type].gated else model.layer_norm(x, module)


def _merger(kept: list[Storage], model: Assembly, spec: Qwen2VlSpec, index: int, entry: Tensor, _: Any) -> Block:
    """Behind the last layer of the tower: tokens for the language model. `kept`: hidden states that only the output holds."""
    tape = model.tape
    out = _merged(model, spec, entry)
    saved = any(entry.storage in op.saved for op in tape.ops)
    kept += [] if saved else [entry.storage]
    tape.passed += kept
    return close("merger", tape, entry, out, (entry.storage,) if saved else (), entry_held=False)


def _merged(model: Assembly, spec: Qwen2VlSpec, x: Tensor) -> Tensor:
    names = ("ln_q", "mlp.0", "mlp.2")
    out = packed_tower.merged(model, spec.tower, x, f"{TOWER}merger", names, False, partial(_norm, model, spec))
    return _ordered(model, out) if spec.window else out


def _bridge(kept: list[Storage], model: Assembly, spec: Qwen2VlSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Image tokens put among the others, and what the language model starts with."""
    assert entry is not None

    def joined() -> Tensor:
        model.tape.held += kept
        return image_text.put_among_words(model, entry, "split")[0]

    return _begin_text(model, spec, joined, entry)


def _text_start(model: Assembly, spec: Qwen2VlSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, partial(_stand_by, model, spec))
    return _begin_text(model, spec, None, None)


def _begin_text(model: Assembly, spec: Qwen2VlSpec, given: Any, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    tables = {"widths": (spec.head_dim,) * 2, "windows": (None,), "tables_each": True}
    return image_text.begin_text(model, spec.text, TEXT, llama.EMBEDDING, given, entry, **tables)


def _stand_by(model: Assembly, spec: Qwen2VlSpec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    given, model.settings = model.settings, replace(model.settings, images=1)
    model.begin("", 1)
    pixels, _ = packed_tower.pixels(model, spec.tower, _images(model))
    x, _ = packed_tower.cut(model, spec.tower, pixels, f"{TOWER}patch_embed.proj", bias=False)
    x, turned = _turned(model, spec, x)
    for index in range(spec.tower.num_hidden_layers):
        model.begin(f"{TOWER}blocks.{index}.", 1, index)
        x = _seen(model, spec, x, turned, index)
    model.begin("", 1)
    _merged(model, spec, x)
    model.settings = given


def finish(model: Assembly, spec: Qwen2VlSpec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return llama.finish(model, spec.text, entry)

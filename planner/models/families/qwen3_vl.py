"""Qwen3-VL and its mixture of experts: a tower over packed patches, whose layers also feed the first layers of a Qwen3.

Mirrors transformers 5.23 models/qwen3_vl/modeling_qwen3_vl.py and models/qwen3_vl_moe/modeling_qwen3_vl_moe.py. Features of some
layers of the tower are added to the hidden states of image tokens behind the first layers of the language model ("deepstack").
Gradients of indexing: torch 2.13 derivatives.yaml (`index`, `index_put`); what sorting the places takes on CUDA is not counted.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tape import Gradient, Op
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, round_block
from tuneplan.planner.models import image_text, packed_tower, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama, mixtral
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.packed_tower import PackedSpec

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.visual.", "model.language_model."
_TEXT = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
}
_MOE = {
    **_TEXT,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
}
_TOWER = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "hidden_act": "gelu_pytorch_tanh",
    "patch_size": 16,
    "frames": 2,
    "channels": 3,
    "merge": 2,
    "out_hidden_size": 3584,
    "positions": 2304,
}
_KEYS = {
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "frames": "temporal_patch_size",
    "channels": "in_channels",
    "merge": "spatial_merge_size",
    "positions": "num_position_embeddings",
}
_DEEPSTACK = [8, 16, 24]
_TEXTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "qwen3_vl": ("qwen3", llama, _TEXT),
    "qwen3_vl_moe": ("qwen3_moe", mixtral, _MOE),
}
"""By model type: the type whose ops the language model has, its family, and defaults of its configuration class."""


@dataclass(frozen=True, slots=True)
class Qwen3VlSpec(PackedSpec):
    """Qwen3-VL. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        deepstack: layers of the tower whose output goes to the first layers of the language model, in their order.
    """

    text: Any
    deepstack: tuple[int, ...]

    @property
    def num_experts(self) -> int:
        """Experts of a layer of the language model, 0 for none."""
        return int(getattr(self.text, "num_experts", 0))

    @property
    def top_k(self) -> int:
        """Experts of a token, 0 without experts."""
        return int(getattr(self.text, "top_k", 0))


def read(id: str, config: ConfigReader) -> Qwen3VlSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    model_type = config.text("model_type")
    kind, family, defaults = _TEXTS[model_type]
    own = image_text.section(config, "text_config", f"{model_type}_text", {f"{model_type}_text": defaults}, "Qwen3-VL")
    tied = config.boolean("tie_word_embeddings", False)
    inner = ConfigReader({**own.mapping, "model_type": kind, "tie_word_embeddings": tied}, own.origin)
    text = replace(family.read(id, inner), model_type=own.text("model_type"))
    given = (
        config.section("vision_config") if config.has("vision_config") else ConfigReader({}, f"{config.origin}, vision_config")
    )
    tower = packed_tower.read(given, _TOWER, _KEYS)
    if tower.out_hidden_size != text.hidden_size:
        raise InputError(
            f"{config.origin}: the tower gives {tower.out_hidden_size} values a token (out_hidden_size) and the language model "
            f"has hidden_size={text.hidden_size}; check the config"
        )
    if int(tower.positions**0.5) ** 2 != tower.positions:
        raise InputError(f"{given.origin}: num_position_embeddings={tower.positions} is not the square of a number; check it")
    for key in ("image_token_id", "video_token_id"):
        config.integer(key, 151655, minimum=0)
    taken = _deepstack(given, tower.num_hidden_layers)
    return Qwen3VlSpec(
        id=id,
        model_type=model_type,
        **image_text.of_text(text),
        text=text,
        tower=tower,
        deepstack=taken,
        router_logits=text.router_logits,
    )


def _deepstack(config: ConfigReader, layers: int) -> tuple[int, ...]:
    """Layers of `deepstack_visual_indexes`, rising. Raises InputError."""
    given = config.mapping.get("deepstack_visual_indexes", _DEEPSTACK)
    config.asked.add("deepstack_visual_indexes")
    numbers = isinstance(given, list) and all(type(index) is int and 0 <= index < layers for index in given)
    if not numbers or sorted(set(given)) != given:
        raise InputError(
            f"{config.origin}: 'deepstack_visual_indexes' must be a list of layers from 0 to {layers - 1}, rising. "
            "Correct the file."
        )
    return tuple(given)


@dataclass(slots=True)
class _Between:
    """What goes from the tower to the language model beside its last features.

    Attributes:
        deep: features for the first layers, in their order.
        kept: the tower's last hidden states, where nothing but the model's outputs holds them.
        mask: places of image tokens.
    """

    deep: list[Tensor] = field(default_factory=list)
    kept: tuple[Storage, ...] = ()
    mask: Tensor | None = None


def stacks(spec: Qwen3VlSpec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""
    layers = spec.tower.num_hidden_layers
    behind = tuple(sorted({*spec.deepstack, layers - 1}))
    first = tuple(range(min(len(spec.deepstack), spec.num_hidden_layers)))
    between = _Between()
    return (
        Stack(f"{TOWER}blocks.*.", layers, _start, _tower_layer, joints=behind, joint=partial(_mergers, between)),
        _text_stack(spec, partial(_bridge, between), joints=first, joint=partial(_add_features, between)),
    )


def text_stacks(spec: Qwen3VlSpec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images; the tower stands beside it."""
    return (_text_stack(spec, _text_start),)


def _text_stack(spec: Qwen3VlSpec, start: Any, **joints: Any) -> Stack:
    family = _TEXTS[spec.model_type][1]
    kind = getattr(family, "layer_kind", lambda *_: "")
    return Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, start, family.layer, kind, **joints)


def _start(model: Assembly, spec: Qwen3VlSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels and pixels; embeddings, which wait for the tower, and patches with their positions."""
    image_text.check_room(model, spec.image_tokens, packed_tower.AROUND)
    tape = model.begin("", 1)
    batch = image_text.tokens_and_labels(model, ("mm_token_type_ids",))
    batch += packed_tower.pixels(model, spec.tower, _images(model))
    pixels = batch[-2]
    leaves = image_text.words_of(model, llama.EMBEDDING, TEXT)
    x, turned, narrow = _patches(model, spec, pixels)
    given = tuple([tensor.storage for tensor in batch])
    held = () if narrow is pixels else (narrow.storage,)
    carried = (*given, *[tensor.storage for tensor in turned], *held, *leaves, *tape.held)
    block = close("embeddings", tape, None, x, carried, batch=len(given), leaves=leaves * 2, exit_held=False)
    block.stays, block.exit_passed = (pixels.storage,), False
    return block, turned


def _images(model: Assembly) -> Size:
    return model.token_shape[0] * model.settings.images


def _patches(model: Assembly, spec: Qwen3VlSpec, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Patches with their positions, cosines and sines, and pixels in the model's dtype."""
    x, narrow = packed_tower.cut(model, spec.tower, pixels, f"{TOWER}patch_embed.proj", bias=True)
    x = packed_tower.mixed_positions(model, spec.tower, x, f"{TOWER}pos_embed")
    return x, packed_tower.tables(model, spec.tower, x.shape[0]), narrow


def _tower_layer(model: Assembly, spec: Qwen3VlSpec, entry: Tensor, turned: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    exit = _seen(model, spec, entry, turned)
    image_text.refuse_reentrant(model, entry, exit)
    return close("tower_layer", model.tape, entry, exit)


def _seen(model: Assembly, spec: Qwen3VlSpec, entry: Tensor, turned: tuple[Tensor, ...]) -> Tensor:
    """Attention within each image, and an MLP."""
    tape, tower = model.tape, spec.tower
    normed = model.layer_norm(entry, "norm1")
    mixed = packed_tower.attention(model, tower, normed, turned, [(_images(model), tower.patches)], ("attn", "proj"))
    hidden = pw.add(tape, entry, model.submodule("self_attn", normed, entry, mixed))
    normed = model.layer_norm(hidden, "norm2")
    inner = model.linear(normed, "mlp.linear_fc1", tower.intermediate_size, bias=True)
    tape.scope = "mlp"
    inner = activation(tape, inner, tower.hidden_act)
    tape.scope = ""
    out = model.linear(inner, "mlp.linear_fc2", tower.hidden_size, bias=True)
    tape.hold(normed)
    return pw.add(tape, hidden, model.submodule("mlp", normed, hidden, out))


def _mergers(between: _Between, model: Assembly, spec: Qwen3VlSpec, index: int, entry: Tensor, _: Any) -> Block:
    """Behind a layer of the tower: tokens for a layer of the language model, and behind the last those of its sequence."""
    tape = model.tape
    last = index == spec.tower.num_hidden_layers - 1
    passed = entry if last else packed_tower.passed_on(model, entry)
    if index in spec.deepstack:
        made = _merged(model, spec, entry, f"{TOWER}deepstack_merger_list.{spec.deepstack.index(index)}", late=True)
        made.crosses = True
        between.deep.append(made)
        tape.passed.append(made.storage)
    if not last:
        return close("deepstack_merger", tape, entry, passed, entry_held=False)
    out = _merged(model, spec, entry, f"{TOWER}merger", late=False)
    saved = any(entry.storage in op.saved for op in tape.ops)
    between.kept = () if saved else (entry.storage,)
    tape.passed += between.kept
    return close("merger", tape, entry, out, (entry.storage,) if saved else (), entry_held=False)


def _merged(model: Assembly, spec: Qwen3VlSpec, x: Tensor, module: str, late: bool) -> Tensor:
    names = ("norm", "linear_fc1", "linear_fc2")
    return packed_tower.merged(model, spec.tower, x, module, names, late, model.layer_norm)


def _bridge(between: _Between, model: Assembly, spec: Qwen3VlSpec, entry: Tensor) -> tuple[Block, tuple[Tensor, ...]]:
    """Image tokens put among the others, features for the first layers, and what the language model starts with."""

    def joined() -> Tensor:
        tape = model.tape
        deep = [image_text.apart(model, made, "split") for made in between.deep]
        tape.held += [*between.kept, *[made.storage for made in between.deep]]
        out, between.mask = image_text.put_among_words(model, entry, "split")
        between.deep = [pw.copy(tape, made, "cat") for made in deep]
        for made in between.deep:
            made.crosses = True
            tape.held.append(made.storage)
        return out

    return _begin_text(model, spec, joined, entry)


def _text_start(model: Assembly, spec: Qwen3VlSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, partial(_stand_by, model, spec))
    return _begin_text(model, spec, None, None)


def _stand_by(model: Assembly, spec: Qwen3VlSpec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    given, model.settings = model.settings, replace(model.settings, images=1)
    model.begin("", 1)
    pixels, _ = packed_tower.pixels(model, spec.tower, _images(model))
    x, turned, _ = _patches(model, spec, pixels)
    for index in range(spec.tower.num_hidden_layers):
        model.begin(f"{TOWER}blocks.{index}.", 1, index)
        x = _seen(model, spec, x, turned)
    model.begin("", 1)
    for place in range(len(spec.deepstack)):
        _merged(model, spec, x, f"{TOWER}deepstack_merger_list.{place}", late=True)
    _merged(model, spec, x, f"{TOWER}merger", late=False)
    model.settings = given


def _begin_text(model: Assembly, spec: Qwen3VlSpec, given: Any, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    tables = {"widths": (spec.head_dim,) * 2, "windows": (spec.text.sliding_window,), "tables_each": True}
    return image_text.begin_text(model, spec.text, TEXT, llama.EMBEDDING, given, entry, **tables)


def _add_features(between: _Between, model: Assembly, spec: Any, index: int, entry: Tensor, _: Any) -> Block:
    """`hidden[mask] += features` in a copy of what a layer of the language model made."""
    tape = model.tape
    tape.scope = "deepstack"
    mask, made = between.mask, between.deep[index]
    assert mask is not None
    full, rows = round_block(entry.nbytes), made.shape
    copied = pw.copy(tape, entry)
    picked = tape.fresh(rows, entry.dtype, entry.requires_grad)
    tape.record("index", (copied, mask), picked, saved=(mask,), gradients=(Gradient(copied, full, moved=2 * full),))
    both = pw.add(tape, picked, pw.cast(tape, made, entry.dtype))
    out = Tensor(copied.storage, copied.shape, copied.dtype, both.requires_grad or copied.requires_grad)
    needing = [t for t in (copied, both) if t.requires_grad]
    zeros = round_block(both.nbytes) if copied.requires_grad else 0
    gradients = tuple([Gradient(t, round_block(t.nbytes), scratch=zeros * (t is copied), moved=2 * t.nbytes) for t in needing])
    reads = (copied.storage, both.storage, mask.storage)
    tape.ops.append(
        Op("deepstack.index_put_", reads, out, saved=(mask.storage,) if needing else (), saves=bool(needing), gradients=gradients)
    )
    tape.scope = ""
    tape.passed.append(entry.storage)
    block = close("deepstack", tape, entry, out, entry_held=False)
    block.trailing = (entry.storage,)
    return block


def finish(model: Assembly, spec: Qwen3VlSpec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    block: Block = _TEXTS[spec.model_type][1].finish(model, spec.text, entry)
    return block

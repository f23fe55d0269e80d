"""LLaVA: a CLIP tower, a projector, and its image tokens in the sequence of a Llama-like language model.

Mirrors transformers 5.23 models/llava/modeling_llava.py. The tower's layers behind the one whose output is taken have no part in
the loss. `masked_scatter` as CUDA runs it: aten/src/ATen/native/cuda/IndexKernel.cu.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS, activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.ledger import Walk
from tuneplan.planner.graph.tensor import Size, Storage, Tensor
from tuneplan.planner.models import clip_tower, image_text, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama
from tuneplan.planner.models.families.llama import LlamaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.vision_tower.", "model.language_model."
_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336}
_CLIP |= {"num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
_MISTRAL = {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336}
_QWEN2 = {**_LLAMA, "intermediate_size": 22016, "vocab_size": 151936}
_TEXTS: dict[str, dict[str, int]] = {"llama": _LLAMA, "mistral": _MISTRAL, "qwen2": _QWEN2}
"""Language models, with what their configuration classes have for keys that a config leaves out."""
STRATEGIES = ("default", "full")


@dataclass(frozen=True, slots=True)
class LlavaSpec(ModelSpec):
    """LLaVA. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        tower: the vision tower.
        tower_layers: those before the output that is taken.
        keeps_class: the class token goes into the projector too.
        projector_act: between the projector's two layers.
        projector_bias: they have one.
    """

    text: LlamaSpec
    tower: VisionSpec
    tower_layers: int
    keeps_class: bool
    projector_act: str
    projector_bias: bool

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return self.tower.tokens - (not self.keeps_class)

    @property
    def image_pixels(self) -> str:
        """Width and height of an image."""
        return self.tower.pixels


def read(id: str, config: ConfigReader) -> LlavaSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    inner = image_text.section(config, "text_config", "llama", _TEXTS, "LLaVA")
    tied = config.boolean("tie_word_embeddings", False) or inner.boolean("tie_word_embeddings", False)
    text = replace(llama.read(id, inner), tie_word_embeddings=tied)
    tower = clip_tower.read(
        id, image_text.section(config, "vision_config", "clip_vision_model", {"clip_vision_model": _CLIP}, "LLaVA")
    )
    strategy = config.text("vision_feature_select_strategy", "default")
    if strategy not in STRATEGIES:
        known = " or ".join(STRATEGIES)
        raise InputError(f"{config.origin}: vision_feature_select_strategy {strategy!r} is not known; use {known}")
    act = config.text("projector_hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise InputError(f"{config.origin}: projector_hidden_act {act!r} is an activation that tuneplan does not know")
    config.integer("image_token_index", 32000, minimum=0)
    return LlavaSpec(
        id=id,
        model_type=config.text("model_type"),
        **image_text.of_text(text),
        text=text,
        tower=tower,
        tower_layers=_used(config, tower.num_hidden_layers),
        keeps_class=strategy == "full",
        projector_act=act,
        projector_bias=config.boolean("multimodal_projector_bias", True),
    )


def _used(config: ConfigReader, layers: int) -> int:
    """How many layers stand before the hidden states of `vision_feature_layer`. Raises InputError."""
    if isinstance(config.mapping.get("vision_feature_layer"), list):
        raise NotModelledError(f"{config.origin}: several vision_feature_layer are not known to tuneplan", "; use one")
    layer = config.integer("vision_feature_layer", -2, minimum=-layers - 1, maximum=layers)
    return layer if layer >= 0 else layers + 1 + layer


def stacks(spec: LlavaSpec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""

    def bridge(model: Assembly, spec: LlavaSpec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
        assert entry is not None
        return _bridge(model, spec, entry)

    return (
        Stack(f"{TOWER}encoder.layers.*.", spec.tower_layers, _start, _tower_layer),
        Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, bridge, llama.layer),
    )


def _start(model: Assembly, spec: LlavaSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels and pixels; embeddings, which wait for the tower, and patches."""
    image_text.check_room(model, spec.image_tokens)
    tape = model.begin("", 1)
    ids, labels = image_text.tokens_and_labels(model)
    pixels = vision.pixels(model, spec.tower, model.token_shape[0] * model.settings.images)
    leaves = image_text.words_of(model, llama.EMBEDDING, TEXT)
    hidden, others = clip_tower.embedded(model, spec.tower, TOWER, pixels, hooked=True)
    carried = (ids.storage, labels.storage, pixels.storage, *leaves, *others)
    block = close("embeddings", tape, None, hidden, carried, batch=3, leaves=(*leaves, *others) * 2)
    block.stays, block.exit_passed = (pixels.storage,), False
    return block, ()


def _tower_layer(model: Assembly, spec: LlavaSpec, entry: Tensor, _: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    return close("tower_layer", model.tape, entry, clip_tower.layer(model, spec.tower, entry))


def _unused(model: Assembly, spec: LlavaSpec, entry: Tensor) -> tuple[Size, Size, Size]:
    """Record the tower's layers that have no part in the loss; gives the bytes that they leave, their FLOPs and the bytes moved.

    What they leave lives until the model's outputs are reduced to the language model's: their graph is never gone back through.
    """
    left: Size = 0
    flops: Size = 0
    moved: Size = 0

    def record() -> None:
        nonlocal left, flops, moved, entry
        for index in range(spec.tower_layers, spec.tower.num_hidden_layers):
            model.begin(f"{TOWER}encoder.layers.{index}.", 1, index)
            exit = clip_tower.layer(model, spec.tower, entry)
            block = close("unused", model.tape, None, exit)
            kept = model.settings.gradient_checkpointing == "off" or not exit.requires_grad
            left = left + sum(Walk(block).forward(keep=kept).delta)
            flops = flops + sum([op.flops for op in block.ops])
            moved = moved + sum([op.moved for op in block.ops])
            entry = exit
        model.begin("", 1)
        model.layer_norm(pw.narrow(model.tape, entry, (entry.shape[0], entry.shape[-1])), f"{TOWER}post_layernorm")

    image_text.idle(model, record)
    return left, flops, moved


def _bridge(model: Assembly, spec: LlavaSpec, entry: Tensor) -> tuple[Block, tuple[Tensor, ...]]:
    """The projector, image tokens put among the others, and what the language model starts with."""
    words = model.words
    assert words is not None
    left, flops, moved = _unused(model, spec, entry)

    def joined() -> Tensor:
        tape = model.tape
        rest = Tensor(Storage(left, tape.category), (1,), entry.dtype)
        tape.record("unused_layers", (entry,), rest, flops=flops, moved=moved)
        tape.held.append(rest.storage)
        return _joined(model, spec, entry, words)

    image_text.enter_text(model, spec.text, TEXT)
    model.given = joined
    block, shared = llama.start(model, spec.text)
    model.given = None
    block.entry, block.entries_kept, block.exit_passed = entry, True, False
    return block, shared


def _joined(model: Assembly, spec: LlavaSpec, entry: Tensor, words: Tensor) -> Tensor:
    """`(batch, length, hidden)`: embeddings in which image features stand for image tokens."""
    tape = model.tape
    model.inside = ""
    images, count, width = entry.shape
    chosen = entry
    if not spec.keeps_class:
        chosen = pw.copy(tape, pw.narrow(tape, entry, (images, count - 1, width)), "reshape")
    module = "model.multi_modal_projector"
    inner = model.linear(chosen, f"{module}.linear_1", spec.hidden_size, spec.projector_bias)
    tape.scope = module
    inner = activation(tape, inner, spec.projector_act)
    tape.scope = ""
    made = model.linear(inner, f"{module}.linear_2", spec.hidden_size, spec.projector_bias)
    model.inside = TEXT
    features = pw.copy(tape, image_text.apart(model, made, "unbind"), "cat")
    if features.dtype != words.dtype:
        features = pw.cast(tape, features, words.dtype)
    tape.outputs.append(features.storage)
    tape.held.append(made.storage)
    return image_text.scattered(model, words, features)[0]


def finish(model: Assembly, spec: LlavaSpec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return llama.finish(model, spec.text, entry)

"""Idefics3 and SmolVLM: images cut into tiles, each of which a SigLIP-like tower reads, before a Llama.

Mirrors transformers 5.23 models/idefics3/modeling_idefics3.py and models/smolvlm/modeling_smolvlm.py, and for the tiles of an
image `split_images` of their image processors. Neighbouring patches of a tile become one token ("pixel shuffle").
"""

from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, elements, tensor_bytes
from tuneplan.planner.models import encoder, image_text, siglip_tower, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families import llama
from tuneplan.planner.models.families.llama import LlamaSpec
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.models.vision import VisionSpec

TASKS = (tasks.IMAGE_TEXT,)
TOWER, TEXT = "model.vision_model.", "model.text_model."
TILES_OF_A_SIDE = 4
"""That the processors make of the longer side of every image (`size`, four times `max_image_size`)."""
LARGEST_SIDE = 2**14
_LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
_TEXTS = {"llama": _LLAMA, "mistral": {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336}}
_TOWER = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
_TOWERS = ("idefics3", "idefics3_vision", "smolvlm_vision")


@dataclass(frozen=True, slots=True)
class Idefics3Spec(ModelSpec):
    """Idefics3 or SmolVLM. The dimensions of the base are those of the language model.

    Attributes:
        text: the language model.
        tower: the vision tower, for a tile.
        scale: patches of a side of a tile that become one token.
        grid: tiles of an image, high and wide.
    """

    text: LlamaSpec
    tower: VisionSpec
    scale: int
    grid: tuple[int, int]

    @property
    def tiles(self) -> int:
        """Of an image: what it is cut into, and the whole made smaller; one where it is not cut."""
        cut = self.grid[0] * self.grid[1]
        return 1 if cut == 1 else cut + 1

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that an image takes."""
        return self.tiles * self.tower.tokens // self.scale**2

    @property
    def around(self) -> int:
        """Tokens that stand between the tiles of an image (`get_image_prompt_string` of the processors)."""
        rows, columns = self.grid
        return 3 if self.tiles == 1 else 2 * rows * columns + rows + 4

    @property
    def image_pixels(self) -> str:
        """Width and height of an image as it is cut."""
        high, wide = self.tower.image_size
        return f"{self.grid[1] * wide} x {self.grid[0] * high}"

    def sized(self, image_size: tuple[int, int]) -> "Idefics3Spec":
        """The model as it reads images that a processor brings to a height and a width [pixels]. Raises InputError."""
        if not all(1 <= side <= LARGEST_SIDE for side in image_size):
            raise InputError(f"{self.id}: images of {image_size[1]} x {image_size[0]} pixels cannot be; use 1 to {LARGEST_SIDE}")
        high, wide = (-(-side // tile) for side, tile in zip(image_size, self.tower.image_size, strict=True))
        return replace(self, grid=(high, wide))


def read(id: str, config: ConfigReader) -> Idefics3Spec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    inner = image_text.section(config, "text_config", "llama", _TEXTS, "Idefics3")
    tied = config.boolean("tie_word_embeddings", False)
    text = replace(llama.read(id, inner), tie_word_embeddings=tied)
    given = image_text.section(config, "vision_config", _TOWERS[0], dict.fromkeys(_TOWERS, _TOWER), "Idefics3")
    tower = siglip_tower.read(id, ConfigReader({**given.mapping, "vision_use_head": False}, given.origin))
    scale = config.integer("scale_factor", 2, maximum=2**8)
    side = tower.image_size[0] // tower.patch_size[0]
    if side % scale:
        raise InputError(
            f"{config.origin}: scale_factor={scale} does not divide the {side} patches of a side of a tile; check it"
        )
    config.integer("image_token_id", 128257, minimum=0)
    shared = image_text.of_text(text)
    grid = (TILES_OF_A_SIDE,) * 2
    return Idefics3Spec(id=id, model_type=config.text("model_type"), **shared, text=text, tower=tower, scale=scale, grid=grid)


def stacks(spec: Idefics3Spec) -> tuple[Stack, ...]:
    """The tower's layers and the language model's."""
    return (
        Stack(f"{TOWER}encoder.layers.*.", spec.tower.num_hidden_layers, _start, _tower_layer),
        Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _bridge, llama.layer),
    )


def text_stacks(spec: Idefics3Spec) -> tuple[Stack, ...]:
    """The language model alone, where sequences have no images; the tower stands beside it."""
    return (Stack(f"{TEXT}layers.*.", spec.num_hidden_layers, _text_start, llama.layer),)


def _start(model: Assembly, spec: Idefics3Spec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels, pixels and a mask of them; embeddings, which wait for the tower, and patches."""
    image_text.check_room(model, spec.image_tokens, spec.around)
    tape = model.begin("", 1)
    tiles = model.token_shape[0] * model.settings.images * spec.tiles
    batch = (*image_text.tokens_and_labels(model), vision.pixels(model, spec.tower, tiles), _pixel_mask(model, spec, tiles))
    leaves = image_text.words_of(model, llama.EMBEDDING, TEXT)
    hidden, chosen = _patches(model, spec, batch[-2])
    mask = _pixel_mask(model, spec, tiles)  # that of tiles that are not all zeros: a copy
    others = encoder.leaf(model, hidden)
    given = tuple([tensor.storage for tensor in batch])
    carried = (*given, *leaves, chosen.storage, mask.storage)
    block = close("embeddings", tape, None, hidden, carried, batch=len(given), leaves=(*leaves, *others) * 2)
    block.stays, block.exit_passed = given[-2:], False
    return block, ()


def _pixel_mask(model: Assembly, spec: Idefics3Spec, tiles: Size) -> Tensor:
    """As the processors make it: an int64 for each pixel."""
    return model.tape.record("pixel_attention_mask", (), model.tape.fresh((tiles, *spec.tower.image_size), "int64", False))


def _patches(model: Assembly, spec: Idefics3Spec, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patches with their positions, and the pixels that they are cut from: a copy of the tiles that are not all zeros."""
    tape, tower = model.tape, spec.tower
    prefix = f"{TOWER}embeddings"
    size = (tower.hidden_size, tower.num_channels, *tower.patch_size)
    weight = model.weight(f"{prefix}.patch_embedding", size, "other")
    narrow = pw.cast(tape, pixels, weight.dtype)
    chosen = tape.record("index", (narrow,), tape.fresh(pixels.shape, narrow.dtype, False), scratch=_map(pixels))
    x = vision.patches(model, tower, chosen, f"{prefix}.patch_embedding")
    places = tape.record("position_ids", (), tape.fresh((pixels.shape[0], tower.tokens), "int64", False))
    table = model.weight(f"{prefix}.position_embedding", (tower.tokens, tower.hidden_size), "embedding")
    positions = embedding(tape, (pixels.shape[0], tower.tokens), table)
    if table.requires_grad:
        tape.save(places)
    tape.hold(places)
    return pw.add(tape, x, positions), chosen


def _map(pixels: Tensor) -> Size:
    """Bytes of a map of the pixels that are zero."""
    return tensor_bytes((elements(pixels.shape),), "bool")


def _tower_layer(model: Assembly, spec: Idefics3Spec, entry: Tensor, _: tuple[Tensor, ...]) -> Block:
    """A layer of the tower."""
    return close("tower_layer", model.tape, entry, siglip_tower.layer(model, spec.tower, entry))


def _bridge(model: Assembly, spec: Idefics3Spec, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """The tower's last norm and the projection, image tokens put among the others, and what the language model starts with."""
    assert entry is not None

    def joined() -> Tensor:
        tape = model.tape
        model.inside = ""
        normed = model.layer_norm(entry, f"{TOWER}post_layernorm")
        made = _projected(model, spec, normed)
        model.inside = TEXT
        kept: list[Storage] = [normed.storage, made.storage]
        assert model.words is not None
        features = pw.cast(tape, pw.copy(tape, image_text.apart(model, made, "split"), "cat"), model.words.dtype)
        whole = spec.model_type == "smolvlm"  # the model's output has all that the tower's has, not what is joined
        tape.outputs += kept if whole else [features.storage]
        tape.held += [features.storage] if whole else kept
        return image_text.scattered(model, model.words, features)[0]

    return _begin_text(model, spec, joined, entry)


def _projected(model: Assembly, spec: Idefics3Spec, x: Tensor) -> Tensor:
    """Squares of patches side by side, in two copies, and a linear layer: `(tiles, tokens, hidden)`."""
    tape = model.tape
    tiles, count, width = x.shape
    tape.scope = "model.connector"
    rows = pw.copy(tape, pw.transpose(tape, x, (tiles, count // spec.scale, width * spec.scale), copied=True), "reshape")
    wide = (tiles, count // spec.scale**2, width * spec.scale**2)
    both = pw.copy(tape, pw.transpose(tape, rows, wide, copied=True), "reshape")
    tape.scope = ""
    out = model.linear(both, "model.connector.modality_projection.proj", spec.hidden_size)
    tape.hold(both)
    return out


def _text_start(model: Assembly, spec: Idefics3Spec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Without images: the tower stands idle."""
    image_text.idle(model, lambda: _stand_by(model, spec))
    return _begin_text(model, spec, None, None)


def _stand_by(model: Assembly, spec: Idefics3Spec) -> None:
    """Note the tower's weights, by way of ops that nobody walks."""
    model.begin("", 1)
    x, _ = _patches(model, spec, vision.pixels(model, spec.tower, model.token_shape[0]))
    for index in range(spec.tower.num_hidden_layers):
        model.begin(f"{TOWER}encoder.layers.{index}.", 1, index)
        x = siglip_tower.layer(model, spec.tower, x)
    model.begin("", 1)
    _projected(model, spec, model.layer_norm(x, f"{TOWER}post_layernorm"))


def _begin_text(model: Assembly, spec: Idefics3Spec, given: Any, entry: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    image_text.enter_text(model, spec.text, TEXT, own_cache=False)
    model.given = given
    block, shared = llama.start(model, spec.text)
    model.given = None
    if entry is not None:
        block.entry, block.exit_passed = entry, False
    return block, shared


def finish(model: Assembly, spec: Idefics3Spec, entry: Tensor) -> Block:
    """Final norm, head and loss of the language model."""
    return llama.finish(model, spec.text, entry)

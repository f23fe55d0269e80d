"""Weights of models of images and text whose ops no family mirrors yet: tower, projector and language model, from the config.

So that a report can give their exact size. Mirrors the modules' constructors in transformers 5.23 models/kimi_k25; the language
models are those of the families.
"""

from collections.abc import Callable

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.counted_parts import Shapes


def weight_shapes(config: ConfigReader) -> Shapes | None:
    """Every weight by its name in the state dict, or None for a model type that is not listed here.

    Raises InputError where dimensions are missing or contradict each other.
    """
    known = IMAGES.get(config.text("model_type"))
    if known is None:
        return None
    text, tower = known
    return {**_text(config, text), **tower(config.section("vision_config"), config.section("text_config"))}


def _text(config: ConfigReader, kind: str) -> Shapes:
    """The language model as its family has it, under the name that it has here."""
    from tuneplan.planner.methods.compose import parse
    from tuneplan.planner.models.network import build
    from tuneplan.planner.models.registry import read_spec
    from tuneplan.planner.training.settings import Settings

    inner = config.section("text_config")
    tied = {"tie_word_embeddings": config.boolean("tie_word_embeddings", False)}
    kept = {key: value for key, value in inner.mapping.items() if key not in ("quantization_config", "auto_map")}
    spec = read_spec(config.origin, ConfigReader({**kept, **tied, "model_type": kind}, inner.origin))
    shapes = build(spec, parse("full"), Settings(seq_len=2, gradient_checkpointing="off")).shapes()
    inside = "model.language_model."
    return {inside + name.removeprefix("model.") if name.startswith("model.") else name: s for name, s in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _kimi_k25(c: ConfigReader, text: ConfigReader) -> Shapes:
    """A tower with a grid of positions, and a projector of merged patches."""
    width, inner = c.integer("vt_hidden_size", 1152), c.integer("vt_intermediate_size", 4304)
    patch, tower = c.integer("patch_size", 14), "model.vision_tower"
    grid = (c.integer("init_pos_emb_height", 64), c.integer("init_pos_emb_width", 64))
    found: Shapes = {
        f"{tower}.patch_embed.proj.weight": (width, 3, patch, patch),
        f"{tower}.patch_embed.proj.bias": (width,),
        f"{tower}.patch_embed.pos_emb.position_embeddings": (*grid, width),
        **_norm(f"{tower}.final_layernorm", width),
    }
    for index in range(c.integer("vt_num_hidden_layers", 27, maximum=2**12)):
        layer = f"{tower}.layers.{index}"
        found |= {
            **_norm(f"{layer}.norm1", width),
            **_norm(f"{layer}.norm2", width),
            **_linear(f"{layer}.mlp.fc1", width, inner),
            **_linear(f"{layer}.mlp.fc2", inner, width),
        }
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            found |= _linear(f"{layer}.attn.{name}", width, width)
    sides = c.mapping.get("merge_kernel_size", [2, 2])
    if not isinstance(sides, list) or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise InputError(f"{c.origin}: 'merge_kernel_size' must be two numbers of patches. Correct the file.")
    merged = width * sides[0] * sides[1]
    return {
        **found,
        **_norm("model.mm_projector.pre_norm", width),
        **_linear("model.mm_projector.in_proj", merged, merged),
        **_linear("model.mm_projector.out_proj", merged, text.integer("hidden_size")),
    }


IMAGES: dict[str, tuple[str, Callable[[ConfigReader, ConfigReader], Shapes]]] = {
    "kimi_k25": ("deepseek_v3", _kimi_k25),
}
"""By model type: the family of the language model, and the weights beside it."""

"""CLIP's vision tower, alone (CLIP) or before a language model (LLaVA).

Mirrors `CLIPVisionModel` of transformers 5.23 models/clip/modeling_clip.py.
"""

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Storage, Tensor
from tuneplan.planner.models import encoder, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.vision import LayerNames, VisionSpec

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}
NAMES = LayerNames("layer_norm1", "self_attn", "out_proj", "layer_norm2")


def read(id: str, config: ConfigReader) -> VisionSpec:
    """The tower of a `vision_config`. Raises InputError where dimensions are absurd or contradict each other."""
    fields = vision.dimensions(id, config, _DEFAULTS, {"attention_probs_dropout_prob": "attention_dropout"})
    for key in ("image_size", "patch_size"):
        if fields[key][0] != fields[key][1]:
            raise InputError(f"{config.origin}: CLIP's code takes one number for {key}, and two are given; correct the file")
    return VisionSpec(**fields)


def embedded(model: Assembly, spec: VisionSpec, module: str, pixels: Tensor, hooked: bool) -> tuple[Tensor, tuple[Storage, ...]]:
    """Patches behind the class token, positions added, normed: what enters the first layer, and what is held as a leaf.

    `module`: name of the tower, with a dot; `hooked`: patches are made to require a gradient.
    """
    tape = model.tape
    prefix = f"{module}embeddings"
    token = model.weight(prefix, (spec.hidden_size,), "other", "class_embedding")
    x = vision.patches(model, spec, pixels, f"{prefix}.patch_embedding", bias=False)
    leaves = encoder.leaf(model, x) if hooked else ()
    hidden = vision.behind_class(model, x, token, leaf=bool(leaves))
    model.common(f"{prefix}.position_ids", (1, spec.tokens), "int64", trained=False, saved=False, buffer=True)
    table = model.weight(f"{prefix}.position_embedding", (spec.tokens, spec.hidden_size), "embedding")
    hidden = pw.add(tape, hidden, embedding(tape, (1, spec.tokens), table))
    return model.layer_norm(hidden, f"{module}pre_layrnorm"), leaves


def layer(model: Assembly, spec: VisionSpec, entry: Tensor) -> Tensor:
    """What leaves a layer."""
    return vision.layer(model, spec, entry, NAMES, bias=True)

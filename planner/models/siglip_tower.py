"""SigLIP's vision tower before a language model (Gemma 3, PaliGemma).

Mirrors `SiglipVisionModel` of transformers 5.23 models/siglip/modeling_siglip.py: CLIP's layers without a class token, and a norm
behind the last.
"""

from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Storage, Tensor
from tuneplan.planner.models import clip_tower, encoder, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.vision import VisionSpec

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
}
"""Of `SiglipVisionConfig`."""


def read(id: str, config: ConfigReader) -> VisionSpec:
    """The tower of a `vision_config`. Raises InputError where dimensions are absurd or contradict each other, and for a head."""
    fields = vision.dimensions(id, config, DEFAULTS, {"attention_probs_dropout_prob": "attention_dropout"}, class_token=False)
    for key in ("image_size", "patch_size"):
        if fields[key][0] != fields[key][1]:
            raise InputError(f"{config.origin}: SigLIP's code takes one number for {key}, and two are given; correct the file")
    if config.boolean("vision_use_head", True):
        raise NotModelledError(
            f"{config.origin}: vision_use_head pools the patches for nobody to read, which tuneplan does not know",
            "; the published models have it false",
        )
    return VisionSpec(**fields)


def embedded(model: Assembly, spec: VisionSpec, module: str, pixels: Tensor, hooked: bool) -> tuple[Tensor, tuple[Storage, ...]]:
    """Patches, positions added: what enters the first layer, and what is held as a leaf.

    `module`: name of the tower, with a dot; `hooked`: patches are made to require a gradient.
    """
    tape = model.tape
    prefix = f"{module}embeddings"
    x = vision.patches(model, spec, pixels, f"{prefix}.patch_embedding")
    leaves = encoder.leaf(model, x) if hooked else ()
    model.common(f"{prefix}.position_ids", (1, spec.tokens), "int64", trained=False, saved=False, buffer=True)
    table = model.weight(f"{prefix}.position_embedding", (spec.tokens, spec.hidden_size), "embedding")
    return pw.add(tape, x, embedding(tape, (1, spec.tokens), table)), leaves


def layer(model: Assembly, spec: VisionSpec, entry: Tensor) -> Tensor:
    """What leaves a layer."""
    return vision.layer(model, spec, entry, clip_tower.NAMES, bias=True)

"""ViT for the classification of images.

Mirrors transformers 5.23 models/vit/modeling_vit.py. A sequence is an image: its patches and a class token.
"""

from dataclasses import dataclass
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.models import encoder, encoder_head, tasks, vision
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Stack
from tuneplan.planner.models.vision import LayerNames, VisionSpec

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
_NAMES = LayerNames("layernorm_before", "attention", "o_proj", "layernorm_after")
TASKS = (tasks.IMAGE_CLS,)


@dataclass(frozen=True, slots=True)
class VitSpec(VisionSpec):
    """ViT.

    Attributes:
        qkv_bias: queries, keys and values have a bias.
    """

    qkv_bias: bool

    @property
    def fixed_length(self) -> int:
        """It reads one image a sequence."""
        return self.tokens


def read(id: str, config: ConfigReader) -> VitSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = vision.dimensions(id, config, _DEFAULTS)
    return VitSpec(**fields, qkv_bias=config.boolean("qkv_bias", True))


def stacks(spec: VitSpec) -> tuple[Stack, ...]:
    """One."""
    return (Stack("vit.layers.*.", spec.num_hidden_layers, _start, _layer),)


def _start(model: Assembly, spec: VitSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Pixels and labels; patches behind the class token, positions added, dropped."""
    refuse_text_methods(model)
    length: Any = model.settings.seq_len
    if bool(length != spec.tokens) if isinstance(length, int) else bool((length != spec.tokens).any()):
        raise InputError(
            f"{spec.id} reads images, each a sequence of {spec.tokens} tokens ({spec.image_size[0]} x {spec.image_size[1]} "
            f"pixels in patches of {spec.patch_size[0]} x {spec.patch_size[1]}, and a class token); leave --seq-len and "
            "--lengths out"
        )
    tape = model.begin("", 1)
    rows = model.settings.sequences
    given = vision.pixels(model, spec, rows)
    labels = tape.record("labels", (), tape.fresh((rows,), "int64", False))
    prefix = "vit.embeddings"
    token = model.weight(prefix, (1, 1, spec.hidden_size), "other", "cls_token")
    x = vision.patches(model, spec, given, f"{prefix}.patch_embeddings.projection")
    leaves = encoder.leaf(model, x) if _hooked(model) else ()
    hidden = vision.behind_class(model, x, token, leaf=bool(leaves))
    positions = model.weight(prefix, (1, spec.tokens, spec.hidden_size), "other", "position_embeddings")
    hidden = pw.dropout(tape, pw.add(tape, hidden, positions), spec.hidden_dropout)
    cast = [op.output.storage for op in tape.ops if op.name == "to" and op.output is not None and given.storage in op.reads]
    carried = (given.storage, labels.storage, *cast, *leaves)
    if model.settings.gradient_checkpointing == "reentrant" and not hidden.requires_grad:
        raise InputError(
            f"{spec.id} with {model.method.name}: reentrant checkpointing gives a layer gradients only where its input has one, "
            "which frozen patches do not; use non-reentrant checkpointing, which is the default"
        )
    block = close("embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2)
    block.stays = (given.storage,)
    return block, ()


def _hooked(model: Assembly) -> bool:
    """Whether patches are made to require a gradient: by `prepare_model_for_kbit_training`, not by transformers, as of tokens."""
    return any(isinstance(part, QuantizedBase) and part.prepare_kbit for part in model.method.parts)


def refuse_text_methods(model: Assembly) -> None:
    """Raise InputError for what is made for sequences of tokens: virtual ones, prefixes, losses of language models."""
    encoder.refuse_losses(model)
    if model.method.virtual_tokens or model.method.prefix_length:
        raise InputError(f"{model.spec.id} reads images, and peft puts virtual tokens and prefixes before text alone; use lora")


def _layer(model: Assembly, spec: VitSpec, entry: Tensor, _: tuple[Tensor, ...]) -> Block:
    """Attention and MLP, each behind a norm and before its residual."""
    return close("layer", model.tape, entry, vision.layer(model, spec, entry, _NAMES, spec.qkv_bias))


def finish(model: Assembly, spec: VitSpec, entry: Tensor) -> Block:
    """Last norm and the classifier of the class token."""
    model.begin("", 1)
    last = model.layer_norm(entry, "vit.layernorm")
    first = encoder_head.first_token(model, last)
    return encoder_head.classified(model, entry, encoder_head.head(model, first, "classifier", spec.num_labels), (first,), last)

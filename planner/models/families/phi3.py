"""Phi-3, Phi-3.5, Phi-4 (14B) and Phi-4-mini (whose heads are rotated in part).

Queries, keys and values come out of one projection, gate and up out of another.
Mirrors transformers 5.23 models/phi3/modeling_phi3.py.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, fused_gated_mlp, heads_first, kernel_of, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Phi3Spec(DecoderSpec):
    """A Phi-3 model.

    Attributes:
        rotary_width: columns of each head that are rotated.
        resid_pdrop: dropout of the outputs of attention and MLP.
    """

    rotary_width: int
    resid_pdrop: float


def read(id: str, config: ConfigReader) -> Phi3Spec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    fields = decoder.dimensions(id, config, defaults={"max_position_embeddings": 4096, "vocab_size": 32064})
    return Phi3Spec(
        **fields,
        sliding_window=config.optional_integer("sliding_window", maximum=2**30),
        rotary_width=decoder.rotary_width(config, fields["head_dim"]),
        resid_pdrop=config.number("resid_pdrop", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: Phi3Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (spec.sliding_window,))


def layer(model: Assembly, spec: Phi3Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.rms_norm(entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    hidden = model.submodule("self_attn", normed, entry, hidden)
    residual = pw.add(tape, entry, pw.dropout(tape, hidden, spec.resid_pdrop))
    normed = model.rms_norm(residual, "post_attention_layernorm")
    hidden = model.submodule("mlp", normed, residual, fused_gated_mlp(model, spec, normed))
    exit = pw.add(tape, residual, pw.dropout(tape, hidden, spec.resid_pdrop))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: Phi3Spec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    kernel = kernel_of(model, spec, x, spec.sliding_window)
    widths = [heads * spec.head_dim for heads in (spec.num_attention_heads, *[spec.num_key_value_heads] * 2)]
    fused = model.linear(x, "self_attn.qkv_proj", sum(widths))
    parts = [pw.narrow(model.tape, fused, (*x.shape[:-1], width)) for width in widths]
    q, k, v = (heads_first(model, split_heads(model, part, spec.head_dim), copied=False) for part in parts)
    y, weights = attended(model, spec, kernel, x, (q, k, v), shared)
    model.tape.hold(fused)
    return y, weights


def finish(model: Assembly, spec: Phi3Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.rms_norm(entry, "model.norm"), EMBEDDING, "lm_head")

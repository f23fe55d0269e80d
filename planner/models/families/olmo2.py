"""OLMo 2: norms after attention and MLP instead of before, and over all queries and keys before they are split into heads.

Mirrors transformers 5.23 models/olmo2/modeling_olmo2.py.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Olmo2Spec(DecoderSpec):
    """An OLMo 2 model; `attention_bias`: biases on q, k, v and o."""

    attention_bias: bool


def read(id: str, config: ConfigReader) -> Olmo2Spec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    bias = config.boolean("attention_bias", False)
    return Olmo2Spec(**decoder.dimensions(id, config), sliding_window=None, attention_bias=bias)


def start(model: Assembly, spec: Olmo2Spec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2, (None,), wide_tables=True)


def layer(model: Assembly, spec: Olmo2Spec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    hidden, weights = _attention(model, spec, entry, shared)
    hidden = _norm(model, model.submodule("self_attn", entry, entry, hidden), "post_attention_layernorm")
    residual = pw.add(tape, entry, hidden)
    hidden = model.submodule("mlp", residual, residual, gated_mlp(model, spec, residual))
    exit = pw.add(tape, residual, _norm(model, hidden, "post_feedforward_layernorm"))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_wide)


def _attention(model: Assembly, spec: Olmo2Spec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""

    def split(y: Tensor, norm: str) -> Tensor:
        return split_heads(model, _norm(model, y, f"self_attn.{norm}") if norm else y, spec.head_dim)

    kernel = kernel_of(model, spec, x, None)
    heads = projected(model, spec, kernel, x, spec.attention_bias, split)
    return attended(model, spec, kernel, x, heads, shared, spec.attention_bias, cast_back=True)


def finish(model: Assembly, spec: Olmo2Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, entry, "model.norm"), EMBEDDING, "lm_head")

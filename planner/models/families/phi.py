"""Phi-1, Phi-1.5 and Phi-2: attention and MLP beside each other on one norm, heads rotated in part, biases everywhere.

Mirrors transformers 5.23 models/phi/modeling_phi.py.
"""

from dataclasses import dataclass

from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, kernel_of, plain_mlp, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "vocab_size": 51200,
    "hidden_act": "gelu_new",
}
_ROTATED = 0.5


@dataclass(frozen=True, slots=True)
class PhiSpec(DecoderSpec):
    """A Phi model.

    Attributes:
        rotary_width: columns of each head that are rotated.
        head_norm: layer norm of queries and keys.
        resid_pdrop: dropout of the outputs of attention and MLP.
        embd_pdrop: dropout of the embeddings.
    """

    rotary_width: int
    head_norm: bool
    resid_pdrop: float
    embd_pdrop: float


def read(id: str, config: ConfigReader) -> PhiSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = decoder.dimensions(id, config, defaults=_DEFAULTS)
    return PhiSpec(
        **fields,
        sliding_window=None,
        rotary_width=decoder.rotary_width(config, fields["head_dim"], _ROTATED),
        head_norm=config.boolean("qk_layernorm", False),
        resid_pdrop=config.number("resid_pdrop", 0.0, maximum=decoder.MOST_DROPOUT),
        embd_pdrop=config.number("embd_pdrop", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: PhiSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the mask; returns what layers share."""
    enter = (lambda hidden: (pw.dropout(model.tape, hidden, spec.embd_pdrop),)) if spec.embd_pdrop else None
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, (None,), enter=enter)


def layer(model: Assembly, spec: PhiSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = model.layer_norm(entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    attended_to = pw.dropout(tape, model.submodule("self_attn", normed, entry, hidden), spec.resid_pdrop)
    hidden = model.submodule("mlp", normed, entry, plain_mlp(model, spec, normed, "mlp.fc1", "mlp.fc2"))
    hidden = pw.dropout(tape, hidden, spec.resid_pdrop)
    exit = pw.add(tape, pw.add(tape, attended_to, hidden), entry)
    tape.hold(attended_to, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _attention(model: Assembly, spec: PhiSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    kernel = kernel_of(model, spec, x, None)
    q, k, v = projected(model, spec, kernel, x, bias=True)
    if spec.head_norm:
        q, k = (model.layer_norm(t, f"self_attn.{name}_layernorm") for t, name in ((q, "q"), (k, "k")))
    return attended(model, spec, kernel, x, (q, k, v), shared, bias=True, output="self_attn.dense", holds_parts=True)


def finish(model: Assembly, spec: PhiSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = model.layer_norm(entry, "model.final_layernorm")
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head", bias=True)

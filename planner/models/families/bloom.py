"""BLOOM: positions as biases of the scores (ALiBi), a norm of the embeddings, and always eager attention.

Mirrors transformers 5.23 models/bloom/modeling_bloom.py. Not modelled: of a single sequence the queries stay a view of the fused
projection, which then lives as long as they do (prefix tuning and a kept cache, 1.5 % of a tiny model).
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.delta_rule import several_of
from tuneplan.planner.graph.matmul import batched
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attention_probability, stored
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "transformer.h.*."
EAGER_ONLY = True
EMBEDDING = "transformer.word_embeddings"
_KEYS = {
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "num_key_value_heads": "",
    "head_dim": "",
    "intermediate_size": "",
}
_DEFAULTS = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 250880,
    "max_position_embeddings": 2**20,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, slots=True)
class BloomSpec(DecoderSpec):
    """A BLOOM model.

    Attributes:
        normed_residual: residuals are taken after the norms.
        hidden_dropout: dropout of the outputs of attention and MLP.
    """

    normed_residual: bool
    hidden_dropout: float


def read(id: str, config: ConfigReader) -> BloomSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd, and for products cut in slices."""
    if config.boolean("slow_but_exact", False) and config.integer("pretraining_tp", 1) > 1:
        raise InputError(f"{config.origin}: slow_but_exact is not planned by tuneplan; set it to false, or use plan trace")
    keys = dict(_KEYS)
    if config.has("n_embed"):
        keys["hidden_size"] = "n_embed"
    return BloomSpec(
        **decoder.dimensions(id, config, activation_key="", defaults=_DEFAULTS, keys=keys, rotary=False),
        sliding_window=None,
        normed_residual=config.boolean("apply_residual_connection_post_layernorm", False),
        hidden_dropout=config.number("hidden_dropout", 0.0, maximum=decoder.MOST_DROPOUT),
    )


def start(model: Assembly, spec: BloomSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, normed embeddings, the mask and the biases of positions; returns the last two, which layers share."""
    decoder.run_eagerly(model, "BLOOM")

    def enter(hidden: Tensor) -> tuple[Tensor, ...]:
        return model.layer_norm(hidden, "transformer.word_embeddings_layernorm"), hidden

    def alibi(hidden: Tensor) -> Tensor:
        batch, length = hidden.shape[:2]
        shape = (batch * spec.num_attention_heads, 1, length + model.method.prefix_length)
        return model.tape.record("alibi", (), model.tape.fresh(shape, hidden.dtype, False))

    return decoder.start(model, EMBEDDING, (), (None,), enter=enter, exit_held=False, beside=alibi)


def layer(model: Assembly, spec: BloomSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    first = model.layer_norm(entry, "input_layernorm")
    hidden, weights = _attention(model, spec, first, shared)
    residual = first if spec.normed_residual else entry
    dropped = pw.dropout(tape, model.submodule("self_attn", first, residual, hidden), spec.hidden_dropout)
    attention = pw.add(tape, residual, dropped)
    tape.hold(dropped)
    second = model.layer_norm(attention, "post_attention_layernorm")
    residual = second if spec.normed_residual else attention
    wide = model.linear(second, "mlp.dense_h_to_4h", spec.intermediate_size, bias=True)
    tape.scope = "mlp"
    active = _gelu(model, wide)
    tape.scope = ""
    hidden = model.linear(active, "mlp.dense_4h_to_h", spec.hidden_size, bias=True)
    tape.hold(active, second)
    dropped = pw.dropout(tape, model.submodule("mlp", second, residual, hidden), spec.hidden_dropout)
    exit = pw.add(tape, residual, dropped)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(attention, hidden, dropped, *weights)
    return close("layer", tape, entry, exit)


def _gelu(model: Assembly, x: Tensor) -> Tensor:
    """`GeLUFunction`: saves its input; both directions are written out, with four and five temporaries at most."""
    full = round_block(x.nbytes)
    out = model.tape.fresh(x.shape, x.dtype, x.requires_grad)
    gradients = (Gradient(x, full, scratch=4 * full, moved=30 * x.nbytes),)
    return model.tape.record("gelu", (x,), out, saved=(x,), gradients=gradients, scratch=3 * full, moved=20 * x.nbytes)


def _attention(model: Assembly, spec: BloomSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds."""
    tape = model.tape
    model.attention_input = x
    mask, alibi = shared
    batch, length, width = x.shape
    heads, size = spec.num_attention_heads, spec.head_dim
    fused = model.linear(x, "self_attention.query_key_value", 3 * width, bias=True)
    tape.scope = "self_attention"
    q, k, v = (pw.narrow(tape, fused, (batch, heads, length, size)) for _ in range(3))
    k, v = stored(model, k, v)
    if several_of(batch):  # sequences and heads of one projection do not lie as a batch; the heads of one sequence do
        q, k, v = (pw.copy(tape, t) if t.storage is fused.storage else t for t in (q, k, v))
    keys = k.shape[2]
    scores = batched(tape, q, k, (batch, heads, length, keys), size)
    masked = pw.add(tape, scores, mask)
    probabilities = pw.cast(tape, pw.softmax(tape, pw.cast(tape, masked, "fp32")), x.dtype)
    weights = pw.dropout(tape, probabilities, attention_probability(model, spec))
    mixed = batched(tape, weights, v, (batch, heads, length, size), keys)
    joined = pw.copy(tape, mixed, "merge_heads")
    tape.hold(mixed)
    joined = tape.view("merge_heads", joined, (batch, length, width))
    tape.scope = ""
    y = model.linear(joined, "self_attention.dense", width, bias=True)
    tape.hold(x, fused, q, k, v, scores, masked, weights, joined, alibi)
    return y, (weights,)


def finish(model: Assembly, spec: BloomSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, model.layer_norm(entry, "transformer.ln_f"), EMBEDDING, "lm_head")

"""T5, mT5 and FLAN-T5: encoder and decoder with relative positions as a bias of the attention scores.

Mirrors transformers 5.23 models/t5/modeling_t5.py and models/mt5/modeling_mt5.py. The first layer of each side makes the bias
for all of its layers; FLAN-T5 and mT5 have a gated MLP.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes
from tuneplan.planner.models import encoder, encoder_decoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack

TASKS = (tasks.SEQ2SEQ,)
NO_FLASH = True
"""FlashAttention takes no bias of the scores."""
GATED = "gated-"
NO_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class T5Spec(EncoderSpec):
    """T5.

    Attributes:
        decoder_layers: layers of the decoder.
        gated: the MLP has a gate.
        buckets: rows of the table of relative positions.
        scaled: the head's input is scaled (a tied head).
    """

    decoder_layers: int
    gated: bool
    buckets: int
    scaled: bool

    @property
    def longest(self) -> int | None:
        """Relative positions have no end."""
        return None


def read(id: str, config: ConfigReader) -> T5Spec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    model_type = config.text("model_type")
    layers = config.integer("num_layers", 6 if model_type == "t5" else 8, maximum=2**12)
    heads = config.integer("num_heads", 8 if model_type == "t5" else 6, maximum=2**16)
    kind = config.text("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    act = "gelu_new" if kind == "gated-gelu" else kind.removeprefix(GATED)
    if act not in encoder.FUSED_ACTIVATIONS:
        raise InputError(f"{config.origin}: feed_forward_proj {kind!r} is not known; use relu, gelu or gated-gelu")
    dropout = encoder.dropouts(config, "dropout_rate", 0.1)
    tied = config.boolean("tie_word_embeddings", True)  # transformers 5.23 ties them in any case, and scales where it said so
    return T5Spec(
        id=id,
        model_type=model_type,
        hidden_size=config.integer("d_model", 512),
        num_hidden_layers=layers,
        vocab_size=config.integer("vocab_size", 32128 if model_type == "t5" else 250112),
        max_position_embeddings=NO_LIMIT,
        tie_word_embeddings=True,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.integer("d_kv", 64, maximum=2**14),
        intermediate_size=config.integer("d_ff", 2048 if model_type == "t5" else 1024),
        hidden_act=act,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        classifier_dropout=encoder.dropouts(config, "classifier_dropout", 0.0),
        decoder_layers=config.integer("num_decoder_layers", layers, maximum=2**12),
        gated=kind.startswith(GATED),
        buckets=config.integer("relative_attention_num_buckets", 32, maximum=2**20),
        scaled=config.boolean("scale_decoder_outputs", model_type == "t5" and tied),
    )


@dataclass(slots=True)
class _Shared:
    """What the layers of one side share; the biases are made by its first layer.

    Attributes:
        made: what the encoder made, in the decoder.
        masks: of the attention to its own tokens.
        cross_masks: of attention to the encoder.
        bias: of self-attention.
        cross_bias: of attention to the encoder: zeros.
    """

    made: Tensor | None
    masks: tuple[Tensor, ...]
    cross_masks: tuple[Tensor, ...] = ()
    bias: Tensor | None = None
    cross_bias: Tensor | None = None


def stacks(spec: T5Spec) -> tuple[Stack, ...]:
    """The encoder and the decoder; the first layer of each is a kind of its own."""

    def kind(_: T5Spec, index: int) -> str:
        return "" if index else "first"

    return (
        Stack("encoder.block.*.", spec.num_hidden_layers, _start, _layer, kind),
        Stack("decoder.block.*.", spec.decoder_layers, _bridge, _layer, kind),
    )


def _start(model: Assembly, spec: T5Spec, _: Tensor | None) -> tuple[Block, _Shared]:
    """Token ids, labels, and the encoder's embeddings."""
    encoder.refuse_losses(model)
    encoder_decoder.check_prefixes(model, spec, spec.decoder_layers, spec.num_attention_heads, spec.head_dim)
    if model.settings.attention == "flash":
        raise InputError(f"{spec.id}: FlashAttention takes no bias of the scores, which T5 has; use --attention sdpa or eager")
    tape = model.begin("", 1)
    rows, length = model.token_shape
    ids = tape.fresh((rows, length), "int64", False)
    tape.record("token_ids", (), ids)
    labels = tape.fresh((rows, model.settings.target_length), "int64", False)
    tape.record("labels", (), labels)
    words = embedding(tape, (rows, length), model.embedding_weight("shared"))
    leaves = encoder.leaf(model, words)
    for part in model.method.parts:
        words = part.embedded(model, words)
    encoder.embeddings_held(model, words, leaves)
    hidden = pw.dropout(tape, words, spec.hidden_dropout)
    masks = encoder.mask_of(model, hidden.dtype)
    carried = (ids.storage, labels.storage, *[m.storage for m in masks], *leaves, *tape.held)
    block = close("encoder.embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2, exit_held=False)
    return block, _Shared(None, masks)


def _bridge(model: Assembly, spec: T5Spec, entry: Tensor | None) -> tuple[Block, _Shared]:
    """The encoder's last norm, whose output crosses to every layer of the decoder; the decoder's embeddings."""
    assert entry is not None
    tape = model.begin("", 1)
    made = pw.dropout(tape, _norm(model, entry, "encoder.final_layer_norm"), spec.hidden_dropout)
    made.crosses = True
    rows, _ = model.token_shape
    length = model.settings.target_length
    shifted = tape.fresh((rows, length), "int64", False)
    tape.record("decoder_input_ids", (), shifted, scratch=shifted.storage.nbytes)
    words = embedding(tape, (rows, length), model.embedding_weight("shared"))
    leaves = encoder.leaf(model, words)
    if words.storage not in leaves:
        tape.held.append(words.storage)
    hidden = pw.dropout(tape, words, spec.hidden_dropout)
    masks, others = encoder_decoder.decoder_masks(model, hidden.dtype, ones=False)
    carried = (made.storage, shifted.storage, *[m.storage for m in (*masks, *others)], *leaves, *tape.held)
    tape.outputs.append(made.storage)
    block = close("decoder.embeddings", tape, entry, hidden, carried, entry_held=False, leaves=leaves * 2, exit_held=False)
    block.early_leaves = leaves
    return block, _Shared(made, masks, others)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_t5)


def _layer(model: Assembly, spec: T5Spec, entry: Tensor, shared: _Shared) -> Block:
    """Self-attention, attention to the encoder in the decoder, MLP; each before its residual is added."""
    tape = model.tape
    hidden, weights = _attention(model, spec, entry, "layer.0", "SelfAttention", shared)
    if shared.made is not None:
        own = weights
        hidden, weights = _attention(model, spec, hidden, "layer.1", "EncDecAttention", shared)
        tape.hold(*own)
    exit = _mlp(model, spec, hidden, "layer.1" if shared.made is None else "layer.2")
    tape.hold(*weights)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    carried = tuple([b.storage for b in (shared.bias, shared.cross_bias) if b is not None]) if model.layer == 0 else ()
    block = close("layer", tape, entry, exit, carried)
    if model.layer == 0 and shared.cross_bias is not None and model.settings.gradient_checkpointing == "non-reentrant":
        block.early_leaves = (shared.cross_bias.storage,)  # a leaf, which stays with its gradient
    return block


def _attention(
    model: Assembly, spec: T5Spec, x: Tensor, place: str, name: str, shared: _Shared
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`x + dropout(attention(layer_norm(x)))`, and the attention weights (eager), which a variable of the layer's code holds."""
    tape = model.tape
    cross = name == "EncDecAttention"
    normed = _norm(model, x, f"{place}.layer_norm")
    kernel = encoder.bidirectional(model, spec, normed.dtype, masked=True)
    names = [f"{place}.{name}.{part}" for part in "qkv"]
    q, k, v = encoder.projections(model, spec, kernel, normed, names, bias=False, source=shared.made if cross else None)
    tape.scope = f"{place}.{name}"
    decoder = shared.made is not None
    settings = model.settings
    kept = settings.use_cache and settings.gradient_checkpointing == "off"
    packed = decoder and (kept or model.method.prefix_length > 0)
    if packed:
        k, v = encoder_decoder.from_cache(model, k, v, cross)
    bias = shared.cross_bias if cross else shared.bias
    if bias is None:
        bias = _bias(model, spec, f"{place}.{name}", q, k.shape[2], cross)
        if cross:
            shared.cross_bias = bias
        else:
            shared.bias = bias
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mask = next(iter(shared.cross_masks if cross else shared.masks), None)
    weights: tuple[Tensor, ...] = ()
    if kernel.name == "eager":
        out, scores = kernels.eager(tape, q, k, v, bias, dropout, wide=False, second=mask, packed=packed)
        weights = (scores,)
    else:
        out = kernels.efficient_biased(tape, q, k, v, bias, decoder and not cross, cross, mask)
    out = tape.view("join_heads", out, (*out.shape[:2], spec.num_attention_heads * spec.head_dim))
    tape.scope = ""
    y = model.linear(out, f"{place}.{name}.o", spec.hidden_size)
    tape.hold(normed, q, k, v)
    dropped = pw.dropout(tape, y, spec.hidden_dropout)
    dropped = model.submodule("self_attn", normed, x, dropped)
    out = pw.add(tape, x, dropped)
    tape.hold(normed, y)
    return out, weights


def _bias(model: Assembly, spec: T5Spec, module: str, q: Tensor, columns: Size, cross: bool) -> Tensor:
    """The bias of the scores `(1, heads, rows, columns)`: zeros for attention to the encoder, else of a table of distances."""
    tape = model.tape
    heads, rows = spec.num_attention_heads, q.shape[2]
    shape = (1, heads, rows, columns)
    if cross:
        zeros = tape.fresh(shape, q.dtype, model.settings.gradient_checkpointing != "off")
        zeros.crosses = True
        # reentrant checkpointing gives the layers another tensor than the leaf, which goes with the first layer's backward
        reads = (q,) if model.settings.gradient_checkpointing == "reentrant" else ()
        return tape.record("position_bias", reads, zeros)
    buckets = tape.fresh((rows, columns), "int64", False)
    tape.record("buckets", (), buckets, scratch=3 * tensor_bytes((rows, columns), "int64"))
    table = model.weight(f"{module}.relative_attention_bias", (spec.buckets, heads), "embedding")
    values = tape.fresh((rows, columns, heads), table.dtype, table.requires_grad)
    gradient = Gradient(table, round_block(table.nbytes), moved=values.nbytes)
    tape.record("embedding", (buckets,), values, saved=(buckets,), gradients=(gradient,))
    bias = tape.view("position_bias", values, shape)
    bias.crosses = True
    return bias


def _mlp(model: Assembly, spec: T5Spec, x: Tensor, place: str) -> Tensor:
    """`x + dropout(wo(dropout(act(wi(layer_norm(x))))))`, with a gate or without."""
    tape = model.tape
    normed = _norm(model, x, f"{place}.layer_norm")
    module = f"{place}.DenseReluDense"
    if spec.gated:
        gate = encoder.activate(model, model.linear(normed, f"{module}.wi_0", spec.intermediate_size), spec.hidden_act)
        linear = model.linear(normed, f"{module}.wi_1", spec.intermediate_size)
        inner = pw.multiply(tape, gate, linear)
        held: tuple[Tensor, ...] = (gate, linear)
    else:
        inner = encoder.activate(model, model.linear(normed, f"{module}.wi", spec.intermediate_size), spec.hidden_act)
        held = ()
    inner = pw.dropout(tape, inner, spec.hidden_dropout)
    y = model.linear(inner, f"{module}.wo", spec.hidden_size, kept=True)
    tape.hold(normed, *held)
    dropped = model.submodule("mlp", normed, x, pw.dropout(tape, y, spec.hidden_dropout))
    out = pw.add(tape, x, dropped)
    tape.hold(y)
    return out


def finish(model: Assembly, spec: T5Spec, entry: Tensor) -> Block:
    """The decoder's last norm, head and loss: the logits stay in the model's dtype."""
    tape = model.begin("", 1)
    hidden = pw.dropout(tape, _norm(model, entry, "decoder.final_layer_norm"), spec.hidden_dropout)
    sequence = hidden
    if spec.scaled:
        sequence = pw.scale(tape, hidden, "scale_decoder_outputs")
    shape = (spec.vocab_size, spec.hidden_size)
    weight = model.embedding_weight("shared") if spec.tie_word_embeddings else model.weight("lm_head", shape, "head")
    tape.scope = "lm_head"
    loss = losses.narrow(tape, sequence, weight)
    tape.hold(hidden, sequence)
    return encoder_head.ended(model, entry, loss)

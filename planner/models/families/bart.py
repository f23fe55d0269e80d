"""BART: an encoder, and a decoder that also attends to what the encoder made of the sequence.

Mirrors transformers 5.23 models/bart/modeling_bart.py: learned positions, layer norm after each residual, one table of tokens
for both sides and the head.
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import loss as losses
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Size, Storage, Tensor
from tuneplan.planner.models import encoder, encoder_decoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack

TASKS = (tasks.SEQ2SEQ,)
OFFSET = 2
"""Rows of the table of positions before the first."""
LONGEST = 2**24


@dataclass(frozen=True, slots=True)
class BartSpec(EncoderSpec):
    """BART. What `EncoderSpec` has is the encoder's; the decoder has its own layers, heads and inner width.

    Attributes:
        decoder_layers: layers of the decoder.
        decoder_attention_heads: its heads.
        decoder_ffn_dim: its inner width.
        activation_dropout: dropout behind the activation of both.
        scale_embedding: the table's rows are multiplied.
    """

    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    activation_dropout: float
    scale_embedding: bool


def read(id: str, config: ConfigReader) -> BartSpec:
    """The spec of a config.json. Raises InputError where dimensions are missing, absurd or contradict each other."""
    hidden = config.integer("d_model", 1024)
    heads = config.integer("encoder_attention_heads", 16, maximum=2**16)
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        if config.number(key, 0.0, maximum=1.0):
            raise InputError(f"{config.origin}: {key} drops layers at random, which tuneplan does not model; set it to 0")
    others = config.integer("decoder_attention_heads", 16, maximum=2**16)
    encoder.heads_of(config, hidden, others, ("d_model", "decoder_attention_heads"))
    return BartSpec(
        id=id,
        model_type=config.text("model_type"),
        hidden_size=hidden,
        num_hidden_layers=config.integer("encoder_layers", 12, maximum=2**12),
        vocab_size=config.integer("vocab_size", 50265),
        max_position_embeddings=config.integer("max_position_embeddings", 1024, maximum=LONGEST),
        tie_word_embeddings=True,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=encoder.heads_of(config, hidden, heads, ("d_model", "encoder_attention_heads")),
        intermediate_size=config.integer("encoder_ffn_dim", 4096),
        hidden_act=encoder.activation_of(config, "activation_function", "gelu"),
        hidden_dropout=encoder.dropouts(config, "dropout", 0.1),
        attention_dropout=encoder.dropouts(config, "attention_dropout", 0.0),
        classifier_dropout=0.0,
        decoder_layers=config.integer("decoder_layers", 12, maximum=2**12),
        decoder_attention_heads=others,
        decoder_ffn_dim=config.integer("decoder_ffn_dim", 4096),
        activation_dropout=encoder.dropouts(config, "activation_dropout", 0.0),
        scale_embedding=config.boolean("scale_embedding", False),
    )


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the decoder's layers share: what the encoder made, and masks of the attention to their own tokens and to that."""

    made: Tensor
    masks: tuple[Tensor, ...]
    cross_masks: tuple[Tensor, ...]


def stacks(spec: BartSpec) -> tuple[Stack, ...]:
    """The encoder and the decoder."""
    return (
        Stack("model.encoder.layers.*.", spec.num_hidden_layers, _start, _encoder_layer),
        Stack("model.decoder.layers.*.", spec.decoder_layers, _bridge, _decoder_layer),
    )


def _embedded(model: Assembly, spec: BartSpec, words: Tensor, rows: Size, side: str, leaves: tuple[Storage, ...]) -> Tensor:
    """Positions added, normed, dropped; `rows` sequences have positions of their own."""
    tape = model.tape
    numbers = tape.fresh((rows, words.shape[1]), "int64", False)
    tape.record("position_ids", (), numbers)
    shape = (spec.max_position_embeddings + OFFSET, spec.hidden_size)
    table = model.weight(f"model.{side}.embed_positions", shape, "embedding")
    positions = embedding(tape, (rows, words.shape[1]), table)
    if table.requires_grad:
        tape.ops[-1].reads = (*tape.ops[-1].reads, numbers.storage)
        tape.ops[-1].saved = (numbers.storage,)
    hidden = model.layer_norm(pw.add(tape, words, positions), f"model.{side}.layernorm_embedding")
    hidden = pw.dropout(tape, hidden, spec.hidden_dropout)
    tape.held.append(positions.storage)
    if side == "encoder":
        encoder.embeddings_held(model, words, leaves)
    elif words.storage not in leaves:
        tape.held.append(words.storage)
    return hidden


def _logits_bias(model: Assembly, spec: BartSpec) -> Tensor:
    shape = (1, spec.vocab_size)
    return model.common("final_logits_bias", shape, model.settings.dtype, trained=False, saved=False, buffer=True)


def _words(model: Assembly, spec: BartSpec, length: Size) -> tuple[Tensor, tuple[Storage, ...]]:
    tape = model.tape
    rows, _ = model.token_shape
    words = embedding(tape, (rows, length), model.embedding_weight("model.shared"))
    if spec.scale_embedding:
        words = pw.scale(tape, words, "embed_scale")
    return words, encoder.leaf(model, words)


def _start(model: Assembly, spec: BartSpec, _: Tensor | None) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, labels, and the encoder's embeddings."""
    encoder.refuse_losses(model)
    heads = spec.decoder_attention_heads
    encoder_decoder.check_prefixes(model, spec, spec.decoder_layers, heads, spec.hidden_size // heads)
    encoder.check_length(model, spec.max_position_embeddings)
    tape = model.begin("", 1)
    rows, length = model.token_shape
    ids = tape.fresh((rows, length), "int64", False)
    tape.record("token_ids", (), ids)
    labels = tape.fresh((rows, model.settings.target_length), "int64", False)
    tape.record("labels", (), labels)
    _logits_bias(model, spec)
    words, leaves = _words(model, spec, length)
    for part in model.method.parts:
        words = part.embedded(model, words)
    hidden = _embedded(model, spec, words, rows, "encoder", leaves)
    masks = encoder.mask_of(model, hidden.dtype)
    carried = (ids.storage, labels.storage, *[m.storage for m in masks], *leaves, *tape.held)
    return close("encoder.embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2, exit_held=False), masks


def _bridge(model: Assembly, spec: BartSpec, entry: Tensor | None) -> tuple[Block, _Shared]:
    """What the encoder made crosses to every layer of the decoder; the decoder's embeddings."""
    assert entry is not None
    tape = model.begin("", 1)
    length = model.settings.target_length
    made = tape.view("encoder_outputs", entry, entry.shape)
    made.crosses = True
    rows, _ = model.token_shape
    shifted = tape.fresh((rows, length), "int64", False)
    tape.record("decoder_input_ids", (), shifted, scratch=shifted.storage.nbytes)
    words, leaves = _words(model, spec, length)
    hidden = _embedded(model, spec, words, 1, "decoder", leaves)
    tape.hold(entry)
    masks, others = encoder_decoder.decoder_masks(model, hidden.dtype, ones=True)
    carried = (entry.storage, shifted.storage, *[m.storage for m in (*masks, *others)], *leaves, *tape.held)
    tape.outputs.append(entry.storage)
    block = close("decoder.embeddings", tape, entry, hidden, carried, entry_held=False, leaves=leaves * 2, exit_held=False)
    block.early_leaves = leaves
    return block, _Shared(made, masks, others)


def _encoder_layer(model: Assembly, spec: BartSpec, entry: Tensor, masks: tuple[Tensor, ...]) -> Block:
    hidden, weights = _attention(model, spec, entry, entry, "self_attn", masks)
    exit = _mlp(model, spec, hidden, spec.intermediate_size)
    model.tape.hold(*weights)
    return close("encoder.layer", model.tape, entry, exit)


def _decoder_layer(model: Assembly, spec: BartSpec, entry: Tensor, shared: _Shared) -> Block:
    own = replace(
        spec, num_attention_heads=spec.decoder_attention_heads, head_dim=spec.hidden_size // spec.decoder_attention_heads
    )
    hidden, weights = _attention(model, own, entry, entry, "self_attn", shared.masks, decoder=True)
    hidden, others = _attention(model, own, hidden, shared.made, "encoder_attn", shared.cross_masks, decoder=True)
    model.tape.hold(*weights)
    exit = _mlp(model, spec, hidden, spec.decoder_ffn_dim)
    model.tape.hold(*others)
    return close("decoder.layer", model.tape, entry, exit)


def _attention(
    model: Assembly, spec: BartSpec, x: Tensor, source: Tensor, name: str, masks: tuple[Tensor, ...], decoder: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`layer_norm(x + dropout(attention(x)))`, keys and values of `source`; and the weights (eager), which a variable holds."""
    tape = model.tape
    kernel = encoder.bidirectional(model, spec, x.dtype, masked=bool(masks))
    names = [f"{name}.{part}_proj" for part in "qkv"]
    heads = encoder.projections(model, spec, kernel, x, names, bias=True, source=source)
    packed = decoder and model.method.prefix_length > 0  # where there are labels, the model makes no cache of its own
    if packed:
        heads = (heads[0], *encoder_decoder.from_cache(model, heads[1], heads[2], cross=name != "self_attn"))
    tape.scope = name
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    mixed, weights, held = encoder.both_ways(
        model, spec, kernel, heads, masks, dropout, False, decoder and name == "self_attn", packed=packed
    )
    tape.scope = ""
    y = model.linear(mixed, f"{name}.out_proj", spec.hidden_size, bias=True)
    tape.hold(*held)
    y = model.submodule("self_attn", x, x, pw.dropout(tape, y, spec.hidden_dropout))
    return model.layer_norm(pw.add(tape, x, y), f"{name}_layer_norm"), weights


def _mlp(model: Assembly, spec: BartSpec, x: Tensor, width: int) -> Tensor:
    """Two linear layers with a layer norm behind the residual."""
    tape = model.tape
    inner = model.linear(x, "fc1", width, bias=True)
    inner = pw.dropout(tape, encoder.activate(model, inner, spec.hidden_act), spec.activation_dropout)
    y = pw.dropout(tape, model.linear(inner, "fc2", spec.hidden_size, bias=True), spec.hidden_dropout)
    y = model.submodule("mlp", x, x, y)
    exit = model.layer_norm(pw.add(tape, x, y), "final_layer_norm")
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    return exit


def finish(model: Assembly, spec: BartSpec, entry: Tensor) -> Block:
    """Head and loss: the logits stay in the model's dtype."""
    tape = model.begin("", 1)
    weight = model.embedding_weight("model.shared")
    tape.scope = "lm_head"
    loss = losses.narrow(tape, entry, weight, _logits_bias(model, spec))
    tape.hold(entry)
    return encoder_head.ended(model, entry, loss)

"""DeBERTa-v2 and -v3: attention between contents and relative positions, written out, with scores that are gathered.

Mirrors transformers 5.23 models/deberta_v2/modeling_deberta_v2.py: the model asks its encoder for all hidden states, so that they
live until the last layer is done. The loss is that of a classification by name, which differs by less than a kibibyte from the
one that the code takes where the config has no problem_type. N sequences x heads, L tokens, P positions.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import batched, embedding
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes
from tuneplan.planner.models import encoder, encoder_head, tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import heads_first, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import run_eagerly
from tuneplan.planner.models.encoder import EncoderSpec
from tuneplan.planner.models.network import Stack

_DEFAULTS = {
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "vocab_size": 128100,
    "max_position_embeddings": 512,
}
TASKS = (tasks.SEQ_CLS, tasks.TOKEN_CLS)
EAGER_ONLY = True
CONTENT_TO_POSITION, POSITION_TO_CONTENT = "c2p", "p2c"
_PREFIX = "deberta.embeddings"


@dataclass(frozen=True, slots=True)
class DebertaSpec(EncoderSpec):
    """DeBERTa-v2.

    Attributes:
        embedding_size: width of the embeddings, which a projection brings to `hidden_size`.
        type_vocab_size: rows of the table of segments; 0 without one.
        position_biased_input: positions are added to the embeddings.
        terms: what attention adds to its scores, content to position and the reverse; none without relative positions.
        relative_rows: rows of the table of relative positions; 0 without one.
        share_att_key: relative positions go through the projections of queries and keys.
        norm_relative: a layer norm comes after the table.
        pooler_dropout: of the first token.
        pooler_act: of the pooler.
    """

    embedding_size: int
    type_vocab_size: int
    position_biased_input: bool
    terms: tuple[str, ...]
    relative_rows: int
    share_att_key: bool
    norm_relative: bool
    pooler_dropout: float
    pooler_act: str

    @property
    def longest(self) -> int | None:
        """Relative positions have no end."""
        return self.max_position_embeddings if self.position_biased_input else None


def read(id: str, config: ConfigReader) -> DebertaSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    fields = encoder.dimensions(id, config, _DEFAULTS, {"classifier_dropout": "cls_dropout"})
    hidden = fields["hidden_size"]
    if config.integer("conv_kernel_size", 0, minimum=0):
        raise NotModelledError(
            f"{config.origin}: the convolution after the first layer (conv_kernel_size) is not known to tuneplan",
            "; DeBERTa-v3 has none",
        )
    own = config.integer("attention_head_size", fields["head_dim"])
    if own != fields["head_dim"] or config.integer("pooler_hidden_size", hidden) != hidden:
        raise InputError(
            f"{config.origin}: attention_head_size and pooler_hidden_size must fit hidden_size={hidden}, or its code does "
            "not run; check the config"
        )
    relative = config.boolean("relative_attention", False)
    furthest = config.integer("max_relative_positions", -1, minimum=-(2**30))
    furthest = furthest if furthest >= 1 else fields["max_position_embeddings"]
    buckets = config.integer("position_buckets", -1, minimum=-(2**30))
    norms = config.text("norm_rel_ebd", "none").lower().split("|")
    return DebertaSpec(
        **fields,
        embedding_size=config.integer("embedding_size", hidden),
        type_vocab_size=config.integer("type_vocab_size", 0, minimum=0),
        position_biased_input=config.boolean("position_biased_input", True),
        terms=_terms(config) if relative else (),
        relative_rows=2 * (buckets if buckets > 0 else furthest) if relative else 0,
        share_att_key=config.boolean("share_att_key", False),
        norm_relative=relative and "layer_norm" in [name.strip() for name in norms],
        pooler_dropout=encoder.dropouts(config, "pooler_dropout", 0.0),
        pooler_act=encoder.activation_of(config, "pooler_hidden_act", "gelu"),
    )


def _terms(config: ConfigReader) -> tuple[str, ...]:
    """`pos_att_type`: a list, or names joined by "|"."""
    given = config.mapping.get("pos_att_type") or []
    names = given.lower().split("|") if isinstance(given, str) else given
    known = (CONTENT_TO_POSITION, POSITION_TO_CONTENT)
    if not isinstance(names, list) or any(not isinstance(name, str) or name.strip() not in known for name in names):
        raise InputError(f"{config.origin}: 'pos_att_type' must name c2p, p2c or both, such as \"p2c|c2p\". Correct the file.")
    chosen = [name.strip() for name in names]
    return tuple([term for term in known if term in chosen])


@dataclass(frozen=True, slots=True)
class _Shared:
    """What layers share.

    Attributes:
        mask: of every pair of tokens, `(batch, 1, L, L)`.
        distances: between tokens, `(1, L, L)`; None without relative positions.
        relative: embeddings of the distances, `(P, hidden)`; None without them.
    """

    mask: Tensor
    distances: Tensor | None = None
    relative: Tensor | None = None


def stacks(spec: DebertaSpec) -> tuple[Stack, ...]:
    """One."""
    return (Stack("deberta.encoder.layer.*.", spec.num_hidden_layers, _start, _layer),)


def _start(model: Assembly, spec: DebertaSpec, _: Tensor | None) -> tuple[Block, _Shared]:
    """Embeddings, normed, masked and dropped; the mask and the distances."""
    run_eagerly(model, "DeBERTa")
    encoder.refuse_past(model)
    batch, words, leaves = encoder.begin(model, f"{_PREFIX}.word_embeddings", spec.embedding_size)
    tape = model.tape
    rows, length = words.shape[:2]
    ones = tape.record("attention_mask", (), tape.fresh((rows, length), "fp32", False))
    types = tape.record("token_type_ids", (), tape.fresh((rows, length), "int64", False))
    model.common(f"{_PREFIX}.position_ids", (1, spec.max_position_embeddings), "int64", trained=False, saved=False, buffer=True)
    hidden, positions = words, None
    if spec.position_biased_input:
        table = model.weight(f"{_PREFIX}.position_embeddings", (spec.max_position_embeddings, spec.embedding_size), "embedding")
        positions = embedding(tape, (1, length), table)
        hidden = pw.add(tape, hidden, positions)
    else:
        positions = tape.record("zeros_like", (), tape.fresh(words.shape, words.dtype, False))
    if spec.type_vocab_size:
        table = model.weight(f"{_PREFIX}.token_type_embeddings", (spec.type_vocab_size, spec.embedding_size), "embedding")
        segments = embedding(tape, (rows, length), table)
        hidden = pw.add(tape, hidden, segments)
        tape.hold(segments)
    if spec.embedding_size != spec.hidden_size:
        hidden = model.linear(hidden, f"{_PREFIX}.embed_proj", spec.hidden_size)
    hidden = model.layer_norm(hidden, f"{_PREFIX}.LayerNorm")
    seen = tape.record("mask", (ones,), tape.fresh((rows, length, 1), hidden.dtype, False))
    masked = tape.fresh(hidden.shape, hidden.dtype, hidden.requires_grad)
    gradient = Gradient(hidden, round_block(hidden.nbytes), moved=2 * hidden.nbytes)
    tape.record("mul", (hidden, seen), masked, saved=(seen,), gradients=(gradient,))
    tape.hold(hidden)
    hidden = pw.dropout(tape, masked, spec.hidden_dropout)
    tape.hold(words, positions, seen)
    shared = _share(model, spec, rows, length, hidden.dtype)
    made = [ones, types, shared.mask, *[t for t in (shared.distances, shared.relative) if t is not None and not t.name]]
    carried = (*batch, *[t.storage for t in made], *leaves, *tape.held)
    return close("embeddings", tape, None, hidden, carried, batch=2, leaves=leaves * 2, exit_held=False), shared


def _share(model: Assembly, spec: DebertaSpec, rows: Size, length: Size, dtype: str) -> _Shared:
    """`get_attention_mask`, `get_rel_pos` and `get_rel_embedding` of the encoder."""
    tape = model.tape
    kind = "int64" if model.settings.padded else "fp32"
    mask = tape.record("extended_attention_mask", (), tape.fresh((rows, 1, length, length), kind, False))
    if not spec.relative_rows:
        return _Shared(mask)
    distances = tape.fresh((1, length, length), "int64", False)
    tape.record("relative_pos", (), distances, scratch=3 * distances.storage.nbytes)
    table = model.weight("deberta.encoder.rel_embeddings", (spec.relative_rows, spec.hidden_size), "embedding")
    if not spec.norm_relative:
        return _Shared(mask, distances, table)
    relative = model.layer_norm(table, "deberta.encoder.LayerNorm")
    relative.crosses = True
    return _Shared(mask, distances, relative)


def _layer(model: Assembly, spec: DebertaSpec, entry: Tensor, shared: _Shared) -> Block:
    """Attention and two linear layers, each with a layer norm behind its residual."""
    tape = model.tape
    mixed = _attention(model, spec, entry, shared)
    hidden = encoder.residual(model, mixed, entry, "attention.output", "self_attn", spec.hidden_dropout)
    tape.hold(mixed)
    exit = encoder.feed_forward(model, spec, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    block = close("layer", tape, entry, exit)
    block.entries_kept = True
    return block


def _projected(model: Assembly, spec: DebertaSpec, x: Tensor, name: str) -> Tensor:
    """`transpose_for_scores`: a projection copied so that heads come first, `(batch, heads, L, head_dim)`."""
    y = model.linear(x, f"attention.self.{name}", spec.hidden_size, bias=True)
    return pw.copy(model.tape, heads_first(model, split_heads(model, y, spec.head_dim), copied=True), "contiguous")


def _attention(model: Assembly, spec: DebertaSpec, x: Tensor, shared: _Shared) -> Tensor:
    """`DisentangledSelfAttention.forward`: `(batch, L, hidden)`."""
    tape = model.tape
    q, k, v = (_projected(model, spec, x, f"{name}_proj") for name in ("query", "key", "value"))
    tape.scope = "attention.self"
    rows, heads, length, columns = q.shape
    shape = (rows, heads, length, length)
    scores = batched(tape, q, pw.scale(tape, k), shape, columns)
    held: tuple[Tensor, ...] = ()
    if shared.relative is not None and spec.terms:
        bias, dropped = _bias(model, spec, q, k, shared)
        scores = pw.add(tape, scores, bias)
        held = (bias, dropped)
    seen = tape.record("bool", (shared.mask,), tape.fresh(shared.mask.shape, "bool", False))
    unseen = tape.record("bitwise_not", (seen,), tape.fresh(shared.mask.shape, "bool", False))
    scores = pw.masked_fill(tape, scores, unseen)
    soft = pw.softmax_by_default(tape, scores)
    dropout = spec.attention_dropout if model.settings.attention_dropout is None else model.settings.attention_dropout
    weights = pw.dropout(tape, soft, dropout)
    mixed = batched(tape, weights, v, q.shape, length)
    out = tape.fresh((rows, length, heads, columns), mixed.dtype, mixed.requires_grad)
    tape.record("contiguous", (mixed,), out, gradients=(Gradient(mixed, round_block(mixed.nbytes), moved=2 * mixed.nbytes),))
    tape.hold(q, k, v, scores, weights, seen, *held)
    tape.scope = ""
    return tape.view("join_heads", out, (rows, length, heads * columns))


def _positions(model: Assembly, spec: DebertaSpec, relative: Tensor, rows: Size, name: str) -> Tensor:
    """Relative positions through a projection, repeated for every sequence: `(batch, heads, P, head_dim)`."""
    own = "" if spec.share_att_key else "pos_"
    x = model.tape.view("unsqueeze", relative, (1, *relative.shape))
    y = _projected(model, spec, x, f"{own}{name}_proj")
    return pw.repeated(model.tape, y, (rows, *y.shape[1:]))


def _bias(model: Assembly, spec: DebertaSpec, q: Tensor, k: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
    """`disentangled_attention_bias`, `(batch, heads, L, L)`; also the dropped embeddings of distances, which the caller holds."""
    assert shared.relative is not None
    assert shared.distances is not None
    tape = model.tape
    rows = q.shape[0]
    relative = pw.dropout(tape, shared.relative, spec.hidden_dropout)
    tape.scope = ""
    names = {POSITION_TO_CONTENT: "query", CONTENT_TO_POSITION: "key"}
    order = (POSITION_TO_CONTENT, CONTENT_TO_POSITION) if spec.share_att_key else spec.terms
    needed = [term for term in order if spec.share_att_key or term in spec.terms]
    positions = {term: _positions(model, spec, relative, rows, names[term]) for term in needed}
    tape.scope = "attention.self"
    held = list(positions.values())
    total: Tensor | None = None
    for term in spec.terms:
        content = q if term == CONTENT_TO_POSITION else k
        gathered, index = _gathered(model, content, positions[term], shared.distances, term == POSITION_TO_CONTENT)
        scaled = pw.scale(tape, gathered)
        total = pw.shift(tape, scaled) if total is None else pw.add_in_place(tape, total, scaled)
        held += [gathered, index]
    assert total is not None
    tape.hold(*held)
    return total, relative


def _gathered(model: Assembly, content: Tensor, positions: Tensor, distances: Tensor, negated: bool) -> tuple[Tensor, Tensor]:
    """Scores of contents against all P positions, of which every pair of tokens takes one; and which it takes."""
    tape = model.tape
    rows, heads, length, columns = content.shape
    scores: Tensor | None = None
    if not negated:
        scores = batched(tape, content, positions, (rows, heads, length, positions.shape[2]), columns)
    index = tape.fresh((1, length, length), "int64", False)
    tape.record("clamp", (distances,), index, scratch=tensor_bytes(distances.shape, "int64") * (2 if negated else 1))
    if scores is None:
        scores = batched(tape, content, positions, (rows, heads, length, positions.shape[2]), columns)
    out = tape.fresh((rows, heads, length, length), scores.dtype, scores.requires_grad)
    gradient = Gradient(scores, round_block(scores.nbytes), moved=scores.nbytes + out.nbytes)
    return tape.record("gather", (scores, index), out, saved=(scores, index), gradients=(gradient,)), index


def finish(model: Assembly, spec: DebertaSpec, entry: Tensor) -> Block:
    """The head of the task."""
    tape = model.begin("", 1)
    if spec.task == tasks.TOKEN_CLS:
        x = pw.dropout(tape, entry, spec.hidden_dropout)
        return encoder_head.classified(model, entry, encoder_head.head(model, x, "classifier", spec.num_labels), (x,))
    first = pw.dropout(tape, encoder_head.first_token(model, entry), spec.pooler_dropout)
    pooled = encoder.activate(model, model.linear(first, "pooler.dense", spec.hidden_size, bias=True), spec.pooler_act)
    pooled = pw.dropout(tape, pooled, spec.classifier_dropout)
    return encoder_head.classified(model, entry, encoder_head.head(model, pooled, "classifier", spec.num_labels), (pooled,))

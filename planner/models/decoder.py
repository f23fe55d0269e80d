"""What decoders share, whatever their layers: the config's dimensions, embeddings, rotary tables, masks, head and loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import ACTIVATIONS
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Size, Storage, Tensor, tensor_bytes
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.objective_head import objective_loss, reward_loss
from tuneplan.planner.models.positions import check as check_positions
from tuneplan.planner.models.router_logits import with_router_loss
from tuneplan.planner.models.spec import ModelSpec

MOST_DROPOUT = 0.99


@dataclass(frozen=True, slots=True)
class DecoderSpec(ModelSpec):
    """A decoder-only model. Names are those of config.json; `sliding_window` is None where attention is full."""

    intermediate_size: int
    attention_dropout: float
    hidden_act: str
    sliding_window: int | None


def dimensions(
    id: str,
    config: ConfigReader,
    *,
    activation_key: str = "hidden_act",
    defaults: Mapping[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
    rotary: bool = True,
) -> dict[str, Any]:
    """The fields of `DecoderSpec` but for the window, by name.

    Args:
        id: hub id or path.
        config: the config.json.
        activation_key: where it has the MLP's activation.
        defaults: what the upstream configuration class has instead of Llama's for a key that the file leaves out.
        keys: names of keys that are not Llama's (`attribute_map` upstream), by Llama's; "" for one that the class does not have.
        rotary: heads are rotated in pairs.

    Raises:
        InputError: dimensions are missing, absurd or contradict each other.
    """
    given = defaults or {}
    renamed = keys or {}

    def key(name: str) -> str:
        other = renamed.get(name, name)
        return name if other and not config.has(other) and config.has(name) else other

    hidden = config.integer(key("hidden_size"), given.get("hidden_size"))
    heads = config.integer(key("num_attention_heads"), given.get("num_attention_heads"), maximum=2**16)
    key_heads = config.integer(key("num_key_value_heads"), given.get("num_key_value_heads", heads), maximum=2**16)
    if heads % key_heads:
        raise InputError(
            f"{config.origin}: num_attention_heads={heads} is not a multiple of num_key_value_heads={key_heads}; check the config"
        )
    fixed = given.get("head_dim")
    if not config.has(key("head_dim")) and fixed is None and hidden % heads:
        raise InputError(
            f"{config.origin}: {key('hidden_size')}={hidden} is not a multiple of {key('num_attention_heads')}={heads} and there "
            "is no head_dim; check the config"
        )
    head_dim = config.integer(key("head_dim"), fixed or hidden // heads or None, maximum=2**14)
    if rotary and head_dim % 2:
        raise InputError(f"{config.origin}: head_dim={head_dim} is odd, which rotary positions cannot be; check the config")
    return {
        "id": id,
        "model_type": config.text("model_type"),
        "hidden_size": hidden,
        "num_hidden_layers": config.integer(key("num_hidden_layers"), given.get("num_hidden_layers"), maximum=2**12),
        "vocab_size": config.integer("vocab_size", given.get("vocab_size")),
        "max_position_embeddings": config.integer(
            key("max_position_embeddings"), given.get("max_position_embeddings", 2048), maximum=2**30
        ),
        "tie_word_embeddings": config.boolean("tie_word_embeddings", given.get("tie_word_embeddings", False)),
        "intermediate_size": config.integer(key("intermediate_size"), given.get("intermediate_size", 4 * hidden or None)),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "attention_dropout": config.number(key("attention_dropout"), given.get("attention_dropout", 0.0), maximum=MOST_DROPOUT),
        "hidden_act": _activation(config, activation_key, given.get("hidden_act", "silu")),
    }


def _activation(config: ConfigReader, key: str, default: str) -> str:
    """The MLP's activation. Raises InputError for one whose kernels are not known."""
    name = config.text(key, default)
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise NotModelledError(f"{config.origin}: {key} {name!r} is an activation that tuneplan does not know; it knows {known}")
    return name


def rotary_width(config: ConfigReader, head_dim: int, default: float = 1.0, key: str = "partial_rotary_factor") -> int:
    """Columns of each head that are rotated: `partial_rotary_factor` of them, in the rope's own section or beside it.

    Raises InputError for a part that cannot be rotated in pairs.
    """
    names = [name for name in ("rope_parameters", "rope_scaling") if isinstance(config.mapping.get(name), Mapping)]
    scopes = [*[config.section(name) for name in names], config]
    given = [scope.number(name, maximum=1.0) for scope in scopes for name in ("partial_rotary_factor", key) if scope.has(name)]
    width = int(head_dim * (given[0] if given else default))
    if width < 2 or width % 2:
        raise InputError(f"{config.origin}: {width} of {head_dim} columns of each head would be rotated in pairs; check {key}")
    return width


def positions(model: Assembly, weight: str, rows: int, length: Size, batch: Size = 1) -> Tensor:
    """Learned embeddings of the positions 0 to `length` - 1: `(batch, length, hidden)`.

    `weight`: its name; `rows`: of the table; `batch`: 1 where all sequences share them. Raises InputError for longer sequences.
    """
    check_positions(model.spec.id, model.spec.max_position_embeddings, length)
    tape = model.tape
    ids = tape.fresh((batch, length), "int64", False)
    tape.record("position_ids", (), ids)
    table = model.weight(weight, (rows, model.spec.hidden_size), "embedding")
    out = embedding(tape, (batch, length), table)
    if table.requires_grad:
        tape.save(ids)
    tape.hold(ids)
    return out


def begin(model: Assembly, weight: str, scaled: bool = False, width: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, labels and the embeddings, whose `weight` is named so; gives the three.

    `scaled`: the embedding module multiplies its output; `width`: of the embeddings, where that is not `hidden_size`.
    """
    tape = model.begin("", 1)
    batch, length = model.token_shape
    ids = tape.fresh((batch, length), "int64", False)
    tape.record("token_ids", (), ids)
    labels = tape.fresh((batch, length), "int64", False)
    tape.record("labels", (), labels)
    hidden = embedding(tape, (batch, length), model.embedding_weight(weight, width))
    return ids, labels, pw.scale(tape, hidden, "embed_scale") if scaled else hidden


def start(
    model: Assembly,
    weight: str,
    widths: tuple[int, ...],
    windows: tuple[int | None, ...],
    scaled: bool = False,
    after: str = "",
    wide_tables: bool = False,
    enter: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
    exit_held: bool = True,
    width: int = 0,
    beside: Callable[[Tensor], Tensor] | None = None,
    boolean_mask: bool = False,
    chunked: bool = False,
    tables_each: bool = False,
) -> tuple[Block, tuple[Tensor, ...]]:
    """The first block: token ids, embeddings, rotary tables and masks.

    Args:
        model: where ops are recorded.
        weight: name of the embedding.
        widths: columns of each rotary table, cosines and sines alike.
        windows: sliding window of each mask, None for full attention.
        scaled: the embedding module multiplies its output.
        after: name of a multiplication of the embeddings in the model's own code, "" for none.
        wide_tables: they stay in fp32.
        enter: gives, for the embeddings, what enters the first layer, and tensors that variables hold until the last layer.
        exit_held: a variable of the model's code also holds what enters the first layer.
        width: of the embeddings, where that is not `hidden_size`.
        beside: gives, for what enters the first layer, a further tensor that layers share.
        boolean_mask: the model's code makes the mask boolean.
        chunked: windows are chunks.
        tables_each: each sequence has rotary tables of its own.

    Returns:
        The block, and what layers share: the tables, then a mask for each window that has one, then what is `beside`.
    """
    if width not in (0, model.spec.hidden_size) and model.method.virtual_tokens:
        raise InputError(
            f"{model.spec.id}: its embeddings are {width} wide and its layers {model.spec.hidden_size}; peft makes virtual "
            "tokens of the second width, which do not fit before the first; use prefix_tuning or lora"
        )
    batch: tuple[Tensor, ...] = ()
    leaf: tuple[Tensor, ...] = ()
    leaves: tuple[Storage, ...] = ()
    if model.given is not None:
        model.begin("", 1)
        hidden = model.given()
    else:
        ids, labels, hidden = begin(model, weight, scaled, width)
        batch = (ids, labels)
        if model.settings.gradient_checkpointing != "off" and not hidden.requires_grad:
            # transformers 5.23 modeling_utils.py `_activation_checkpointing_enable` hooks the embeddings of every model
            hidden.requires_grad = True
            leaf = (hidden,) if after or enter or model.method.virtual_tokens else ()
            leaves = (hidden.storage, hidden.storage)
        for part in model.method.parts:
            hidden = part.embedded(model, hidden)
    tape = model.tape
    if after:
        if model.method.virtual_tokens:  # the caller, who passes what is multiplied, holds it
            tape.outputs.append(hidden.storage)
        hidden = pw.scale(tape, hidden, after)
    locals: tuple[Tensor, ...] = ()
    if enter:
        passed = hidden
        hidden, *rest = enter(hidden)
        locals = tuple([tensor for tensor in rest if tensor.storage not in {hidden.storage, *[t.storage for t in leaf]}])
        if model.method.virtual_tokens and passed is not hidden:
            tape.outputs.append(passed.storage)
            locals = tuple([tensor for tensor in locals if tensor.storage is not passed.storage])
    rows = hidden.shape[0] if tables_each else 1
    shared = [_table(model, rows, width, "fp32" if wide_tables else hidden.dtype) for width in widths]
    model.rotary = tuple(shared[:2])
    shared += [mask for window in windows if (mask := _mask(model, window, hidden.dtype, chunked)) is not None]
    if boolean_mask:
        shared[-1] = tape.record("boolean_mask", (shared[-1],), tape.fresh(shared[-1].shape, "bool", False))
    if beside:
        shared.append(beside(hidden))
    carried: tuple[Storage, ...] = (*[t.storage for t in (*batch, *shared, *leaf)], *tape.held)
    held = tuple([tensor.storage for tensor in locals])
    block = close("embed_tokens", tape, None, hidden, carried, batch=len(batch), leaves=leaves, locals=held, exit_held=exit_held)
    block.exit_passed = not after
    return block, tuple(shared)


def run_eagerly(model: Assembly, name: str) -> None:
    """The architecture has only attention that is written out, which transformers runs where sdpa is asked.

    Raises InputError where flash is asked.
    """
    if model.settings.attention == "flash":
        raise InputError(f"attention=flash: transformers has no FlashAttention for {name}; use sdpa or eager, which are the same")
    if model.settings.attention == "sdpa":
        model.settings = replace(model.settings, attention="eager")
    model.notes["attention_kernel"] = "eager"
    model.notes["attention_kernel_reason"] = f"transformers has only written-out attention for {name}"


def masked(model: Assembly, window: int | None) -> bool:
    """Whether sdpa gets a mask: for padding, for a prefix of keys, and for a window that sequences reach.

    Mirrors `_ignore_causal_mask_sdpa` of transformers 5.23: a window as long as the sequences gets one too.
    """
    settings = model.settings
    if model.method.prefix_length:
        return True
    if settings.padded or window is None:
        return settings.padded
    longer: Any = settings.seq_len + model.method.virtual_tokens >= window
    return longer if isinstance(longer, bool) else bool(longer.any())


def layer_mask(model: Assembly, kind: str, window: int | None) -> object:
    """What tells the masks of layers apart: eager attention makes one for each kind of layer, even if they are equal."""
    return (model.settings.attention == "eager" and kind, masked(model, window))


def _table(model: Assembly, rows: Size, width: int, dtype: str) -> Tensor:
    length = model.settings.seq_len + model.method.virtual_tokens
    table = model.tape.fresh((rows, length, width), dtype, False)
    wide = tensor_bytes(table.shape, "fp32")
    return model.tape.record("rotary_table", (), table, scratch=3 * wide)


def _mask(model: Assembly, window: int | None, dtype: str, chunked: bool) -> Tensor | None:
    """Eager attention adds a mask of the hidden states' dtype; sdpa gets a boolean one for padding, a prefix or a window.

    That of a window alone is the same for each sequence and lies there once (`sdpa_mask` of transformers 5.23 expands it); that
    of chunks is not, as they begin behind the padding of each sequence (`chunked_overlay`).
    """
    batch, length = model.token_shape
    length = length + model.method.virtual_tokens
    keys = length + model.method.prefix_length
    if model.settings.attention == "eager":
        mask = model.tape.fresh((batch, 1, length, keys), dtype, False)
    elif model.settings.attention == "sdpa" and masked(model, window):
        alike = not model.settings.padded
        alike = alike and not (chunked and window is not None)
        stored = tensor_bytes((1 if alike else batch, 1, length, keys), "bool")
        mask = Tensor(Storage(stored, model.tape.category), (batch, 1, length, keys), "bool")
    else:
        return None
    return model.tape.record("causal_mask", (), mask, scratch=tensor_bytes(mask.shape, "bool"))


def pre_norm_layer(
    model: Assembly,
    entry: Tensor,
    attend: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]],
    feed: Callable[[Tensor], Tensor],
) -> Block:
    """A layer of attention and an MLP or experts, each behind an RMS norm and before a residual.

    Args:
        model: the assembly.
        entry: the hidden states `(batch, length, hidden_size)`.
        attend: the attention of normed states, and the attention weights that the layer's code holds (eager).
        feed: the MLP or experts of normed states.
    """
    tape = model.tape
    normed = model.rms_norm(entry, "input_layernorm")
    hidden, weights = attend(normed)
    residual = pw.add(tape, entry, model.submodule("self_attn", normed, entry, hidden))
    normed = model.rms_norm(residual, "post_attention_layernorm")
    exit = pw.add(tape, residual, model.submodule("mlp", normed, residual, feed(normed)))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def finish(
    model: Assembly,
    spec: ModelSpec,
    entry: Tensor,
    hidden: Tensor,
    embedding: str,
    head: str,
    rescale: str = "",
    bias: bool = False,
) -> Block:
    """Head and loss, given the last hidden states, normed.

    Args:
        model: where ops are recorded.
        spec: the dimensions.
        entry: what the last layer gave.
        hidden: the same, normed.
        embedding: name of the embedding, which is the head where they are tied.
        head: name of the head.
        rescale: what is done with the logits; see `loss.rescaled`.
        bias: the head has one.
    """
    tape = model.tape
    tape.hold(entry)
    if model.settings.objective.name == "reward":
        loss = reward_loss(model, hidden)
    else:
        shape = (spec.vocab_size, int(hidden.shape[-1]))
        weight = model.embedding_weight(embedding) if spec.tie_word_embeddings else model.weight(head, shape, "head")
        offset = model.weight(head, (spec.vocab_size,), "bias", "bias", "head") if bias else None
        for part in model.method.parts:
            tape.logits = part.added_logits(model) or tape.logits
        tape.scope = head
        loss = with_router_loss(model, objective_loss(model, hidden, weight, offset, rescale), hidden)
    for part in model.method.parts:
        loss = part.loss(model, loss)
        part.finish(model)
    return close("head", tape, entry, None, entry_held=False)

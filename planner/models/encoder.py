"""What encoders share: dimensions, the first block, attention that looks both ways, and heads for classification.

Mirrors transformers 5.23; a family's own file names the modelling file.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import attention as kernels
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.activations import activation
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Storage, Tensor, tensor_bytes
from tuneplan.planner.models import tasks
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import heads_first, split_heads
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.positions import check as check_positions
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.attention_kernel import Kernel, choose

MOST_DROPOUT = 0.99
FUSED_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "quick_gelu")


@dataclass(frozen=True, slots=True)
class EncoderSpec(ModelSpec):
    """A stack of layers that look both ways. Names are those of config.json."""

    intermediate_size: int
    hidden_act: str
    hidden_dropout: float
    attention_dropout: float
    classifier_dropout: float

    @property
    def longest(self) -> int | None:
        """A table of learned positions ends."""
        return self.max_position_embeddings


def dimensions(
    id: str,
    config: ConfigReader,
    defaults: Mapping[str, Any],
    keys: Mapping[str, str] | None = None,
    activations: Container[str] = FUSED_ACTIVATIONS,
) -> dict[str, Any]:
    """The fields of `EncoderSpec` by name; the classifier's dropout is that of hidden states where the config has none.

    Args:
        id: hub id or path.
        config: the config.json.
        defaults: what the upstream configuration class has, by BERT's names; dropouts are 0.1, the activation gelu unless given.
        keys: names of keys that are not BERT's (`attribute_map` upstream), by BERT's.
        activations: those that the family's code here has.

    Raises:
        InputError: dimensions are missing, absurd or contradict each other.
    """
    renamed = keys or {}

    def key(name: str) -> str:
        other = renamed.get(name, name)
        return name if not config.has(other) and config.has(name) else other

    hidden = config.integer(key("hidden_size"), defaults["hidden_size"])
    heads = config.integer(key("num_attention_heads"), defaults["num_attention_heads"], maximum=2**16)
    dropout = dropouts(config, key("hidden_dropout_prob"), defaults.get("hidden_dropout_prob", 0.1))
    return {
        "id": id,
        "model_type": config.text("model_type"),
        "hidden_size": hidden,
        "num_hidden_layers": config.integer(key("num_hidden_layers"), defaults["num_hidden_layers"], maximum=2**12),
        "vocab_size": config.integer("vocab_size", defaults["vocab_size"]),
        "max_position_embeddings": config.integer("max_position_embeddings", defaults["max_position_embeddings"], maximum=2**24),
        "tie_word_embeddings": True,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": heads_of(config, hidden, heads, (key("hidden_size"), key("num_attention_heads"))),
        "intermediate_size": config.integer(key("intermediate_size"), defaults["intermediate_size"]),
        "hidden_act": activation_of(config, key("hidden_act"), defaults.get("hidden_act", "gelu"), activations),
        "hidden_dropout": dropout,
        "attention_dropout": dropouts(
            config, key("attention_probs_dropout_prob"), defaults.get("attention_probs_dropout_prob", 0.1)
        ),
        "classifier_dropout": dropouts(config, key("classifier_dropout"), defaults.get("classifier_dropout", dropout)),
    }


def heads_of(config: ConfigReader, hidden: int, heads: int, keys: tuple[str, str]) -> int:
    """Size of a head. Raises InputError where the width is no multiple of the heads; `keys` name the two."""
    if hidden % heads:
        raise InputError(f"{config.origin}: {keys[0]}={hidden} is not a multiple of {keys[1]}={heads}; check the config")
    return hidden // heads


def activation_of(config: ConfigReader, key: str, default: str, activations: Container[str] = FUSED_ACTIVATIONS) -> str:
    """The activation of a config. Raises InputError for one that is not known."""
    name = config.text(key, default)
    if name not in activations:
        known = ", ".join(FUSED_ACTIVATIONS)
        raise InputError(f"{config.origin}: {key} {name!r} is an activation that tuneplan does not know; it knows {known}")
    return name


def activate(model: Assembly, x: Tensor, kind: str) -> Tensor:
    """The activation, fused or as `transformers.activations` writes it out."""
    return activation(model.tape, x, kind)


def dropouts(config: ConfigReader, key: str, default: float) -> float:
    """A dropout's probability. Raises InputError."""
    return config.number(key, default, maximum=MOST_DROPOUT)


def token_ids(model: Assembly, length: Any = None) -> tuple[Storage, ...]:
    """Token ids and labels, which the training loop holds: of every token, or one a sequence for a classification."""
    tape = model.tape
    batch, own = model.token_shape
    ids = tape.fresh((batch, own if length is None else length), "int64", False)
    tape.record("token_ids", (), ids)
    single = model.spec.task == tasks.SEQ_CLS
    labels = tape.fresh((batch,) if single else ids.shape, "int64", False)
    tape.record("labels", (), labels)
    return ids.storage, labels.storage


def begin(model: Assembly, weight: str, width: int) -> tuple[tuple[Storage, ...], Tensor, tuple[Storage, ...]]:
    """Start the first block: the batch, embedded tokens (virtual ones included), and what is held of them as a leaf.

    Raises InputError for a loss of causal models, for virtual tokens that are wider than the embeddings, and for sequences that
    are longer than a model's positions.

    `weight`: name of the embedding; `width`: its columns.
    """
    spec = model.spec
    refuse_losses(model)
    if spec.longest is not None:
        check_length(model, spec.longest)
    if model.method.virtual_tokens and width != spec.hidden_size:
        raise InputError(
            f"{spec.id} embeds tokens in {width} numbers, and peft makes virtual tokens of hidden_size={spec.hidden_size}, which "
            "it cannot join; use prefix_tuning or lora"
        )
    if model.method.virtual_tokens and spec.task == tasks.TOKEN_CLS:
        raise InputError(
            f"{spec.id} for {spec.task}: peft gives virtual tokens logits but no labels, so that the loss fails; use "
            "prefix_tuning or lora"
        )
    tape = model.begin("", 1)
    batch = token_ids(model)
    words = embedding(tape, model.token_shape, model.embedding_weight(weight, width))
    leaves = leaf(model, words)
    for part in model.method.parts:
        words = part.embedded(model, words)
    if model.method.virtual_tokens:
        embeddings_held(model, words)
    return batch, words, leaves


def opened(model: Assembly, batch: tuple[Storage, ...], hidden: Tensor, leaves: tuple[Storage, ...]) -> tuple[Block, Any]:
    """End the first block: the masks, which layers share."""
    masks = mask_of(model, hidden.dtype)
    carried = (*batch, *[m.storage for m in masks], *leaves, *model.tape.held)
    return close("embeddings", model.tape, None, hidden, carried, batch=len(batch), leaves=leaves * 2), masks


def leaf(model: Assembly, hidden: Tensor) -> tuple[Storage, ...]:
    """Make embeddings require a gradient where checkpointing needs that (`enable_input_require_grads`); gives what is held."""
    if model.settings.gradient_checkpointing == "off" or hidden.requires_grad:
        return ()
    hidden.requires_grad = True
    return (hidden.storage,)


def embeddings_held(model: Assembly, words: Tensor, leaves: tuple[Storage, ...] = ()) -> None:
    """Keep embeddings that a variable of the stack's code holds; peft holds those that it passes, for the whole forward."""
    tape = model.tape
    if model.method.virtual_tokens:
        tape.outputs.append(words.storage)
    elif words.storage not in leaves:
        tape.held.append(words.storage)


def check_length(model: Assembly, positions: int) -> None:
    """Raise InputError for sequences that are longer than a model's table of positions."""
    check_positions(model.spec.id, positions, model.settings.seq_len + model.method.virtual_tokens)


def bidirectional(model: Assembly, spec: Any, dtype: str, masked: bool | None = None) -> Kernel:
    """The kernel of attention without a causal mask; `masked`: whether it gets one, by default where sequences are padded."""
    settings = model.settings
    kernel = choose(
        replace(settings, padded=settings.padded if masked is None else masked), settings.autocast or dtype, False, spec.head_dim
    )
    if kernel.reason or "attention_kernel" not in model.notes:
        model.notes["attention_kernel"] = kernel.name
        model.notes["attention_kernel_reason"] = kernel.reason
    return kernel


def mask_of(model: Assembly, dtype: str, length: Any = None) -> tuple[Tensor, ...]:
    """The mask for padding, `(batch, 1, length, keys)`; none without padding (`create_bidirectional_mask`)."""
    settings = model.settings
    if not settings.padded or settings.attention == "flash":
        return ()
    batch, own = model.token_shape
    rows = own + model.method.virtual_tokens if length is None else length
    shape = (batch, 1, rows, rows + model.method.prefix_length)
    mask = model.tape.fresh(shape, dtype if settings.attention == "eager" else "bool", False)
    model.tape.record("mask", (), mask, scratch=tensor_bytes(shape, "bool"))
    return (mask,)


def projections(
    model: Assembly, spec: Any, kernel: Kernel, x: Tensor, names: Sequence[str], bias: bool, source: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of `x`, keys and values of it or of `source`, as `(batch, heads, length, head_dim)`, not rotated."""
    width = spec.num_attention_heads * spec.head_dim
    out = []
    for place, name in enumerate(names):
        y = model.linear(x if place == 0 or source is None else source, name, width, bias)
        out.append(heads_first(model, split_heads(model, y, spec.head_dim), copied=kernel.name in ("eager", "math")))
    return out[0], out[1], out[2]


def feed_forward(model: Assembly, spec: EncoderSpec, hidden: Tensor) -> Tensor:
    """The second half of BERT's layers: two linear layers, the residual and its layer norm."""
    tape = model.tape
    inner = model.linear(hidden, "intermediate.dense", spec.intermediate_size, bias=True)
    tape.scope = "intermediate"
    inner = activate(model, inner, spec.hidden_act)
    tape.scope = ""
    exit = residual(model, inner, hidden, "output", "mlp", spec.hidden_dropout)
    tape.hold(inner, hidden)
    return exit


def both_ways(
    model: Assembly,
    spec: Any,
    kernel: Kernel,
    heads: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor, ...],
    dropout: float,
    prefixed: bool = True,
    causal: bool = False,
    wide: bool = False,
    packed: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Attention over all tokens: its output `(batch, length, width)`, weights that the layer's code holds, what the module holds.

    `prefixed`: a method may put keys and values before those of the layer. `causal`: a decoder's own tokens.
    `wide`: the written-out softmax runs in fp32. `packed`: keys and values lie contiguously.
    """
    tape = model.tape
    q, k, v = heads
    if prefixed:
        for part in model.method.parts:
            k, v = part.keys_values(model, k, v)
    weights: tuple[Tensor, ...] = ()
    if kernel.name == "eager":
        out, scores = kernels.eager(tape, q, k, v, masks[0] if masks else None, dropout, packed=packed, wide=wide)
        weights = (scores,)
    elif kernel.name == "efficient":
        out = kernels.efficient(tape, q, k, v, masks[0] if masks else None, causal=causal)
    else:
        q, k, v = (pw.cast(tape, t, model.settings.autocast or model.settings.dtype) for t in (q, k, v))
        out = kernels.flash(tape, q, k, v, causal=causal)
    out = tape.view("join_heads", out, (*out.shape[:2], spec.num_attention_heads * spec.head_dim))
    return out, weights, (q, k, v)


def residual(model: Assembly, x: Tensor, residual: Tensor, module: str, name: str, dropout: float) -> Tensor:
    """`LayerNorm(dropout(dense(x)) + residual)` of `module`; `name`: see `Assembly.submodule`."""
    tape = model.tape
    y = model.linear(x, f"{module}.dense", residual.shape[-1], bias=True)
    y = pw.dropout(tape, y, dropout)
    y = model.submodule(name, residual, residual, y)
    out = model.layer_norm(pw.add(tape, y, residual), f"{module}.LayerNorm")
    tape.hold(y)
    return out


def refuse_past(model: Assembly) -> None:
    """Raise InputError for prefixes of a model that takes no keys and values (`past_key_values`)."""
    if model.method.prefix_length:
        raise InputError(
            f"peft gives a model its prefixes as past_key_values, which {model.spec.model_type} models do not take, and refuses; "
            "use lora"
        )


def refuse_losses(model: Assembly) -> None:
    """Raise InputError for a loss that is made for causal language models."""
    if model.settings.loss != "eager":
        raise InputError(
            f"loss {model.settings.loss} is for causal language models; {model.spec.id} for {model.spec.task} has its own: use "
            "--loss eager"
        )

"""Gemma 1, 2 and 3 (text): scaled embeddings, norms whose weight is an offset from one, sandwich norms, windows by layer.

Mirrors transformers 5.23 models/gemma/modeling_gemma.py, gemma2/modeling_gemma2.py and gemma3/modeling_gemma3.py
(`Gemma3ForCausalLM`; the vision tower of `gemma3` is another model).
"""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, gated_mlp, kernel_of, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
SLIDING, FULL = "sliding_attention", "full_attention"
_DEFAULTS = {
    "gemma": {"num_key_value_heads": 16, "max_position_embeddings": 8192},
    "gemma2": {"num_key_value_heads": 4, "max_position_embeddings": 8192},
    "gemma3_text": {"num_key_value_heads": 4, "max_position_embeddings": 131072, "vocab_size": 262208},
}
_SHARED_DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "vocab_size": 256000}
_WINDOW = 4096
_CAPS = {"gemma2": (50.0, 30.0), "gemma3_text": (None, None)}
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}


@dataclass(frozen=True, slots=True)
class GemmaSpec(DecoderSpec):
    """A Gemma model.

    Attributes:
        attention_bias: biases on q, k, v and o.
        sandwich: norms after attention and MLP too (Gemma 2 and 3).
        head_norm: norms of queries and keys (Gemma 3).
        scores_capped: attention scores are capped.
        logits_capped: logits are capped.
        layer_types: of each layer, "sliding_attention" or "full_attention".
    """

    attention_bias: bool
    sandwich: bool
    head_norm: bool
    scores_capped: bool
    logits_capped: bool
    layer_types: tuple[str, ...]

    def window(self, layer: int) -> int | None:
        """The window of a layer, None for full attention."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None


def read(id: str, config: ConfigReader) -> GemmaSpec:
    """The spec of a config.json. Raises InputError where it makes no sense, and for bidirectional attention."""
    model_type = config.text("model_type")
    first = model_type == "gemma"
    defaults = _SHARED_DEFAULTS | _DEFAULTS[model_type]
    fields = decoder.dimensions(id, config, activation_key="hidden_act" if first else "hidden_activation", defaults=defaults)
    if config.boolean("use_bidirectional_attention", False):
        raise NotModelledError(
            f"{config.origin}: use_bidirectional_attention is not a causal model, which is what tuneplan plans"
        )
    scores, logits = (None, None) if first else _caps(config, model_type)
    if scores is not None and model_type != "gemma2":
        raise InputError(f"{config.origin}: attn_logit_softcapping is for Gemma 2; its sdpa kernel cannot cap scores. Remove it.")
    return GemmaSpec(
        **fields,
        sliding_window=None if first else config.integer("sliding_window", _WINDOW, maximum=2**30),
        attention_bias=config.boolean("attention_bias", False),
        sandwich=not first,
        head_norm=model_type == "gemma3_text",
        scores_capped=scores is not None,
        logits_capped=logits is not None,
        layer_types=_layer_types(config, model_type, fields["num_hidden_layers"]),
    )


def _caps(config: ConfigReader, model_type: str) -> tuple[float | None, float | None]:
    """The caps of scores and logits: null is none, an absent key is the default of the model type."""
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    scores, logits = (
        config.number(key) if config.has(key) else (None if key in config.mapping else default)
        for key, default in zip(keys, _CAPS[model_type], strict=True)
    )
    return scores, logits


def _layer_types(config: ConfigReader, model_type: str, layers: int) -> tuple[str, ...]:
    """As the config lists them, or every second (Gemma 2) or `sliding_window_pattern`-th (Gemma 3) layer full."""
    if model_type == "gemma":
        return (FULL,) * layers
    given = config.mapping.get("layer_types")
    if given is None:
        step = _FULL_EVERY[model_type]
        if model_type == "gemma3_text":
            step = config.integer("sliding_window_pattern", step)
        return tuple([FULL if (index + 1) % step == 0 else SLIDING for index in range(layers)])
    if not isinstance(given, list) or len(given) != layers or any(kind not in (SLIDING, FULL) for kind in given):
        raise InputError(
            f"{config.origin}: 'layer_types' must be a list of {layers} of {SLIDING!r} and {FULL!r}, one for each layer"
        )
    return tuple(given)


def start(model: Assembly, spec: GemmaSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, scaled embeddings, rotary tables and masks for both kinds of layers; returns what layers share.

    transformers runs eager attention where sdpa is asked of Gemma 2 (`_supports_sdpa` of its code).
    """
    if model.settings.attention == "sdpa" and spec.model_type == "gemma2":
        model.settings = replace(model.settings, attention="eager")
        model.notes["attention_kernel"] = "eager"
        model.notes["attention_kernel_reason"] = "sdpa cannot cap scores, so transformers runs Gemma 2 eagerly"
    windows = (None,) if spec.sliding_window is None else (None, spec.sliding_window)
    return decoder.start(model, EMBEDDING, (spec.head_dim,) * 2 * len(_kinds(spec)), windows, scaled=True)


def _kinds(spec: GemmaSpec) -> tuple[str, ...]:
    """The kinds of layers that have rotary tables of their own (Gemma 3)."""
    return tuple([kind for kind in (FULL, SLIDING) if kind in spec.layer_types]) if spec.head_norm else (FULL,)


def layer_form(model: Assembly, spec: GemmaSpec, index: int) -> object:
    """Layers differ where each kind has a mask of its own (eager), or only one kind gets one, and in their tables (Gemma 3)."""
    return spec.head_norm and spec.layer_types[index], decoder.layer_mask(model, spec.layer_types[index], spec.window(index))


def layer(model: Assembly, spec: GemmaSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    normed = _norm(model, entry, "input_layernorm")
    hidden, weights = _attention(model, spec, normed, shared)
    hidden = model.submodule("self_attn", normed, entry, hidden)
    if spec.sandwich:
        hidden = _norm(model, hidden, "post_attention_layernorm")
    residual = pw.add(tape, entry, hidden)
    normed = _norm(model, residual, "pre_feedforward_layernorm" if spec.sandwich else "post_attention_layernorm")
    hidden = model.submodule("mlp", normed, residual, gated_mlp(model, spec, normed))
    if spec.sandwich:
        hidden = _norm(model, hidden, "post_feedforward_layernorm")
    exit = pw.add(tape, residual, hidden)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_offset)


def _attention(model: Assembly, spec: GemmaSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    assert model.layer is not None
    window = spec.window(model.layer)
    kinds = _kinds(spec)
    place = 2 * kinds.index(spec.layer_types[model.layer]) if len(kinds) > 1 else 0
    tables, masks = shared[place : place + 2], shared[2 * len(kinds) :]
    if spec.sliding_window is not None:  # the window's mask is the last one
        masks = masks[:-1] if window is None else masks[-1:]
    kernel = kernel_of(model, spec, x, window)
    q, k, v = projected(model, spec, kernel, x, spec.attention_bias)
    if spec.head_norm:
        q, k = _norm(model, q, "self_attn.q_norm"), _norm(model, k, "self_attn.k_norm")
    return attended(model, spec, kernel, x, (q, k, v), (*tables, *masks), spec.attention_bias, spec.scores_capped)


def finish(model: Assembly, spec: GemmaSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = _norm(model, entry, "model.norm")
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head", "softcap" if spec.logits_capped else "")

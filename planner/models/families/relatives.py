"""Decoders of Llama's shape that differ in their norms, their MLP, their rotation or the windows of layers.

Mirrors, of transformers 5.23, the modelling files of smollm3, ministral, seed_oss, hunyuan_v1_dense, arcee, helium, glm, glm4 and
exaone4; internlm3 and iquestcoder are run by Llama's. `_VARIANTS` says how each differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.block import Block, close
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attended, fused_gated_mlp, gated_mlp, kernel_of, plain_mlp, projected
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.layer_kinds import FULL, SLIDING, layer_types, window_of

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class _Variant:
    """How an architecture differs from Llama.

    Attributes:
        defaults: of its configuration class, for keys that the file leaves out.
        bias: key of the biases of q, k, v, and its default; "" for none.
        output_bias: the same of the output projection.
        mlp_bias: the same of the MLP.
        mlp: "gated", "fused" (gate and up in one projection) or "plain" (no gate).
        before: norms of attention's and of the MLP's input; "" for none.
        after: norms of their outputs.
        head_norm: norms of queries and keys, and whether they come before the rotation.
        rotated: the part of each head that is rotated where the config does not say.
        tables_copied: each layer makes rotary tables of its own out of the shared ones, one column for each pair.
        in_parts: heads are cut for the rotation whatever the part.
        window: the default of `sliding_window`; 0 for an architecture without.
        full_every: every n-th layer has full attention.
        wide_norm: norms multiply in fp32.
        residual_dropout: its default.
    """

    defaults: dict[str, Any] = field(default_factory=dict)
    bias: tuple[str, bool] = ("attention_bias", False)
    output_bias: tuple[str, bool] = ("attention_bias", False)
    mlp_bias: tuple[str, bool] = ("", False)
    mlp: str = "gated"
    before: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, str] = ("", "")
    head_norm: tuple[str, str, bool] | None = None
    rotated: float = 1.0
    tables_copied: bool = False
    in_parts: bool = False
    window: int = 0
    full_every: int = 0
    wide_norm: bool = False
    residual_dropout: float = 0.0


def _sizes(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, positions: int, **rest: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        **rest,
    }


_GLM = _sizes(4096, 13696, 40, 32, 151552, 131072, num_key_value_heads=2, head_dim=128)
_NO_BIAS = ("", False)
_VARIANTS = {
    "internlm3": _Variant(
        _sizes(4096, 10240, 48, 32, 128512, 32768, num_key_value_heads=2, head_dim=128),
        ("qkv_bias", False),
        ("qkv_bias", False),
        ("bias", False),
    ),
    "iquestcoder": _Variant(
        _sizes(5120, 27648, 80, 40, 76800, 131072, num_key_value_heads=8, head_dim=128), mlp_bias=("mlp_bias", False)
    ),
    "smollm3": _Variant(
        _sizes(2048, 11008, 36, 16, 128256, 32768, num_key_value_heads=4, tie_word_embeddings=True),
        mlp_bias=("mlp_bias", False),
    ),
    "ministral": _Variant(_sizes(4096, 14336, 32, 32, 32000, 131072, num_key_value_heads=8), _NO_BIAS, _NO_BIAS, window=4096),
    "seed_oss": _Variant(
        _sizes(4096, 27648, 64, 80, 155136, 524288, num_key_value_heads=8, head_dim=128, attention_dropout=0.1),
        ("attention_bias", True),
        ("attention_out_bias", False),
        ("mlp_bias", False),
        residual_dropout=0.1,
    ),
    "hunyuan_v1_dense": _Variant(
        _sizes(4096, 11008, 32, 32, 290943, 2048), head_norm=("query_layernorm", "key_layernorm", False)
    ),
    "arcee": _Variant(_sizes(2560, 18432, 32, 32, 32000, 4096, hidden_act="relu2"), mlp_bias=("mlp_bias", False), mlp="plain"),
    "helium": _Variant(
        _sizes(2560, 7040, 24, 20, 48000, 4096, num_key_value_heads=20, head_dim=128),
        output_bias=_NO_BIAS,
        mlp_bias=("mlp_bias", False),
        tables_copied=True,
        wide_norm=True,
    ),
    "glm": _Variant(_GLM, ("attention_bias", True), _NO_BIAS, mlp="fused", rotated=0.5, tables_copied=True, in_parts=True),
    "glm4": _Variant(
        _GLM,
        ("attention_bias", True),
        _NO_BIAS,
        mlp="fused",
        rotated=0.5,
        tables_copied=True,
        in_parts=True,
        after=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "exaone4": _Variant(
        _sizes(4096, 16384, 32, 32, 102400, 2048, num_key_value_heads=32),
        _NO_BIAS,
        _NO_BIAS,
        before=("", ""),
        after=("post_attention_layernorm", "post_feedforward_layernorm"),
        head_norm=("q_norm", "k_norm", True),
        window=4096,
        full_every=4,
    ),
}


@dataclass(frozen=True, slots=True)
class RelativeSpec(DecoderSpec):
    """A model of these architectures.

    Attributes:
        variant: how the architecture differs.
        biases: of q, k and v; of the output projection; of the MLP.
        rotary_width: columns of each head that are rotated.
        layer_types: of each layer, "sliding_attention" or "full_attention".
        rotated_layers: whether queries and keys of each layer are rotated.
        residual_dropout: dropout of the outputs of attention and MLP.
    """

    variant: _Variant
    biases: tuple[bool, bool, bool]
    rotary_width: int
    layer_types: tuple[str, ...]
    rotated_layers: tuple[bool, ...]
    residual_dropout: float


def read(id: str, config: ConfigReader) -> RelativeSpec:
    """The spec of a config.json. Raises InputError where dimensions are absurd or contradict each other."""
    kind = config.text("model_type")
    variant = _VARIANTS[kind]
    fields = decoder.dimensions(id, config, defaults=variant.defaults)
    layers = fields["num_hidden_layers"]
    window, kinds = _windows(config, kind, variant, layers)
    rotated = _rotated(config, kind, layers)
    if kind == "exaone4" and window is not None:
        rotated = tuple([name == SLIDING for name in kinds])
    flags = [bool(key) and config.boolean(key, default) for key, default in (variant.bias, variant.output_bias, variant.mlp_bias)]
    drop = (
        config.number("residual_dropout", variant.residual_dropout, maximum=decoder.MOST_DROPOUT) if kind == "seed_oss" else 0.0
    )
    return RelativeSpec(
        **fields,
        sliding_window=window,
        variant=variant,
        biases=(flags[0], flags[1], flags[2]),
        rotary_width=decoder.rotary_width(config, fields["head_dim"], variant.rotated),
        layer_types=kinds,
        rotated_layers=rotated,
        residual_dropout=drop,
    )


def _windows(config: ConfigReader, kind: str, variant: _Variant, layers: int) -> tuple[int | None, tuple[str, ...]]:
    """The window, None for none, and the kind of each layer."""
    if kind == "smollm3" and config.boolean("use_sliding_window", False):
        raise InputError(f"{config.origin}: use_sliding_window is not planned by tuneplan for SmolLM3; use plan trace")
    absent = "sliding_window" not in config.mapping
    given = config.optional_integer("sliding_window", maximum=2**30) if variant.window else None
    window = variant.window if variant.window and absent else given
    if window is None:
        return None, (FULL,) * layers
    if not variant.full_every:
        return window, layer_types(config, layers, 0, key="") if config.has("layer_types") else (SLIDING,) * layers
    return window, layer_types(config, layers, variant.full_every)


def _rotated(config: ConfigReader, kind: str, layers: int) -> tuple[bool, ...]:
    """SmolLM3 leaves every fourth layer without positions, or those with a 0 in `no_rope_layers`."""
    if kind != "smollm3":
        return (True,) * layers
    given = config.mapping.get("no_rope_layers")
    if given is None:
        step = config.integer("no_rope_layer_interval", 4)
        return tuple([(index + 1) % step != 0 for index in range(layers)])
    if not isinstance(given, list) or len(given) != layers or any(flag not in (0, 1) for flag in given):
        raise InputError(f"{config.origin}: 'no_rope_layers' must be a list of {layers} of 0 and 1, one for each layer")
    return tuple([bool(flag) for flag in given])


def start(model: Assembly, spec: RelativeSpec) -> tuple[Block, tuple[Tensor, ...]]:
    """Token ids, embeddings, rotary tables and the masks; returns what layers share."""
    kinds = [kind for kind in (FULL, SLIDING) if kind in spec.layer_types]
    windows = tuple([window_of((kind,), 0, spec.sliding_window) for kind in kinds])
    return decoder.start(model, EMBEDDING, (spec.rotary_width,) * 2, windows)


def layer_form(model: Assembly, spec: RelativeSpec, index: int) -> object:
    """Layers differ in their mask and in whether they are rotated."""
    window = window_of(spec.layer_types, index, spec.sliding_window)
    return spec.rotated_layers[index], decoder.layer_mask(model, spec.layer_types[index], window)


def layer(model: Assembly, spec: RelativeSpec, entry: Tensor, shared: tuple[Tensor, ...]) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    tape = model.tape
    weights: tuple[Tensor, ...] = ()

    def attention(x: Tensor) -> Tensor:
        nonlocal weights
        y, weights = _attention(model, spec, x, shared)
        return y

    residual = _half(model, spec, entry, 0, "self_attn", attention)
    exit = _half(model, spec, residual, 1, "mlp", lambda x: _mlp(model, spec, x))
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    return close("layer", tape, entry, exit)


def _half(
    model: Assembly, spec: RelativeSpec, residual: Tensor, index: int, name: str, run: Callable[[Tensor], Tensor]
) -> Tensor:
    """Norm, module, dropout, norm and the sum with what came in."""
    before, after = spec.variant.before[index], spec.variant.after[index]
    normed = _norm(model, spec, residual, before) if before else residual
    y = run(normed)
    if spec.residual_dropout:
        y = pw.dropout(model.tape, y, spec.residual_dropout)
        model.tape.hold(normed)
    y = model.submodule(name, normed, residual, y)
    return pw.add(model.tape, residual, _norm(model, spec, y, after) if after else y)


def _norm(model: Assembly, spec: RelativeSpec, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_cast if spec.variant.wide_norm else pw.rms_norm)


def _mlp(model: Assembly, spec: RelativeSpec, x: Tensor) -> Tensor:
    if spec.variant.mlp == "plain":
        return plain_mlp(model, spec, x, "mlp.up_proj", "mlp.down_proj", spec.biases[2])
    return fused_gated_mlp(model, spec, x) if spec.variant.mlp == "fused" else gated_mlp(model, spec, x, spec.biases[2])


def _attention(model: Assembly, spec: RelativeSpec, x: Tensor, shared: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Self-attention; also returns attention weights that the layer's code holds (eager)."""
    assert model.layer is not None
    window = window_of(spec.layer_types, model.layer, spec.sliding_window)
    tables, masks = shared[:2], shared[2:]
    if len(masks) > 1 or (masks and window is None and spec.sliding_window is not None):
        both = len(set(spec.layer_types)) > 1
        masks = (masks[-1:] if window is not None else masks[:-1]) if both else masks
    kernel = kernel_of(model, spec, x, window)
    turned = spec.rotated_layers[model.layer]
    names = spec.variant.head_norm
    q, k, v = projected(model, spec, kernel, x, spec.biases[0], rotary=turned or names is not None)

    def norms(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert names is not None
        return model.rms_norm(q, f"self_attn.{names[0]}"), model.rms_norm(k, f"self_attn.{names[1]}")

    if names is not None and names[2]:
        q, k = norms(q, k)
    if spec.variant.tables_copied:
        tables = tuple([pw.copy(model.tape, table, "repeat_interleave") for table in tables])
    given = (*tables, *masks) if turned else masks
    late = norms if names is not None and not names[2] else None
    parts = spec.variant.in_parts
    return attended(model, spec, kernel, x, (q, k, v), given, spec.biases[1], in_parts=parts, rotary=turned, after=late)


def finish(model: Assembly, spec: RelativeSpec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    return decoder.finish(model, spec, entry, _norm(model, spec, entry, "model.norm"), EMBEDDING, "lm_head")

"""Gemma 4 (text): heads of two sizes, norms of queries, keys and values, inputs of each layer, shared keys, experts.

Mirrors transformers 5.23 models/gemma4/modeling_gemma4.py (`Gemma4ForCausalLM`). Layers with full attention have fewer and larger
heads (`global_head_dim`, `num_global_key_value_heads`); the last `num_kv_shared_layers` attend to the keys and values of the last
earlier layer of their kind (`KVSharingDict`); `hidden_size_per_layer_input` gives each layer an embedding of its own.
"""

from dataclasses import dataclass, field, replace

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph import routing as rt
from tuneplan.planner.graph.block import Block, behind, close
from tuneplan.planner.graph.in_place import scale_in_place
from tuneplan.planner.graph.matmul import embedding
from tuneplan.planner.graph.tensor import Tensor
from tuneplan.planner.methods.side_network import SideNetwork
from tuneplan.planner.models import decoder
from tuneplan.planner.models.assembly import Assembly
from tuneplan.planner.models.attention import attend, fuses_values, gated_mlp, heads_first, kernel_of, split_heads, stored
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.decoder import DecoderSpec
from tuneplan.planner.models.expert_weights import Experts
from tuneplan.planner.models.layer_kinds import FULL, SLIDING, layer_types
from tuneplan.planner.models.moe import Routed, run_experts
from tuneplan.planner.models.router_logits import KEPT, asked, record
from tuneplan.planner.training.attention_kernel import Kernel

LAYERS = "model.layers.*."
EMBEDDING = "model.embed_tokens"
PER_LAYER = "model.embed_tokens_per_layer"
OWN, STORE, REUSE = "own", "store", "reuse"
_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, slots=True)
class Gemma4Spec(DecoderSpec):
    """A Gemma 4 model; `head_dim` and `num_key_value_heads` are those of layers with a window.

    Attributes:
        attention_bias: biases on q, k, v and o.
        logits_capped: logits are capped.
        layer_types: of each layer, "sliding_attention" or "full_attention".
        global_head_dim: head size of layers with full attention.
        global_key_value_heads: their key/value heads.
        keys_are_values: in layers with full attention values come out of the projection of the keys.
        sharing: of each layer, whether its keys and values are its "own", its own that others read ("store"), or another's.
        per_layer_width: columns of the input that each layer has of its own; 0 for none.
        per_layer_vocabulary: rows of the table of these inputs.
        double_wide: the MLPs of layers that share keys are twice as wide.
        num_experts: of each layer, beside its MLP; 0 for none.
        top_k: experts of a token.
        moe_intermediate_size: width inside an expert.
    """

    attention_bias: bool
    logits_capped: bool
    layer_types: tuple[str, ...]
    global_head_dim: int
    global_key_value_heads: int
    keys_are_values: bool
    sharing: tuple[str, ...]
    per_layer_width: int
    per_layer_vocabulary: int
    double_wide: bool
    num_experts: int
    top_k: int
    moe_intermediate_size: int

    def window(self, layer: int) -> int | None:
        """The window of a layer, None for full attention."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    def of(self, layer: int) -> "Gemma4Spec":
        """The sizes of a layer's attention."""
        if self.layer_types[layer] == SLIDING:
            return self
        return replace(self, head_dim=self.global_head_dim, num_key_value_heads=self.global_key_value_heads)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that it has, that of full attention first."""
        return tuple([kind for kind in (FULL, SLIDING) if kind in self.layer_types])


def read(id: str, config: ConfigReader) -> Gemma4Spec:
    """The spec of a config.json. Raises InputError where it makes no sense, and for bidirectional attention."""
    fields = decoder.dimensions(id, config, activation_key="hidden_activation", defaults=_DEFAULTS)
    if config.text("use_bidirectional_attention", "") == "all":
        raise NotModelledError(
            f"{config.origin}: use_bidirectional_attention=all is not a causal model, which is what tuneplan plans"
        )
    layers = fields["num_hidden_layers"]
    kinds = layer_types(config, layers, 6, key="")
    kinds = (*kinds[:-1], FULL)  # `Gemma4TextConfig.__post_init__`
    same = config.boolean("attention_k_eq_v", False)
    keys = config.integer("num_global_key_value_heads", fields["num_key_value_heads"], maximum=2**16)
    if not same:
        keys = fields["num_key_value_heads"]
    if fields["num_attention_heads"] % keys:
        raise InputError(
            f"{config.origin}: num_attention_heads={fields['num_attention_heads']} is not a multiple of "
            f"num_global_key_value_heads={keys}; check the config"
        )
    wide = config.integer("global_head_dim", 512, maximum=2**14)
    if wide % 2:
        raise InputError(f"{config.origin}: global_head_dim={wide} is odd, which rotary positions cannot be; check the config")
    count, top_k, inside = _experts_of(config)
    return Gemma4Spec(
        **fields,
        sliding_window=config.integer("sliding_window", 512, maximum=2**30),
        attention_bias=config.boolean("attention_bias", False),
        logits_capped=config.has("final_logit_softcapping") and config.number("final_logit_softcapping") > 0,
        layer_types=kinds,
        global_head_dim=wide,
        global_key_value_heads=keys,
        keys_are_values=same,
        sharing=_sharing(config, kinds),
        per_layer_width=config.integer("hidden_size_per_layer_input", 256, minimum=0, maximum=2**16),
        per_layer_vocabulary=config.integer("vocab_size_per_layer_input", 262144),
        double_wide=config.boolean("use_double_wide_mlp", False),
        num_experts=count,
        router_logits=asked(config, KEPT) if count else "",
        top_k=top_k,
        moe_intermediate_size=inside,
    )


def _experts_of(config: ConfigReader) -> tuple[int, int, int]:
    """Experts of a layer, of a token, and the width inside one; zeros for a model without."""
    if not config.boolean("enable_moe_block", False):
        return 0, 0, 0
    count, top_k = config.integer("num_experts", maximum=2**16), config.integer("top_k_experts", maximum=2**10)
    if top_k > count:
        raise InputError(f"{config.origin}: top_k_experts={top_k}, but there are {count} experts; check the config")
    return count, top_k, config.integer("moe_intermediate_size")


def _sharing(config: ConfigReader, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Whose keys and values each layer attends to (`Gemma4TextConfig.kv_sharing_modes`)."""
    layers = len(kinds)
    shared = config.integer("num_kv_shared_layers", 0, minimum=0, maximum=2**12)
    if not shared:
        return (OWN,) * layers
    first = layers - shared
    if first < 1 or set(kinds[:first]) != set(kinds):
        raise InputError(
            f"{config.origin}: num_kv_shared_layers={shared} of {layers} leaves no earlier layer of each kind whose keys and "
            "values they could read; check the config"
        )
    stores = {first - 1 - kinds[:first][::-1].index(kind) for kind in kinds}
    return tuple([STORE if index in stores else OWN if index < first else REUSE for index in range(layers)])


@dataclass(slots=True)
class _Shared:
    """What layers share.

    Attributes:
        tables: cosines and sines, by kind of layer.
        masks: the mask, if there is one, by kind of layer.
        inputs: of all layers `(batch, length, layers * width)`; None for a model without.
        keys: keys and values that layers of a kind read, once the layer that stores them is recorded.
    """

    tables: dict[str, tuple[Tensor, ...]]
    masks: dict[str, tuple[Tensor, ...]]
    inputs: Tensor | None
    keys: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def start(model: Assembly, spec: Gemma4Spec) -> tuple[Block, _Shared]:
    """Token ids, scaled embeddings, tables, masks and the layers' own inputs; returns what layers share."""
    for part in model.method.parts:
        if isinstance(part, SideNetwork):
            raise InputError(f"{part.label} is not modelled for Gemma 4, whose layers share more than tables and masks; use lora")
    if spec.per_layer_width and model.method.virtual_tokens:
        raise InputError(
            f"{spec.id} looks up an input of each layer by token ids (hidden_size_per_layer_input), which virtual tokens do not "
            "have, and so fails with them; use lora"
        )
    if model.method.prefix_length:
        raise InputError(
            f"{spec.id}: peft gives prefixes only to those layers of Gemma 4 whose heads fit them, which tuneplan does not know; "
            "use prompt_tuning or lora, or plan trace"
        )
    widths: list[int] = []
    for kind in spec.kinds:
        widths += [spec.global_head_dim if kind == FULL else spec.head_dim] * 2
    windows = tuple([None if kind == FULL else spec.sliding_window for kind in spec.kinds])
    beside = (lambda hidden: _inputs(model, spec, hidden)) if spec.per_layer_width else None
    block, shared = decoder.start(model, EMBEDDING, tuple(widths), windows, scaled=True, beside=beside)
    tables = {kind: shared[2 * place : 2 * place + 2] for place, kind in enumerate(spec.kinds)}
    inputs, rest = (shared[-1], shared[len(widths) : -1]) if beside else (None, shared[len(widths) :])
    given = list(rest)
    masks: dict[str, tuple[Tensor, ...]] = {}
    for kind, window in zip(spec.kinds, windows, strict=True):
        has = model.settings.attention == "eager" or (model.settings.attention == "sdpa" and decoder.masked(model, window))
        masks[kind] = (given.pop(0),) if has else ()
    return block, _Shared(tables, masks, inputs)


def _inputs(model: Assembly, spec: Gemma4Spec, hidden: Tensor) -> Tensor:
    """`get_per_layer_inputs` and `project_per_layer_inputs`: of all layers beside each other."""
    tape = model.tape
    batch, length = model.token_shape
    width = spec.num_hidden_layers * spec.per_layer_width
    apart = (batch, length, spec.num_hidden_layers, spec.per_layer_width)
    table = model.weight(PER_LAYER, (spec.per_layer_vocabulary, width), "embedding")
    words = pw.scale(tape, embedding(tape, (batch, length), table), "embed_scale")
    projected = pw.scale(tape, model.linear(hidden, "model.per_layer_model_projection", width))
    normed = _norm(model, tape.view("view", projected, apart), "model.per_layer_projection_norm")
    total = pw.add(tape, normed, tape.view("view", words, apart))
    out = pw.scale(tape, total, "per_layer_input_scale")
    tape.hold(words, normed, total)
    out.crosses = True
    return out


def layer_kind(spec: Gemma4Spec, index: int) -> str:
    """Heads differ with the kind of layer, and layers that read another's keys have no projections of their own."""
    reads = "reuse" if spec.sharing[index] == REUSE else ""
    return f"{spec.layer_types[index]}{reads}"


def layer_form(model: Assembly, spec: Gemma4Spec, index: int) -> object:
    """Layers differ in their mask, and in whether their keys are read by others."""
    return decoder.layer_mask(model, spec.layer_types[index], spec.window(index)), spec.sharing[index]


def layer(model: Assembly, spec: Gemma4Spec, entry: Tensor, shared: _Shared) -> Block:
    """A decoder layer. `entry`: the hidden states `(batch, length, hidden_size)`."""
    assert model.layer is not None
    tape = model.tape
    own = None if shared.inputs is None else pw.narrow(tape, shared.inputs, (*entry.shape[:-1], spec.per_layer_width))
    normed = _norm(model, entry, "input_layernorm")
    hidden, weights, read = _attention(model, spec, normed, shared)
    hidden = _norm(model, model.submodule("self_attn", normed, entry, hidden), "post_attention_layernorm")
    residual = pw.add(tape, entry, hidden)
    normed = _norm(model, residual, "pre_feedforward_layernorm")
    twice = spec.double_wide and spec.sharing[model.layer] == REUSE
    hidden = gated_mlp(model, spec, normed, width=spec.intermediate_size * (2 if twice else 1))
    hidden = model.submodule("mlp", normed, residual, hidden)
    if spec.num_experts:
        hidden = _with_experts(model, spec, residual, hidden)
    exit = pw.add(tape, residual, _norm(model, hidden, "post_feedforward_layernorm"))
    if own is not None:
        exit = _with_input(model, spec, exit, own)
    exit = scale_in_place(tape, exit)
    for part in model.method.parts:
        exit = part.layer_exit(model, exit)
    tape.hold(*weights)
    block = close("layer", tape, entry, exit, tuple([tensor.storage for tensor in read]))
    if model.settings.gradient_checkpointing == "non-reentrant":  # its second forward puts its keys into `shared_kv_states` again
        block.left = behind(tape, *read)
    return block


def _norm(model: Assembly, x: Tensor, module: str) -> Tensor:
    return model.rms_norm(x, module, pw.rms_norm_power)


def _attention(
    model: Assembly, spec: Gemma4Spec, x: Tensor, shared: _Shared
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Self-attention; also attention weights that the layer's code holds (eager), and keys and values that later layers read."""
    assert model.layer is not None
    tape, kind, sizes = model.tape, spec.layer_types[model.layer], spec.of(model.layer)
    sharing = spec.sharing[model.layer]
    kernel = kernel_of(model, sizes, x, spec.window(model.layer))
    q = model.linear(x, "self_attn.q_proj", sizes.num_attention_heads * sizes.head_dim, spec.attention_bias)
    q = _norm(model, split_heads(model, q, sizes.head_dim), "self_attn.q_norm")
    tape.scope = "self_attn"
    tables = shared.tables[kind]
    q = heads_first(model, pw.rotate(tape, q, *tables), copied=kernel.name not in ("flash", "efficient"))
    if sharing == REUSE:
        k, v = shared.keys[kind]
    else:
        k, v = stored(model, *_keys(model, sizes, kernel, x, tables, kind == FULL))
    read: tuple[Tensor, ...] = ()
    if sharing == STORE:
        read = k, v
        if model.settings.gradient_checkpointing == "reentrant":  # made without a graph
            shared.keys[kind] = pw.detached(k), pw.detached(v)
        else:
            k.crosses = v.crosses = True
            shared.keys[kind] = k, v
    out, weights, held = attend(model, sizes, kernel, (q, k, v), shared.masks[kind], own=False)
    tape.scope = ""
    y = model.linear(out, "self_attn.o_proj", spec.hidden_size, spec.attention_bias)
    tape.hold(x, *held)
    return y, weights, read


def _keys(
    model: Assembly, sizes: Gemma4Spec, kernel: Kernel, x: Tensor, tables: tuple[Tensor, ...], full: bool
) -> tuple[Tensor, Tensor]:
    """Keys, normed and rotated, and values, normed without a weight: `(batch, heads, length, head_dim)`."""
    tape = model.tape
    width, copied = sizes.num_key_value_heads * sizes.head_dim, not fuses_values(sizes, kernel)
    first = split_heads(model, model.linear(x, "self_attn.k_proj", width, sizes.attention_bias), sizes.head_dim)
    if full and sizes.keys_are_values:
        second = first
    else:
        second = split_heads(model, model.linear(x, "self_attn.v_proj", width, sizes.attention_bias), sizes.head_dim)
    k = pw.rotate(tape, _norm(model, first, "self_attn.k_norm"), *tables)
    k = heads_first(model, k, copied)
    v = heads_first(model, pw.rms_norm_power(tape, second, None), copied)
    tape.hold(second)
    return k, v


def _with_experts(model: Assembly, spec: Gemma4Spec, residual: Tensor, hidden: Tensor) -> Tensor:
    """The sum of the MLP's output and that of the experts, which take what entered the MLP's norm."""
    tape = model.tape
    first = _norm(model, hidden, "post_feedforward_layernorm_1")
    batch, length, width = residual.shape
    flat = tape.view("reshape", residual, (batch * length, width))
    routed = _router(model, spec, flat)
    x = _norm(model, flat, "pre_feedforward_layernorm_2")
    experts = Experts("experts", spec.num_experts, spec.top_k, width, spec.moe_intermediate_size, spec.hidden_act)
    y = tape.view("reshape", run_experts(model, x, routed, experts), residual.shape)
    second = _norm(model, y, "post_feedforward_layernorm_2")
    total = pw.add(tape, first, second)
    tape.hold(hidden, first, second, *routed.held, routed.weights, routed.experts)
    return total


def _router(model: Assembly, spec: Gemma4Spec, x: Tensor) -> Routed:
    """`Gemma4TextRouter`: a norm, a scale, a linear module, softmax in fp32, and a scale of each expert."""
    tape = model.tape
    tape.scope = "router"
    normed = pw.rms_norm_power(tape, x, None)
    scale = model.weight("router", (spec.hidden_size,), "other", "scale")
    scaled = pw.scale(tape, pw.multiply(tape, normed, scale))
    tape.hold(normed)
    logits = model.linear(scaled, "router.proj", spec.num_experts)
    tape.scope = "router"
    probabilities = pw.softmax(tape, pw.cast(tape, logits, "fp32"))
    record(model, probabilities)
    values, chosen = rt.topk(tape, probabilities, spec.top_k)
    values = rt.divide_in_place(tape, values, rt.summed(tape, values, (x.shape[0], 1)))
    each = model.weight("router", (spec.num_experts,), "other", "per_expert_scale")
    weights = pw.multiply(tape, values, rt.gather(tape, each, chosen, values.shape))
    tape.hold(scaled, logits, values)
    tape.scope = ""
    return Routed(weights, chosen, (probabilities,))


def _with_input(model: Assembly, spec: Gemma4Spec, residual: Tensor, own: Tensor) -> Tensor:
    """The residual plus what the layer's own input gates."""
    tape = model.tape
    gate = model.linear(residual, "per_layer_input_gate", spec.per_layer_width)
    active = pw.activation(tape, gate, spec.hidden_act)
    product = pw.multiply(tape, active, own)
    y = _norm(model, model.linear(product, "per_layer_projection", spec.hidden_size), "post_per_layer_input_norm")
    return pw.add(tape, residual, y)


def finish(model: Assembly, spec: Gemma4Spec, entry: Tensor) -> Block:
    """Final norm, head and loss."""
    model.begin("", 1)
    hidden = _norm(model, entry, "model.norm")
    return decoder.finish(model, spec, entry, hidden, EMBEDDING, "lm_head", "softcap" if spec.logits_capped else "")

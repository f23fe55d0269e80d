"""Prefix tuning: trained keys and values stand before those of each layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding, linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block, tensor_bytes
from tuneplan.planner.methods import decoder_prefix, gate
from tuneplan.planner.methods.layer_span import Layered
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.prompt_tuning import check_tokens
from tuneplan.planner.models.tasks import SEQ2SEQ

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class PrefixTuning(Layered):
    """Attention over [P_k; K] and [P_v; V] with P trained, for every layer.

    Attributes:
        num_virtual_tokens: rows of P; every query sees so many keys more.
        prefix_projection: P comes out of a trained two-layer MLP; what is saved is P.
        encoder_hidden_size: width of that MLP; 0 for the model's key width.
        past_key_values: as PEFT does it, prefixes are a cache, which keeps every layer's keys and values to the end of the
            forward; without, they are joined to each layer's own as in the adapters library, and gradients go as they come.
        use_gating: each layer's prefix is multiplied by a gate from the layer's input (Mao et al. 2022, UniPELT).
    """

    label: ClassVar[str] = "prefix_tuning"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Li and Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation"
    source: ClassVar[str] = "section 4.2 and 4.3; peft 0.21 peft_model.py get_prompt, tuners/prefix_tuning/model.py"
    not_modelled: ClassVar[str] = (
        "gradient checkpointing, which peft refuses; where only some layers have a prefix, the mask and the cache of all count it"
    )
    mergeable: ClassVar[bool] = False
    batchable: ClassVar[bool] = True

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int = 0
    past_key_values: bool = True
    use_gating: bool = False

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for virtual tokens beyond the context, and with gradient checkpointing."""
        check_tokens(self.label, self.num_virtual_tokens, spec, settings)
        if settings.gradient_checkpointing != "off":
            raise InputError(
                "prefix_tuning does not work with gradient checkpointing (peft refuses it: a recomputed layer would append to "
                "the cache again); use --no-gradient-checkpointing, or prompt_tuning"
            )

    def allows(self, settings: "Settings") -> bool:
        """Only without gradient checkpointing."""
        return settings.gradient_checkpointing == "off"

    def at_inference(self) -> Part | None:
        """Nothing: the prefix is in the cache."""
        return None

    def cached_tokens(self) -> int:
        """The prefix."""
        return self.num_virtual_tokens

    def layer_form(self, index: int, count: int) -> object:
        """Whether the layer has a prefix."""
        return self.in_layer(index)

    def prefix_length(self) -> int:
        """The prefix."""
        return self.num_virtual_tokens

    def peft_config(self) -> dict[str, Any] | None:
        """`PrefixTuningConfig` of peft 0.21, which has prefixes in all layers, and no gates."""
        if self.layers or self.use_gating or not self.past_key_values:
            return None
        width = {"encoder_hidden_size": self.encoder_hidden_size} if self.encoder_hidden_size else {}
        rest = {"num_virtual_tokens": self.num_virtual_tokens, "prefix_projection": self.prefix_projection, **width}
        return {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", **rest}

    def embedded(self, model: "Assembly", hidden: Tensor) -> Tensor:
        """Make the prefixes of all layers, once for each sequence, and copy each into the cache."""
        tape, spec, count = model.tape, model.spec, self.num_virtual_tokens
        batch = hidden.shape[0]
        width = spec.num_key_value_heads * spec.head_dim
        layers = len(self.layers) or spec.num_hidden_layers
        every = 2 * layers * width
        given = self.produced(model, batch, every)
        if given is not None:
            wide = given
        elif self.prefix_projection:
            inner = self.encoder_hidden_size or width
            table = model.common("prompt_encoder.embedding.weight", (count, width), "fp32", saved=False)
            wide = embedding(tape, (batch, count), table)
            wide = self._dense(model, wide, 0, inner)
            active = tape.fresh(wide.shape, "fp32", True)
            tape.record("tanh", (wide,), active, saved=(active,), gradients=(Gradient(wide, round_block(wide.nbytes)),))
            wide = self._dense(model, active, 2, every)
            model.extra_saved_bytes += 4 * count * every
        else:
            wide = embedding(tape, (batch, count), model.common("prompt_encoder.embedding.weight", (count, every), "fp32"))
        narrow = pw.cast(tape, wide, hidden.dtype)
        size = round_block(narrow.nbytes)
        length, readers, scratch = model.settings.seq_len, layers, None
        if spec.task == SEQ2SEQ:
            length, readers = model.settings.target_length, getattr(spec, "decoder_layers", layers)
            cached = self._of_decoder(model, narrow, layers, readers)
            size, scratch = 0, decoder_prefix.SCRATCH * tensor_bytes((batch, count, width), hidden.dtype)
        else:
            cached = tape.fresh(narrow.shape, narrow.dtype, True)
            pieces = 1 if self.use_gating else 2 * layers
            cached.storage.nbytes = pieces * round_block(narrow.nbytes // pieces)
            tape.record("cache", (narrow,), cached, gradients=(Gradient(narrow, size),))
            tape.ops[-1].pieces = pieces
        # A layer's gradients stay as they come, views of those of its keys and values, until every layer's are there.
        gradient = tensor_bytes(self._prefix(model) if self.use_gating else self._joined(model, length), hidden.dtype)
        halves = []
        for fresh in (size, 0):
            halves.append(tape.view("half", cached, cached.shape))
            tape.ops[-1].gradients = (Gradient(cached, fresh, scratch=scratch),)
            tape.side.append((halves[-1], gradient, readers))
        (tape.held if self.use_gating else tape.handed).append(cached.storage)  # a gate keeps what it multiplies
        model.prefix = (halves[0], halves[1])
        return hidden

    def _of_decoder(self, model: "Assembly", prefixes: Tensor, layers: int, readers: int) -> Tensor:
        """The cache of an encoder-decoder. Raises InputError for what peft does not have there."""
        if self.layers or self.use_gating or not self.past_key_values:
            raise InputError(
                f"{self.label}: prefixes of an encoder-decoder such as {model.spec.id} are modelled as peft makes them: in a "
                "cache, in all layers, without gates; leave the options out"
            )
        read = len(decoder_prefix.read_by(layers, readers))
        if read < layers:
            model.notes["assumed"] = (
                f"peft gives layer i of {model.spec.id}'s decoder the prefix of layer 2i modulo {layers}, so only {read} of the "
                f"{layers} prefixes that are trained have an effect"
            )
        return decoder_prefix.cached(model, prefixes, layers, readers)

    def produced(self, model: "Assembly", batch: Size, width: int) -> Tensor | None:
        """Prefixes `(batch, rows, width)` that something else makes, all layers beside each other; None to train them here."""
        return None

    def _dense(self, model: "Assembly", x: Tensor, index: int, width: int) -> Tensor:
        name = f"prompt_encoder.transform.{index}"
        weight = model.common(f"{name}.weight", (width, int(x.shape[-1])), "fp32", saved=False)
        return linear(model.tape, x, weight, model.common(f"{name}.bias", (width,), "fp32", saved=False))

    def _joined(self, model: "Assembly", length: Size) -> tuple[Size, ...]:
        spec = model.spec
        return (model.settings.sequences, spec.num_key_value_heads, length + self.num_virtual_tokens, spec.head_dim)

    def _prefix(self, model: "Assembly") -> tuple[Size, ...]:
        spec = model.spec
        return (model.settings.micro_batch_size, spec.num_key_value_heads, self.num_virtual_tokens, spec.head_dim)

    def keys_values(self, model: "Assembly", keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Join the cached prefix and the layer's own; the cache holds the result."""
        tape = model.tape
        if not self.in_layer(model.layer):
            return keys, values
        assert model.prefix is not None
        joined = []
        prefixes = model.prefix
        if self.use_gating:
            if model.attention_input is None:
                raise InputError(
                    f"prefix_tuning: gates are modelled for decoders, not for {model.spec.model_type}; leave them out"
                )
            share = gate.record(model, "self_attn.prefix_gate", model.attention_input, dims=4)
            first, second = [pw.multiply(tape, tape.view("slice", t, self._prefix(model)), share) for t in prefixes]
            prefixes = (first, second)
        for own, prefix in zip((keys, values), prefixes, strict=True):
            out = tape.fresh(self._joined(model, own.shape[2]), own.dtype, True)
            tape.record("cache", (own,), out, gradients=(Gradient(own, None), Gradient(prefix, None)))
            if not self.use_gating:
                pieces = 2 * (len(self.layers) or model.spec.num_hidden_layers)
                tape.ops[-1].spends = ((round_block(prefix.nbytes // pieces), prefix.storage.category),)
            if self.past_key_values:
                tape.outputs.append(out.storage)
            joined.append(out)
        return joined[0], joined[1]

"""HyperTuning: a hypermodel reads a few examples and writes the prefix of a frozen model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.matmul import embedding, linear
from tuneplan.planner.graph.tape import Tape
from tuneplan.planner.graph.tensor import Size, Tensor, round_block
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.prefix_tuning import PrefixTuning

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class HyperTuning(PrefixTuning):
    """P = H(M(examples)): M a trained model of the same kind, H a linear map from its last states to every layer's prefix.

    Attributes:
        example_tokens: length of the examples that M reads for each sequence.
        hyper_layers: decoder layers of M; 0 for as many as the frozen model has.
    """

    label: ClassVar[str] = "hypertuning"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Phang et al. 2023, HyperTuning: Toward Adapting Large Language Models without Back-propagation"
    source: ClassVar[str] = "section 3 (HyperT5-Prefix): training of the hypermodel"
    not_modelled: ClassVar[str] = (
        "an encoder-decoder as hypermodel and a two-layer head: here a decoder with a linear one; LoRA as what is written; the "
        "hypermodel at inference, which runs once a task. Tuning a task without training is one forward of the hypermodel"
    )
    code_changes: ClassVar[str] = "a second model, and a head that writes the first one's prefix"
    one_stack: ClassVar[bool] = True
    effort: ClassVar[str] = "model code"

    num_virtual_tokens: int = 16
    example_tokens: int = 512
    hyper_layers: int = 0
    past_key_values: bool = False

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError as for a prefix, and for examples shorter than it."""
        PrefixTuning.check_spec(self, spec, settings)
        if self.example_tokens < self.num_virtual_tokens or self.example_tokens > spec.max_position_embeddings:
            raise InputError(
                f"hypertuning: example_tokens={self.example_tokens} must be from num_virtual_tokens={self.num_virtual_tokens} to "
                f"the {spec.max_position_embeddings} positions of {spec.id}"
            )
        if not 0 <= self.hyper_layers <= spec.num_hidden_layers:
            raise InputError(f"hypertuning: hyper_layers={self.hyper_layers}, but {spec.id} has {spec.num_hidden_layers} layers")
        if self.layers or self.use_gating or self.prefix_projection:
            raise InputError(
                "hypertuning: the hypermodel writes the prefix of every layer; leave out layers, gates and projection"
            )

    def peft_config(self) -> None:
        """PEFT does not have it."""
        return

    def produced(self, model: "Assembly", batch: Size, width: int) -> Tensor:
        """Run the hypermodel on the examples; its last states become the prefixes."""
        from tuneplan.planner.models.registry import family

        tape, spec = model.tape, model.spec
        length, count, dtype = self.example_tokens, self.num_virtual_tokens, model.settings.dtype
        examples = tape.fresh((batch, length), "int64", False)
        tape.record("examples", (), examples)
        inner = model.within("hyper", spec, Method("hypermodel", (Full(),)))
        x = embedding(tape, (batch, length), inner.weight("embed_tokens", (spec.vocab_size, spec.hidden_size), "embedding"))
        tables = []
        for name in ("cos", "sin"):
            table = tape.fresh((1, length, spec.head_dim), dtype, False)
            tables.append(tape.record(f"hyper_{name}", (), table, scratch=3 * round_block(2 * table.nbytes)))
        inner.rotary = tuple(tables)
        masks: tuple[Tensor, ...] = ()
        if model.settings.attention == "eager":  # one for each kind of layer that a family may have
            mask = tape.fresh((batch, 1, length, length), dtype, False)
            masks = (tape.record("causal_mask", (), mask),) * 2
        for index in range(self.hyper_layers or spec.num_hidden_layers):
            layer = model.within(f"hyper.layers.{index}", spec, Method("hypermodel", (Full(),)))
            layer.rotary, layer.layer = inner.rotary, index
            layer.tape = Tape(tape.autocast)  # of its own while it is recorded: a layer looks over all of its tape when it ends
            x = family(spec.model_type).layer(layer, spec, x, (*inner.rotary, *masks)).exit
            tape.append(layer.tape)
            model.adopt(layer)
        x = inner.rms_norm(x, "norm")
        model.adopt(inner)
        states: Any = pw.copy(tape, pw.narrow(tape, x, (batch, count, spec.hidden_size)))  # no matmul of torch takes a slice
        head = model.common("hyper.head.weight", (width, spec.hidden_size), dtype)
        out = linear(tape, states, head, model.common("hyper.head.bias", (width,), dtype))
        tape.scope = ""
        return out

"""LLaMA-Adapter: in the top layers, queries also attend to a trained prompt, through a gate that starts at zero."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.attention import repeat_heads
from tuneplan.planner.graph.matmul import batched, linear
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Tensor, round_block
from tuneplan.planner.methods.part import Part

if TYPE_CHECKING:
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.spec import ModelSpec
    from tuneplan.planner.training.settings import Settings

MODEL_TYPES = ("llama", "mistral")


@dataclass(frozen=True, slots=True)
class AdaptionPrompt(Part):
    """y = attention(x) + W_o (g softmax(q K_p^T) V_p), with K_p and V_p the layer's keys and values of the prompt.

    Attributes:
        adapter_len: rows of the prompt.
        adapter_layers: how many of the top layers have one.
    """

    label: ClassVar[str] = "adaption_prompt"
    family: ClassVar[str] = "additive"
    paper: ClassVar[str] = "Zhang et al. 2023, LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention"
    source: ClassVar[str] = "section 3.2; peft 0.21 tuners/adaption_prompt/layer.py AdaptedAttention.forward"
    mergeable: ClassVar[bool] = False

    adapter_len: int = 10
    adapter_layers: int = 30

    def check(self) -> None:
        """Raise InputError where an option makes no sense."""
        for name in ("adapter_len", "adapter_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"adaption_prompt: {name}={getattr(self, name)} adapts nothing; use 1 or more")

    def check_spec(self, spec: "ModelSpec", settings: "Settings") -> None:
        """Raise InputError for more layers than there are, and for a model that peft does not adapt so."""
        if self.adapter_layers > spec.num_hidden_layers:
            raise InputError(
                f"adaption_prompt: adapter_layers={self.adapter_layers}, but {spec.id} has {spec.num_hidden_layers} layers; "
                "use as many or fewer"
            )
        if spec.model_type not in MODEL_TYPES:
            raise InputError(f"adaption_prompt: peft does it for {' and '.join(MODEL_TYPES)}, not {spec.model_type} models")

    def layer_form(self, index: int, count: int) -> object:
        """The top layers are adapted."""
        return index >= count - self.adapter_layers

    def peft_config(self) -> dict[str, Any]:
        """`AdaptionPromptConfig` of peft 0.21."""
        sizes = {"adapter_len": self.adapter_len, "adapter_layers": self.adapter_layers}
        return {"peft_type": "ADAPTION_PROMPT", "task_type": "CAUSAL_LM", **sizes}

    def submodule(self, model: "Assembly", name: str, x: Tensor, residual: Tensor, y: Tensor) -> Tensor:
        """Project the prompt and the queries once more with the layer's own weights, and attend."""
        spec, tape, rows = model.spec, model.tape, self.adapter_len
        if name != "self_attn" or model.layer is None or not self.layer_form(model.layer, spec.num_hidden_layers):
            return y
        batch, length, _ = x.shape
        heads, key_heads, size = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        dtype = model.weight_of("self_attn.q_proj").dtype
        prompt = model.adapter("self_attn.adaption_prompt", (1, rows, spec.hidden_size), dtype)
        gate = model.adapter("self_attn.adaption_gate", (1,), dtype)
        tape.scope = "self_attn.adaption_prompt"
        pairs = []
        for projection in ("k_proj", "v_proj"):
            one = linear(tape, prompt, model.weight_of(f"self_attn.{projection}"))
            all_ = tape.fresh((batch, key_heads, rows, size), dtype, True)
            tape.record("repeat", (one,), all_, gradients=(Gradient(one, round_block(one.nbytes)),))
            pairs.append(repeat_heads(tape, all_, heads))
            tape.hold(one)
        keys, values = pairs
        q = linear(tape, x, model.weight_of("self_attn.q_proj"))
        q = pw.transpose(tape, q, (batch, heads, length, size), copied=True)
        unused = linear(tape, pw.detached(x), pw.detached(model.weight_of("self_attn.v_proj")))
        cos, sin = model.rotary
        query = pw.rotate(tape, q, cos, sin)
        tape.hold(q, unused)
        scores = pw.scale(tape, batched(tape, query, pw.copy(tape, keys), (batch, heads, length, rows), size))
        wide = pw.cast(tape, scores, "fp32")
        soft = tape.fresh(wide.shape, "fp32", True)
        tape.record("softmax", (wide,), soft, saved=(soft,), gradients=(Gradient(wide, round_block(wide.nbytes)),))
        gated = pw.multiply(tape, gate, pw.cast(tape, soft, query.dtype))
        tape.hold(scores)
        mixed = batched(tape, gated, pw.copy(tape, values), query.shape, rows)
        joined = tape.fresh((batch, length, heads * size), mixed.dtype, True)
        tape.record("reshape", (mixed,), joined, gradients=(Gradient(mixed, round_block(mixed.nbytes)),))
        out = pw.add(tape, y, linear(tape, joined, model.weight_of("self_attn.o_proj")))
        tape.hold(keys, values, query, gated, joined, y)
        tape.scope = ""
        return out

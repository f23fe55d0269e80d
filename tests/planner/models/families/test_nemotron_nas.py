"""Llama-Nemotron's layers of several kinds, against Llama's own layers put together to the same sizes, and bad configs."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import transformers  # noqa: E402
from torch import nn  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.planner.memory import step_memory  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.families.nemotron_nas import Layer, NemotronNasSpec  # noqa: E402
from tuneplan.planner.models.network import build  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.parallel.rank_network import local_network  # noqa: E402
from tuneplan.planner.training.optimizers import find  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.planner.training.sharding import Sharding  # noqa: E402
from tuneplan.profiling import build as real  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402
from tuneplan.profiling.trace import trace  # noqa: E402


def block(group: int | None, mult: float | None, **changes: Any) -> dict[str, Any]:
    """An entry of `block_configs`; None for a layer without attention, or without an MLP."""
    attention = {"n_heads_in_group": group, "no_op": group is None, "replace_with_linear": False, "window_length": None}
    ffn = {"ffn_mult": mult, "no_op": mult is None, "replace_with_linear": False, "sparsify": None}
    return {"attention": {**attention, **changes.get("attention", {})}, "ffn": {**ffn, **changes.get("ffn", {})}}


LINEAR = {"replace_with_linear": True}
CONFIG: dict[str, Any] = {
    "model_type": "nemotron-nas",
    "architectures": ["DeciLMForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": None,
    "num_key_value_heads": None,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "block_configs": [
        block(4, 5.25),
        block(4, 5.25),
        block(None, 1.3125),
        block(2, None),
        block(None, 2.625, attention={"no_op": False, **LINEAR}),
        block(4, None, ffn={"no_op": False, **LINEAR}),
    ],
}


def spec_of(**changes: Any) -> NemotronNasSpec:
    """The small model."""
    found = read_spec("small", ConfigReader({**CONFIG, **changes}, "config.json"))
    assert isinstance(found, NemotronNasSpec)
    return found


class Part(nn.Module):
    """A linear under the name that it has in the checkpoint; in place of attention it gives no weights."""

    def __init__(self, name: str, width: int, attends: bool) -> None:
        super().__init__()
        setattr(self, name, nn.Linear(width, width, bias=False))
        self.name, self.attends = name, attends

    def forward(self, hidden_states: Any, **_: Any) -> Any:
        out = getattr(self, self.name)(hidden_states)
        return (out, None) if self.attends else out


class OwnLayer(llama.LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer with what this one has."""

    def __init__(self, config: Any, index: int, own: Layer) -> None:
        config = copy.deepcopy(config)
        config.intermediate_size, config.num_key_value_heads = own.width or 8, config.num_attention_heads // (own.group or 1)
        super().__init__(config, index)
        if own.linear_attention:
            self.self_attn = Part("linear_attn", config.hidden_size, attends=True)
        elif not own.group:
            del self.self_attn, self.input_layernorm
        if own.linear_mlp:
            self.mlp = Part("linear_mlp", config.hidden_size, attends=False)
        elif not own.width:
            del self.mlp, self.post_attention_layernorm

    def forward(self, hidden_states: Any, **more: Any) -> Any:
        if hasattr(self, "self_attn"):
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
            hidden_states, _ = self.self_attn(hidden_states=hidden_states, **more)
            hidden_states = residual + hidden_states
        if hasattr(self, "mlp"):
            residual = hidden_states
            hidden_states = self.post_attention_layernorm(hidden_states)
            hidden_states = self.mlp(hidden_states)
            hidden_states = residual + hidden_states
        return hidden_states


def assembled(_config: Any, _task: str, implementation: str, dtype: Any, device: str, *_: Any) -> Any:
    """The model in the place of that which transformers does not have."""
    spec = spec_of()
    sizes = {name: CONFIG[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")}
    config = transformers.LlamaConfig(**sizes, intermediate_size=8, use_cache=False)
    config._attn_implementation = implementation
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        for index, own in enumerate(spec.layers):
            model.model.layers[index] = OwnLayer(model.config, index, own).to(dtype)
    model.train()
    return model


@pytest.mark.traced
@pytest.mark.parametrize(("method", "checkpointing"), [("full", "off"), ("lora", "non-reentrant"), ("qlora", "off")])
def test_against_llama_s_layers(method: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights by name, trained parameters, and the peak within 0.1 %."""
    monkeypatch.setattr(real, "transformers_model", assembled)
    settings = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing=checkpointing)
    network = build(spec_of(), parse(method), settings)
    memory = step_memory(network, settings, find("adamw"))
    traced = trace(Subject("small", CONFIG, parse(method), settings=settings))

    if method == "full":
        shapes = {name: tuple(p.shape) for name, p in assembled(None, "", "eager", torch.bfloat16, "meta").named_parameters()}
        assert shapes == network.shapes()
    assert traced.counts.trainable == network.trainable_parameters
    assert traced.step.peak_bytes == pytest.approx(max(memory.phases[n].peak_bytes for n in traced.step.phases), rel=0.001)


def test_widths() -> None:
    """As the model's code rounds them: 2/3 of 5.25 x 256 is 896, which 1024 columns hold."""
    assert [1024, 1024, 256, 0, 512, 0] == [layer.width for layer in spec_of().layers]
    assert (1024, 4) == (spec_of().intermediate_size, spec_of().num_key_value_heads)


def test_a_rank_of_two() -> None:
    """Tensor-parallel ranks each have half of every layer's own width."""
    spec = spec_of(block_configs=CONFIG["block_configs"][:4], num_hidden_layers=4)
    settings = Settings(micro_batch_size=1, seq_len=64, gradient_checkpointing="off")
    whole = build(spec, parse("full"), settings)
    rank = local_network(spec, parse("full"), settings, Sharding(tensor_parallel=2), whole)
    widths = {p.shape[0] for p in rank.parameters if p.name.endswith("mlp.up_proj.weight")}

    assert {512, 128} == widths


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_configs": CONFIG["block_configs"][:2]}, "'block_configs' must be a list of 6 objects, one for each layer"),
        ({"block_configs": None}, "'block_configs' must be a list of 6 objects"),
        ({"block_configs": [block(3, 1.0)] * 6}, r"block_configs\[0\], attention: n_heads_in_group=3 does not divide"),
        ({"block_configs": [block(4, 0.0)] * 6}, "'ffn_mult' gives an MLP of 0 columns"),
        ({"block_configs": [block(4, None, ffn={"no_op": "no"})] * 6}, "'no_op' is \"no\", but must be true or false"),
        ({"block_configs": [block(4, 1.0, attention={"window_length": 512})] * 6}, "window_length is not planned"),
        ({"block_configs": [{"ffn": {}}] * 6}, "the key 'attention' is missing"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    """The layer and the key are named."""
    with pytest.raises(InputError, match=message):
        spec_of(**changes)


def test_a_layer_with_nothing_in_it() -> None:
    """Neither attention nor an MLP: said when the network is built."""
    spec = spec_of(block_configs=[block(4, 1.0)] * 5 + [block(None, None)])
    with pytest.raises(InputError, match="layer 5 has neither attention nor an MLP"):
        build(spec, parse("full"), Settings())

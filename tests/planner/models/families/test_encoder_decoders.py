"""Encoder-decoders against the real code: prefixes, prompts, masks of both sides, caches, targets of other lengths."""

from dataclasses import replace
from typing import Any

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.decoder_prefix import read_by
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

RUN = Settings(micro_batch_size=2, seq_len=128, gradient_checkpointing="off")
T5 = small_models.config("t5-flan")
BART = small_models.config("bart", encoder_layers=4, decoder_layers=2, decoder_attention_heads=4)
PREFIX = "prefix_tuning"
CHECKPOINTED = {"gradient_checkpointing": "non-reentrant"}


def built(config: dict[str, Any], method: str = PREFIX, run: Settings = RUN) -> Network:
    """The network of a config."""
    return build(read_spec("tiny", ConfigReader(config, "tiny")), parse(method), run)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("config", "method", "changes"),
    [
        (T5, PREFIX, {"attention": "eager", "padded": True}),
        (T5, PREFIX, {"target_len": 32}),
        (T5, "prefix_tuning(prefix_projection=true)", {"padded": True, "target_len": 200}),
        (BART, PREFIX, {}),
        (BART, PREFIX, {"attention": "eager", "target_len": 200}),
        (BART, PREFIX, {"attention": "flash"}),
        (T5, "p_tuning", CHECKPOINTED),
        (BART, "p_tuning", {}),
    ],
)
def test_prefixes_and_prompts(config: dict[str, Any], method: str, changes: dict[str, Any]) -> None:
    """Peak, phases and trained parameters, with attention of each kind, padding, and targets shorter and longer."""
    traced = pytest.importorskip("traced")
    traced.check(traced.Case(config, method, replace(RUN, **changes)))


@pytest.mark.traced
@pytest.mark.parametrize(
    ("name", "method", "changes"),
    [
        ("t5", "full", {"padded": True}),
        ("t5", "prompt_tuning", {"padded": True, **CHECKPOINTED}),
        ("t5", "lora(target_modules=q,v)", {"padded": True, "attention": "eager", **CHECKPOINTED}),
        ("bart", "lora(target_modules=q_proj,v_proj)", {"padded": True, **CHECKPOINTED}),
        ("bart", "prompt_tuning", {"padded": True, "attention": "eager"}),
        ("t5", "prompt_tuning", {"use_cache": True}),
        ("bart", "prompt_tuning", {"use_cache": True}),
        ("t5", "lora(target_modules=q,v)", {"target_len": 16, **CHECKPOINTED}),
        ("t5", "full", {"gradient_checkpointing": "reentrant"}),
    ],
)
def test_masks_and_caches(name: str, method: str, changes: dict[str, Any]) -> None:
    """Padding of both sides, a cache, short targets, reentrant checkpointing."""
    traced = pytest.importorskip("traced")
    traced.check(traced.Case(small_models.config(name), method, replace(RUN, **changes)))


@pytest.mark.parametrize(
    ("config", "method", "message"),
    [
        (small_models.config("t5"), PREFIX, "into the encoder's 6 heads, which do not fit the decoder's 6 heads of 48"),
        (small_models.config("bart"), PREFIX, "which do not fit the decoder's 8 heads of 32"),
        ({**T5, "num_decoder_layers": 4}, PREFIX, "as many layers as the encoder has, 3, and the decoder has 4"),
        (T5, "prefix_tuning(past_key_values=false)", "as peft makes them"),
        (T5, "prefix_tuning(layers=0)", "as peft makes them"),
    ],
)
def test_prefixes_that_do_not_fit(config: dict[str, Any], method: str, message: str) -> None:
    """What peft's code cannot do, and what only others do."""
    with pytest.raises(InputError, match=message):
        built(config, method)


@pytest.mark.traced
@pytest.mark.parametrize("config", [small_models.config("bart"), {**T5, "num_decoder_layers": 4}])
def test_the_real_code_refuses_them_too(config: dict[str, Any]) -> None:
    """Heads that do not fit and layers without a prefix stop it."""
    traced = pytest.importorskip("traced")
    with pytest.raises((RuntimeError, IndexError)):
        traced.traced(traced.Case(config, PREFIX, RUN))


def test_positions_of_the_decoder_have_an_end() -> None:
    """A prefix stands before the target, whose positions BART looks up in a table."""
    assert built(BART, run=replace(RUN, seq_len=512, target_len=100)).trainable_parameters > 0
    with pytest.raises(InputError, match="more than the 512 positions"):
        built(BART, run=replace(RUN, seq_len=100, target_len=512))


@pytest.mark.parametrize(("layers", "read"), [(2, 1), (3, 3), (4, 2)])
def test_prefixes_that_have_no_effect(layers: int, read: int) -> None:
    """Where the number of layers is even, peft leaves half of what is trained unread, and the report says so."""
    said = built({**T5, "num_layers": layers, "num_decoder_layers": layers}).notes.get("assumed", "")
    assert (f"only {read} of the {layers} prefixes" in said) == (read < layers)


@pytest.mark.traced
@pytest.mark.parametrize("layers", [2, 3])
def test_which_prefixes_get_a_gradient(layers: int) -> None:
    """The real code, with values."""
    traced = pytest.importorskip("traced")
    config = {**T5, "num_layers": layers, "num_decoder_layers": layers}
    model = traced.built(traced.Case(config, PREFIX, replace(RUN, dtype="fp32", attention="eager", seq_len=16)), "cpu")
    model.model(**model.batch).loss.backward()
    (gradient,) = [p.grad for p in model.model.parameters() if p.requires_grad]
    width = gradient.shape[1] // layers
    found = {index for index in range(layers) if gradient[:, index * width : (index + 1) * width].abs().sum() > 0}
    assert read_by(layers, layers) == found

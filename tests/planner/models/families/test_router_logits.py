"""`output_router_logits`: logits that the model's output keeps, and the loss that balances experts, against the real code."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.rank_network import check_model
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling import family_matrix, small_models

RUN = Settings(micro_batch_size=2, seq_len=128, gradient_checkpointing="off")
BALANCED = ("qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoehybrid", "minimax_m2", "qwen3_next", "qwen3_5_moe_text")
"""Families whose code adds the loss; Mixtral and GraniteMoe have small models of their own with it."""
KEPT = ("deepseek_v3", "glm4_moe", "nemotron_h", "llama4_text", "gemma4_text-moe")
"""Families whose output keeps the logits alone."""
MANY = small_models.config("mixtral-balanced", hidden_size=128, num_local_experts=512)
"""So many experts in a model so narrow that the routers are most of it."""
GRANITE = small_models.config("granitemoe-balanced", hidden_size=128, num_local_experts=512)


def spec_of(config: dict[str, Any]) -> Any:
    """The spec of a config."""
    return read_spec("tiny", ConfigReader(config, "tiny"))


@pytest.mark.traced
@pytest.mark.parametrize("name", [*BALANCED, *KEPT])
def test_families(name: str) -> None:
    """Peak and phases of a step of each family's code are those of the ledger, under checkpointing.

    Phases within 1 %: the forward of Qwen3-Next is 0.7 % off with checkpointing, with these logits and without.
    """
    traced = pytest.importorskip("traced")
    run = replace(RUN, gradient_checkpointing="non-reentrant")
    traced.check(traced.Case(small_models.config(name, output_router_logits=True), "full", run), phases=0.01)


@pytest.mark.traced
@pytest.mark.parametrize("changes", [{}, {"experts": "eager", "gradient_checkpointing": "non-reentrant"}])
def test_beside_a_vision_tower(changes: dict[str, Any]) -> None:
    """The language model of Qwen3-VL has experts, and the whole model adds their loss."""
    pytest.importorskip("traced")
    model = small_models.load("qwen3_vl_moe")
    text = {**model.config["text_config"], "num_experts": 256, "moe_intermediate_size": 32, "output_router_logits": True}
    model = replace(model, config={**model.config, "text_config": text})
    run = replace(RUN, seq_len=model.points[0][1], image_size=model.image_size, **changes)
    method = "lora(target_modules=q_proj)"
    _, peak = family_matrix.traced(model, method, run)
    network, memory = family_matrix.estimated(model, method, run)
    assert any(op.name == "router_loss.add_" for op in network.runs[-1].block.ops)
    assert peak == pytest.approx(memory.peak.peak_bytes, rel=0.001)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("config", "method", "changes"),
    [
        (MANY, "full", {"padded": True}),
        (MANY, "full", {"keep_outputs": True}),
        (MANY, "full", {"gradient_checkpointing": "reentrant"}),
        (MANY, "full", {"precision": "autocast", "dtype": "fp32"}),
        (MANY, "full", {"loss": "shifted", "accumulating": True}),
        (MANY, "lora(target_modules=q_proj)", {"loss": "liger", "gradient_checkpointing": "non-reentrant"}),
        (MANY, "lora(target_modules=q_proj)", {"precision": "autocast"}),
        (GRANITE, "full", {"padded": True, "gradient_checkpointing": "non-reentrant"}),
        (MANY, "prompt_tuning", {"padded": True}),
    ],
)
def test_ways_to_run_a_step(config: dict[str, Any], method: str, changes: dict[str, Any]) -> None:
    """Masks, losses, precisions and kinds of checkpointing, where the routers are most of what is kept."""
    traced = pytest.importorskip("traced")
    traced.check(traced.Case(config, method, replace(RUN, micro_batch_size=4, seq_len=256, **changes)))


def test_what_the_loss_keeps() -> None:
    """At the end of the forward there are more: the probabilities of all routers, in the dtype of their logits."""
    ends = []
    for asked in (True, False):
        network = build(spec_of({**MANY, "output_router_logits": asked}), parse("full"), RUN)
        ends.append(step_memory(network, RUN, OPTIMIZERS["adamw"]).phases["forward"].end_bytes)
    layers, tokens, experts = MANY["num_hidden_layers"], 2 * 128, 512
    assert layers * tokens * experts * 2 == ends[0] - ends[1]


def test_many_configurations_at_once() -> None:
    """Arrays of sizes give what each size gives alone."""
    lengths = np.array([64, 200, 512])
    run = replace(RUN, seq_len=lengths)  # type: ignore[arg-type]
    together = step_memory(build(spec_of(MANY), parse("lora"), run), run, OPTIMIZERS["adamw"]).peak.peak_bytes
    alone = []
    for length in lengths:
        one = replace(RUN, seq_len=int(length))
        alone.append(step_memory(build(spec_of(MANY), parse("lora"), one), one, OPTIMIZERS["adamw"]).peak.peak_bytes)
    assert alone == list(together)


def test_the_loss_is_work() -> None:
    """It starts kernels and moves bytes, in the forward and in the backward, for every layer."""
    works = [
        network_work(build(spec_of({**MANY, "output_router_logits": asked}), parse("full"), RUN), RUN) for asked in (True, False)
    ]
    assert works[0].forward.launches - works[1].forward.launches >= 10 * MANY["num_hidden_layers"]
    assert works[0].forward.total_moved > works[1].forward.total_moved
    assert works[0].backward.total_moved > works[1].backward.total_moved
    assert works[0].forward.flops == works[1].forward.flops


@pytest.mark.parametrize(("changes", "said"), [({}, False), ({"loss": "chunked"}, True), ({"loss": "trl"}, True)])
def test_a_loss_that_leaves_it_out_is_told(changes: dict[str, Any], said: bool) -> None:
    """Code that takes the hidden states alone is not counted with the routers' loss, and the report says so."""
    network = build(spec_of(MANY), parse("full"), replace(RUN, **changes))
    assert said == ("router_loss" in network.notes)


def test_prefixes_and_padding_do_not_go_with_it() -> None:
    """The mask is longer than what the routers see: the real code stops, so the planner refuses."""
    with pytest.raises(InputError, match="the mask has the prefix"):
        build(spec_of(MANY), parse("prefix_tuning"), replace(RUN, padded=True))


@pytest.mark.traced
def test_the_real_code_stops_there_too() -> None:
    """Its mask does not fit the rows of the routers."""
    traced = pytest.importorskip("traced")
    with pytest.raises(RuntimeError, match=r"(?i)dimension|size"):
        traced.traced(traced.Case(MANY, "prefix_tuning", replace(RUN, padded=True)))


def test_pipelines_do_not_go_with_it() -> None:
    """No stage has the routers of all layers."""
    spec = spec_of(MANY)
    network = build(spec, parse("full"), RUN)
    with pytest.raises(InputError, match="no pipeline stage has"):
        check_model(spec, RUN, Sharding(pipeline_parallel=2), network)

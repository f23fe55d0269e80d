"""The loop over experts: against the real code without values and with them, under even and under worst routing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.expert_rows import hit, rows_of_experts
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.rank_network import check_model
from tuneplan.planner.request import Request
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling import small_models

RUN = Settings(micro_batch_size=2, seq_len=128, gradient_checkpointing="off", experts="eager")
ATTENTION = "lora(target_modules=q_proj)"
EXPERTS = "lora(target_modules=q_proj,target_parameters=mlp.experts.gate_up_proj)"
CHECKPOINTED = {"gradient_checkpointing": "non-reentrant"}


def network_of(name: str, method: str, run: Settings) -> Network:
    """A small model under a method."""
    return build(read_spec("tiny", ConfigReader(small_models.config(name), "tiny")), parse(method), run)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("name", "method", "changes"),
    [
        ("mixtral", "full", {}),
        ("mixtral", "full", {"routing": "worst", "accumulating": True}),
        ("mixtral", EXPERTS, {**CHECKPOINTED, "routing": "worst"}),
        ("mixtral", "full", {"precision": "autocast", "dtype": "fp32"}),
        ("mixtral", "qlora", CHECKPOINTED),
        ("mixtral", "prompt_tuning", {"seq_len": 99}),
        ("gpt_oss", "full", {}),
        ("gpt_oss", ATTENTION, {**CHECKPOINTED, "routing": "worst"}),
        ("nemotron_h", "full", {}),
        ("deepseek_v3", "lora", {}),
        ("granitemoe", ATTENTION, {}),
        ("gemma4_text-moe", "full", CHECKPOINTED),
        ("qwen3_next", EXPERTS, {}),
        ("qwen3_moe", "full", {"micro_batch_size": 1, "seq_len": 2}),
    ],
)
def test_without_values(name: str, method: str, changes: dict[str, Any]) -> None:
    """Peak and phases are those of the real code, where the routing answers for values; also with fewer rows than experts."""
    traced = pytest.importorskip("traced")
    traced.check(traced.Case(small_models.config(name), method, replace(RUN, **changes)))


@pytest.mark.traced
@pytest.mark.parametrize("routing", ["even", "worst"])
@pytest.mark.parametrize(("name", "method"), [("mixtral", ATTENTION), ("gpt_oss", "full"), ("nemotron_h", "full")])
def test_with_values(name: str, method: str, routing: str) -> None:
    """The three loops of transformers on real tensors, whose tokens choose so.

    Within 0.1 %: a copy of a mask that CUDA's `where` makes, and Adam's step counts, which lie on the host beside a GPU.
    """
    forced = pytest.importorskip("forced_routing")
    traced = pytest.importorskip("traced")
    case = traced.Case(small_models.config(name), method, replace(RUN, routing=routing))
    _, memory = traced.estimated(case)
    for phase, seen in forced.run(case).phases.items():
        assert seen.peak_bytes == pytest.approx(memory.phases[phase].peak_bytes, rel=0.001), phase


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(256, 2, 8), (3, 4, 160), (7, 3, 5), (1, 1, 1)])
def test_rows(tokens: int, top_k: int, experts: int) -> None:
    """Every token has its experts; spread evenly they differ by one row at most, at worst few experts have all tokens."""
    even, worst = (rows_of_experts(tokens, top_k, experts, routing) for routing in ("even", "worst"))
    assert tokens * top_k == sum(even) == sum(worst)
    assert max(even) - min(even) <= 1
    assert [tokens] * top_k == hit(worst)
    assert len(even) == len(worst) == experts


def test_many_configurations_at_once() -> None:
    """Arrays of sizes give what each size gives alone, also where some experts have rows in some configurations alone."""
    lengths = np.array([2, 64, 200])
    together, alone = [], []
    for routing in ("even", "worst"):
        run = replace(RUN, micro_batch_size=1, routing=routing)
        many = replace(run, seq_len=lengths)  # type: ignore[arg-type]
        together += list(
            step_memory(network_of("qwen3_moe", "full", many), many, OPTIMIZERS["adamw"]).phases["backward"].peak_bytes
        )
        for length in lengths:
            one = replace(run, seq_len=int(length))
            phases = step_memory(network_of("qwen3_moe", "full", one), one, OPTIMIZERS["adamw"]).phases
            alone.append(phases["backward"].peak_bytes)
    assert alone == together


def test_work() -> None:
    """The products are those of one grouped product, in more kernels the more experts have tokens; the backward moves more."""
    works = [
        network_work(network_of("mixtral", "full", run), run)
        for run in (RUN, replace(RUN, routing="worst"), replace(RUN, experts="grouped_mm"))
    ]
    assert works[0].forward.flops == works[1].forward.flops == works[2].forward.flops
    assert works[0].backward.flops == works[2].backward.flops
    assert works[0].forward.launches > works[1].forward.launches > works[2].forward.launches
    assert works[0].backward.total_moved > works[1].backward.total_moved > works[2].backward.total_moved


def test_trained_experts_have_two_gradients_at_once() -> None:
    """Each turn's backward makes a gradient of all experts of a layer, which is added to that of the turns after it."""
    run = replace(RUN, micro_batch_size=1, seq_len=16, optimizer="sgd")
    peaks = []
    for experts in ("eager", "grouped_mm"):
        phases = step_memory(network_of("mixtral", "full", replace(run, experts=experts)), run, OPTIMIZERS["adamw"]).phases
        peaks.append(int(phases["backward"].peak_bytes))
    stack = 2 * 8 * 2 * 1376 * 512
    assert stack * 0.9 < peaks[0] - peaks[1] < stack * 1.1


def test_the_report_says_what_is_assumed() -> None:
    """Figures are of one routing, and nothing is said of routing where it decides nothing."""
    spec = read_spec("tiny", ConfigReader(small_models.config("mixtral"), "tiny"))
    said = {}
    for routing in ("even", "worst"):
        request = Request(spec, parse("full"), replace(RUN, routing=routing), OPTIMIZERS["adamw"], gpu=find_gpu("h100-80g"))
        said[routing] = [w for w in estimate(request).warnings if "experts" in w]
    assert [1, 1] == [len(texts) for texts in said.values()]
    assert "spread evenly" in said["even"][0]
    assert "the same experts" in said["worst"][0]


def test_ranks_do_not_loop_over_their_own() -> None:
    """Splitting experts over ranks is modelled for the other implementations."""
    spec = read_spec("tiny", ConfigReader(small_models.config("mixtral"), "tiny"))
    with pytest.raises(InputError, match="use experts grouped_mm"):
        check_model(spec, RUN, Sharding(2, expert_parallel=2), network_of("mixtral", "full", RUN))

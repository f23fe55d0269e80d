"""Mixtures of experts: implementations against the real code, adapters on experts, routing over ranks, refused configs."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.expert_ranks import busiest
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling import small_models

RUN = Settings(micro_batch_size=2, seq_len=128, gradient_checkpointing="off")


def estimated(name: str, method: str = "full", run: Settings = RUN, sharding: Sharding | None = None, **changes: Any) -> Estimate:
    """The estimate of a small model on a card."""
    spec = read_spec("tiny", ConfigReader({**small_models.config(name), **changes}, "tiny"))
    sharding = sharding or Sharding()
    return estimate(Request(spec, parse(method), run, OPTIMIZERS["adamw"], sharding, gpu=find_gpu("h100-80g")))


@pytest.mark.parametrize("targets", ["target_modules=all-linear", "target_parameters=mlp.experts.gate_up_proj"])
@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_adapters_on_experts_take_time(name: str, targets: str) -> None:
    """The dense weights that PEFT's wrapper makes of them are work of every forward, so a step takes longer than without."""
    plain, adapted = (estimated(name, method) for method in ("lora(target_modules=q_proj)", f"lora({targets})"))
    assert plain.time is not None
    assert adapted.time is not None
    assert adapted.time.seconds > plain.time.seconds
    assert [] == [w for w in plain.warnings if "LoRA on experts" in w]
    assert 1 == len([w for w in adapted.warnings if "LoRA on experts" in w])


@pytest.mark.traced
@pytest.mark.parametrize("method", ["full", "lora(target_modules=q_proj)"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_batched_experts(name: str, method: str) -> None:
    """Every row gets a copy of its expert's matrices: peak and phases are those of the real code."""
    traced = pytest.importorskip("traced")
    traced.check(traced.Case(small_models.config(name), method, replace(RUN, experts="batched_mm")))


def test_batched_experts_take_more_memory() -> None:
    """A copy of the matrices for each row is more than the matrices."""
    grouped, batched = (estimated("mixtral", run=replace(RUN, experts=name)) for name in ("grouped_mm", "batched_mm"))
    assert batched.allocated_bytes > grouped.allocated_bytes


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_worst_routing_is_not_better(ranks: int) -> None:
    """A rank that all tokens want computes and keeps more rows than one of several that share them."""
    layout = Sharding(ranks, expert_parallel=ranks)
    run = replace(RUN, micro_batch_size=8, seq_len=2048)  # long enough that kernels take longer than their launches
    even, worst = (estimated("mixtral", run=replace(run, routing=name), sharding=layout) for name in ("even", "worst"))
    assert even.time is not None
    assert worst.time is not None
    assert worst.time.seconds > even.time.seconds
    assert worst.allocated_bytes > even.allocated_bytes


def test_one_rank_has_all_rows_however_they_are_routed() -> None:
    """Figures are the same, and a warning says why."""
    even, worst = (estimated("mixtral", run=replace(RUN, routing=name)) for name in ("even", "worst"))
    assert (even.allocated_bytes, even.time) == (worst.allocated_bytes, worst.time)
    assert ["routing worst is even here"] == [w[:26] for w in worst.warnings if "routing" in w]


def test_rows_of_the_busiest_rank() -> None:
    """All rows of all ranks where it has k experts, fewer where it has not so many, one rank's own where there is one rank."""
    assert (4, 2, 1) == (busiest(8, 2, 4), busiest(4, 2, 4), busiest(8, 2, 1))
    assert Fraction(8, 3) == busiest(16, 6, 8)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
        ("mixtral", {"num_local_experts": "8"}, "num_local_experts"),
        ("mixtral", {"num_local_experts": 2.5}, "num_local_experts"),
        ("mixtral", {"num_experts_per_tok": 9999}, "num_experts_per_tok"),
        ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ("mixtral", {"output_router_logits": "yes"}, "output_router_logits"),
        ("qwen2_moe", {"num_experts": -1}, "num_experts"),
        ("qwen2_moe", {"mlp_only_layers": "0"}, "mlp_only_layers"),
        ("qwen3_moe", {"num_experts": None, "num_experts_per_tok": 129}, "num_experts_per_tok=129, but there are 128"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ("qwen3_moe", {"moe_intermediate_size": "wide"}, "moe_intermediate_size"),
        ("olmoe", {"num_experts": [16]}, "num_experts"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3, but there are 2"),
        ("deepseek_v2", {"n_routed_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3, but there are 2"),
        ("deepseek_v3", {"n_routed_experts": True}, "n_routed_experts"),
        ("deepseek_v3", {"n_group": 3}, "n_group"),
    ],
)
def test_configs_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    """Numbers of experts that are none, too many experts of a token, and wrong types are named."""
    with pytest.raises(InputError, match=message):
        read_spec("tiny", ConfigReader({**small_models.config(name), **changes}, "tiny"))

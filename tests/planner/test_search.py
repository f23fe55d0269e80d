"""The search: what it lists, how it ranks, and what it never invents."""

import math
from dataclasses import replace
from datetime import date
from decimal import Decimal
from itertools import pairwise

import pytest

from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.plan import Answer, Plan, rank
from tuneplan.planner.search import find
from tuneplan.planner.target import Target, of_gpu, of_memory, targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB

TODAY = date(2026, 9, 1)


def job(model: str = "7b", methods: str = "lora qlora", on: tuple[Target, ...] = (), **changes: object) -> Job:
    """A question with ordinary answers."""
    plain = Job(
        spec=read_spec(*load(model)),
        methods=tuple(parse(method) for method in methods.split()),
        targets=on or tuple(targets(["a100-80g"], None)),
        tokens=10**7,
        global_batch_size=64,
        settings=Settings(seq_len=512),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def priced(answer: Answer) -> list[Plan]:
    """Plans with a price."""
    return [plan for plan in answer.plans if plan.usd is not None]


def test_every_method_is_answered_on_every_number_of_every_card() -> None:
    """Each method on each count is either a plan or a refusal, and there once."""
    answer = find(job(methods="full lora qlora", on=tuple(targets(["a100-80g", "t4"], None))), TODAY)
    found = [(p.request.method.name, p.target.label, p.gpu_count) for p in (*answer.plans, *(r.plan for r in answer.rejected))]
    expected = [(m, g, n) for m in ("full", "lora", "qlora") for g in ("a100-80g", "t4") for n in (1, 2, 4, 8)]
    assert sorted(expected) == sorted(found)


@pytest.mark.parametrize("objective", ["cost", "time", "memory"])
def test_plans_come_in_order(objective: str) -> None:
    """The best first; each plan fits, and each refusal does not."""
    answer = find(job(objective=objective), TODAY)
    ranks = [rank(plan, objective) for plan in answer.plans]
    assert sorted(ranks) == ranks
    assert all(plan.short_by_bytes <= 0 for plan in answer.plans)
    assert all(rejected.plan.short_by_bytes > 0 for rejected in answer.rejected)


def test_a_card_without_a_price_is_never_ranked_by_an_invented_one() -> None:
    """No offer: hours are known, dollars are not, and every priced plan comes before."""
    bare = of_gpu(replace(load_gpus()["h200"], id="h200-unpriced"), None)
    answer = find(job(on=(bare, *targets(["a100-80g"], None))), TODAY)
    costs = [plan.usd for plan in answer.plans]
    unknown = [plan for plan in answer.plans if plan.target is bare]
    assert unknown
    assert {(None, None)} == {(plan.usd, plan.price) for plan in unknown}
    assert all(plan.hours is not None for plan in unknown)
    assert costs.index(None) == len(priced(answer))
    assert all(cost is None for cost in costs[costs.index(None) :])


def test_a_card_without_a_rate_has_neither_time_nor_price() -> None:
    """Bare memory: plans come, without hours and dollars, behind those that have them."""
    answer = find(job(on=(of_memory(80 * GIB, None), *targets(["a100-80g"], (1,)))), TODAY)
    last = answer.plans[-1]
    assert ("unknown card", None, None, None) == (last.target.label, last.time, last.hours, last.usd)
    assert answer.plans[0].usd is not None


def test_an_unknown_price_breaks_a_budget() -> None:
    """With --max-usd a plan whose cost is unknown is left out and says why, not waved through."""
    bare = of_gpu(load_gpus()["h200"], (1,))
    answer = find(job(on=(bare,), max_usd=Decimal(1000)), TODAY)
    assert () == answer.plans
    assert all("no price is known" in rejected.reason for rejected in answer.rejected)


def test_stale_prices_are_no_prices() -> None:
    """Long after the last price was written nothing has a cost, but for prices whose source has no date."""
    answer = find(job(), date(2040, 1, 1))
    assert all(plan.price is None or plan.price.age_days is None for plan in answer.plans)


def test_hours_and_dollars_follow_from_the_rate() -> None:
    """Whole updates times their seconds, and the checkpoint, are the hours; dollars are hours at the instance's price."""
    for plan in priced(find(job(), TODAY)):
        assert plan.time is not None
        assert plan.time.tokens_per_second is not None
        assert plan.price is not None
        updates = math.ceil(10**7 / (plan.request.settings.seq_len * 64))
        assert plan.time.seconds is not None
        assert plan.clock is not None
        assert updates * plan.time.seconds == pytest.approx(plan.clock.training)
        assert plan.clock.total == plan.clock.training + plan.clock.checkpoints
        assert plan.clock.total / 3600 == pytest.approx(plan.hours)
        assert float(plan.price.usd_per_hour) * (plan.hours or 0) == pytest.approx(float(plan.usd or 0), abs=0.006)


def test_a_plan_is_what_an_estimate_says() -> None:
    """Allocated bytes and step time of a plan are those of `estimate` for the same request."""
    for plan in find(job(methods="full lora qlora"), TODAY).plans[:4]:
        again = estimate(plan.request, advice=False)
        assert again.memory == plan.memory
        assert again.runtime == plan.runtime
        assert plan.time is not None
        assert again.time is not None
        assert again.time.seconds == pytest.approx(plan.time.seconds)


def test_a_larger_card_never_refuses_what_a_smaller_one_takes() -> None:
    """Methods that fit 24 GiB fit 48, and those that fit 48 fit 80."""
    fitting = []
    for size in (4, 8, 16, 24, 48, 80, 192):
        answer = find(job(methods="full lora qlora", on=(of_memory(size * GIB, (1,)),)), TODAY)
        fitting.append({plan.request.method.name for plan in answer.plans})
    for smaller, larger in pairwise(fitting):
        assert smaller <= larger
    assert set() == fitting[0]
    assert {"full", "lora", "qlora"} == fitting[-1]


def test_the_margin_leaves_memory_free() -> None:
    """A share kept free makes the usable memory that much smaller."""
    whole, half = (find(job(on=(of_memory(80 * GIB, (1,)),), safety_margin=m), TODAY).plans[0] for m in (0.0, 0.5))
    assert (80 * GIB, 40 * GIB) == (whole.usable_bytes, half.usable_bytes)
    assert half.device_bytes <= 40 * GIB


def test_the_lowest_sharding_stage_that_fits_is_taken() -> None:
    """A 7B LoRA needs no sharding on eight A100s; a 70B in 16 bits does."""
    small, large = (find(job(model, "lora", tuple(targets(["a100-80g"], (8,)))), TODAY).plans[0] for model in ("7b", "70b"))
    assert (0, 3) == (small.request.sharding.zero_stage, large.request.sharding.zero_stage)


def test_old_cards_run_in_fp16() -> None:
    """A card without bf16 is planned in fp16, and with its own attention kernel."""
    answer = find(job(on=tuple(targets(["t4"], (1,)))), TODAY)
    for plan in (*answer.plans, *(r.plan for r in answer.rejected)):
        assert ("fp16", (7, 5)) == (plan.request.settings.dtype, plan.request.settings.compute_capability)


def test_trained_bases_get_master_weights() -> None:
    """`auto` keeps fp32 master copies where the base is trained and none where only adapters are."""
    answer = find(job(methods="full lora"), TODAY)
    found = {plan.request.method.name: plan.request.settings.precision for plan in answer.plans}
    assert {"full": "master-weights", "lora": "pure"} == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 0}, "tokens 0"),
        ({"global_batch_size": 0}, "global-batch-size 0"),
        ({"safety_margin": 1.0}, "safety-margin 1.0"),
        ({"safety_margin": float("nan")}, "safety-margin nan"),
        ({"max_hours": 0.0}, "max-hours 0.0"),
        ({"max_hours": float("nan")}, "max-hours nan"),
        ({"max_usd": Decimal(-1)}, "max-usd -1"),
        ({"settings": Settings(seq_len=1)}, "seq-len 1"),
        ({"settings": Settings(attention="none")}, "attention 'none'"),
    ],
)
def test_jobs_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    """Amounts are checked before anything is computed."""
    with pytest.raises(InputError, match=words):
        find(job(**changes), TODAY)  # type: ignore[arg-type]


def test_accumulation_fills_the_global_batch() -> None:
    """Whatever the layout, an update sees the global batch."""
    for plan in find(job(global_batch_size=48), TODAY).plans:
        sizes = plan.request.settings.micro_batch_size, plan.request.gradient_accumulation_steps, plan.gpu_count
        assert 48 == sizes[0] * sizes[1] * sizes[2]
        assert (sizes[1] > 1) == plan.request.settings.accumulating


def test_optimizers_are_kept_to() -> None:
    """Only what the job names is planned."""
    answer = find(job(methods="full", optimizers=(OPTIMIZERS["sgd"],)), TODAY)
    assert {"sgd"} == {plan.request.optimizer.name for plan in answer.plans}

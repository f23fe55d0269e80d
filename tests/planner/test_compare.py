"""Methods side by side: every figure is that of the estimate, the search or the parts; filters and guide follow from them."""

from dataclasses import replace
from datetime import date
from statistics import median

import pytest

from tuneplan.planner.compare import Comparison, Filters, Row, compare
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.guide import guide
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse, standing_alone
from tuneplan.planner.methods.inference import inference
from tuneplan.planner.methods.registry import names
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.search import find
from tuneplan.planner.target import of_memory, targets
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.units import GIB

TODAY = date(2026, 9, 1)
METHODS = ("full", "lora", "qlora", "ia3", "prompt_tuning")


def job(methods: tuple[str, ...] = METHODS, **changes: object) -> Job:
    """Llama 2 7B on one A100."""
    plain = Job(
        spec=read_spec(*load("7b")),
        methods=tuple(parse(method) for method in methods),
        targets=tuple(targets(["a100-80g"], (1,))),
        tokens=10**7,
        global_batch_size=8,
        settings=Settings(seq_len=512),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """Five methods, unfiltered."""
    return compare(job(), Filters(), TODAY)


def row(comparison: Comparison, name: str) -> Row:
    """The row of a method."""
    return next(row for row in comparison.rows if name == row.method.name)


def test_rows_come_in_the_order_asked_for(compared: Comparison) -> None:
    """One row a method, none left out."""
    assert list(METHODS) == [row.method.name for row in compared.rows]
    assert () == compared.left_out


def test_memory_is_that_of_an_estimate_at_one_configuration(compared: Comparison) -> None:
    """The same micro-batch, length, checkpointing and card for every method; the figures are those of `plan estimate`."""
    for one in compared.rows:
        request = one.estimate.request
        s = request.settings
        assert (1, 512, "non-reentrant", 1) == (
            s.micro_batch_size,
            s.seq_len,
            s.gradient_checkpointing,
            request.sharding.data_parallel,
        )
        assert estimate(request, advice=False).components == one.estimate.components


def test_time_and_cost_are_those_of_the_search(compared: Comparison) -> None:
    """The best plan of each method, as `plan` finds it for the same job."""
    best = {plan.request.method.name: plan for plan in reversed(find(job(), TODAY).plans)}
    for one in compared.rows:
        assert (best[one.method.name].usd if one.method.name in best else None) == (one.plan.usd if one.plan else None)
        assert (one.plan is None) == (one.refused is not None)


def test_compute_follows_the_parameters(compared: Comparison) -> None:
    """Full fine-tuning takes about 6 FLOPs a weight and token, a frozen base about 4 (Kaplan et al. 2020, section 2.1)."""
    weights = row(compared, "full").estimate.network.total_parameters
    assert 5.7 < row(compared, "full").flops_per_token / weights < 6.3
    assert 3.8 < row(compared, "lora").flops_per_token / weights < 4.3


def test_serving_is_that_of_the_parts(compared: Comparison) -> None:
    """Merged methods cost what the base costs; what cannot be merged has no merged figures."""
    for one in compared.rows:
        found = inference(job().spec, one.method)
        assert found.weight_bytes + found.cached_bytes == one.served_bytes
        assert (one.merged is None) == (one.merged_bytes is None) == (not one.method.mergeable)
        assert one.overhead is not None
        assert one.overhead >= 0
    assert 0.0 == row(compared, "full").overhead == row(compared, "lora").least_overhead
    assert row(compared, "lora").overhead != 0
    assert row(compared, "prompt_tuning").overhead == row(compared, "prompt_tuning").least_overhead


def test_the_reference_study_fits_hundreds_of_adapters_in_a_model(compared: Comparison) -> None:
    """A whole model is one of itself; LoRA of rank 8 on every layer fits between one and two hundred times in 7B."""
    assert 1 == row(compared, "full").adapters_per_model
    assert 100 < row(compared, "lora").adapters_per_model < 200
    checkpoint = row(compared, "lora").estimate.checkpoint_bytes
    assert row(compared, "full").full_model_bytes // checkpoint == row(compared, "lora").adapters_per_model


def test_integration_comes_from_the_parts(compared: Comparison) -> None:
    """Prompts leave the served model as it was, adapters do not, and a quantized base does not keep them from batching."""
    alone = {one.method.name: one.leaves_model_alone for one in compared.rows}
    assert {"full": False, "lora": False, "qlora": False, "ia3": False, "prompt_tuning": True} == alone
    assert row(compared, "qlora").batchable
    assert not row(compared, "full").batchable
    assert row(compared, "qlora").merge_notes
    assert not row(compared, "lora").merge_notes


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (Filters(mergeable=True), {"full", "lora", "qlora", "ia3"}),
        (Filters(max_inference_overhead=0.0), {"full", "lora", "qlora", "ia3"}),
        (Filters(max_inference_overhead=0.01), set(METHODS)),
        (Filters(max_inference_overhead=0.01, unmerged=True), {"full", "prompt_tuning"}),
        (Filters(min_quality=0.95), {"full", "lora", "qlora"}),
        (Filters(mergeable=True, min_quality=1.5), set()),
    ],
)
def test_filters_keep_what_meets_them_and_say_why_not(filters: Filters, kept: set[str]) -> None:
    """What is left out has a reason."""
    found = compare(job(), filters, TODAY)
    assert kept == {one.method.name for one in found.rows}
    assert set(METHODS) - kept == {name for name, _ in found.left_out}
    assert all(reason for _, reason in found.left_out)


def test_a_composition_without_evidence_does_not_pass_for_quality() -> None:
    """Evidence of its parts is not evidence of the whole."""
    found = compare(job(("lora+ia3",)), Filters(min_quality=0.1), TODAY)
    assert (("lora+ia3", "no evidence of its quality"),) == found.left_out


@pytest.mark.parametrize(
    "filters",
    [
        Filters(max_inference_overhead=-0.1),
        Filters(max_inference_overhead=float("nan")),
        Filters(unmerged=True),
        Filters(min_quality=0.0),
        Filters(min_quality=float("inf")),
    ],
)
def test_limits_that_make_no_sense_are_refused(filters: Filters) -> None:
    """Before anything is worked out."""
    with pytest.raises(InputError):
        compare(job(), filters, TODAY)


def test_one_card_at_a_time() -> None:
    """Methods are held side by side on one card."""
    with pytest.raises(InputError, match="one card"):
        compare(job(targets=tuple(targets(["a100-80g", "t4"], (1,)))), Filters(), TODAY)


def test_a_bare_amount_of_memory_has_no_time() -> None:
    """Without rates there is neither latency nor cost, and a limit on latency cannot be held."""
    bare = job(("lora",), targets=(of_memory(24 * GIB, (1,)),))
    found = compare(bare, Filters(), TODAY).rows[0]
    assert found.base is found.unmerged is found.overhead is None
    assert found.plan is not None
    assert found.plan.usd is None
    with pytest.raises(InputError, match="needs the rates"):
        compare(bare, Filters(max_inference_overhead=0.1), TODAY)


def test_misfits_are_left_out_only_where_that_was_asked() -> None:
    """A method that does not fit the model is an error if it was named, and a line if everything was asked for."""
    misfit = job(("lora", "prompt_tuning(num_virtual_tokens=4000)"))
    with pytest.raises(InputError):
        compare(misfit, Filters(), TODAY)
    found = compare(misfit, Filters(), TODAY, skip_misfits=True)
    assert ["lora"] == [one.method.name for one in found.rows]
    assert 1 == len(found.left_out)


def test_a_method_without_checkpointing_is_compared_without_it() -> None:
    """Prefix tuning cannot have it; the others keep it."""
    found = compare(job(("lora", "prefix_tuning")), Filters(), TODAY)
    assert ["non-reentrant", "off"] == [one.estimate.request.settings.gradient_checkpointing for one in found.rows]


def test_the_guide_follows_the_rows(compared: Comparison) -> None:
    """Each need names rows that meet it, best first; fewer rows give another answer."""
    found = {advice.need: advice for advice in guide(compared.rows)}
    least = min(compared.rows, key=lambda one: one.estimate.device_bytes)
    assert least.method.name == found["least memory"].methods[0][0] == "qlora"
    assert "qlora" not in [name for name, _ in found["no inference latency"].methods]
    assert ["prompt_tuning"] == [name for name, _ in found["no change to the model"].methods]
    assert {"lora", "qlora", "ia3", "prompt_tuning"} >= {name for name, _ in found["many tenants"].methods}
    best = max((one for one in compared.rows if one.quality and one.method.name != "full"), key=quality_of)
    assert best.method.name == found["closest to full fine-tuning"].methods[0][0]
    fewer = {advice.need: advice for advice in guide([one for one in compared.rows if one.method.name != "prompt_tuning"])}
    assert (0, ()) == (fewer["no change to the model"].met, fewer["no change to the model"].methods)


def quality_of(one: Row) -> float:
    """The median of the ratios of a row's findings."""
    return median([finding.relative for finding in one.findings if finding.relative is not None])


def test_every_name_is_compared_or_says_why_not() -> None:
    """All methods that stand alone, on one model: a row, or a reason."""
    alone = tuple(standing_alone())
    assert set(alone) <= set(names())
    found = compare(job(alone), Filters(), TODAY, skip_misfits=True)
    assert set(alone) == {one.method.name for one in found.rows} | {name for name, _ in found.left_out}
    assert len(found.rows) > len(alone) / 2

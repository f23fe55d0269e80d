"""How long an estimate and a search take once Python runs. Run with `pytest benchmarks --benchmark-only`."""

import resource
from contextlib import suppress
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from tuneplan.planner.cli.compare import standing_alone
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import estimate
from tuneplan.planner.job import DEFAULT_METHODS, Job
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.search import Search
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import CHECKPOINTING, Settings

SPEC = read_spec(*load("70b"))
RUN = Settings(micro_batch_size=4, seq_len=512)
TODAY = date(2026, 9, 1)


@pytest.mark.parametrize("method", DEFAULT_METHODS)
def test_memory_of_a_step(benchmark: Any, method: str) -> None:
    """Model, walk and phases of one configuration of Llama-2-70B: what a candidate costs that shares nothing."""
    parts = parse(method)
    benchmark(lambda: step_memory(build(SPEC, parts, RUN), RUN, OPTIMIZERS["adamw"]))
    benchmark.extra_info["microseconds"] = 1e6 * benchmark.stats.stats.median


@pytest.mark.parametrize("advice", [False, True], ids=["figures", "with-warnings"])
def test_estimate(benchmark: Any, advice: bool) -> None:
    """One whole estimate of Llama-2-70B under QLoRA: memory, allocator replay over all layers, checkpoint, warnings."""
    request = Request(SPEC, parse("qlora"), RUN, OPTIMIZERS["adamw"])
    benchmark(lambda: estimate(request, advice=advice))
    benchmark.extra_info["microseconds"] = 1e6 * benchmark.stats.stats.median


@pytest.mark.parametrize("cards", ["a100-80g", "any"])
def test_search(benchmark: Any, cards: str) -> None:
    """The default search over three methods; candidates per second are in extra_info."""
    job = Job(
        spec=SPEC,
        methods=tuple(parse(method) for method in DEFAULT_METHODS),
        targets=tuple(targets([cards], None)),
        tokens=10**7,
        global_batch_size=64,
        settings=replace(RUN, seq_len=2048),
        checkpointing=CHECKPOINTING[:2],
    )
    counts = []

    def search() -> None:
        found = Search(job, TODAY)
        found.answer()
        counts.append(found.evaluated)

    benchmark.pedantic(search, rounds=5, warmup_rounds=1)
    benchmark.extra_info["candidates"] = counts[-1]
    benchmark.extra_info["candidates_per_second"] = counts[-1] / benchmark.stats.stats.median


OF_SIZE = {"a-thousand": (1, 2), "ten-thousand": (1, 25), "a-hundred-thousand": (8, 25), "a-million": (None, 25)}
"""Methods (None for all that the model can have) and kinds of cards; a method on one kind has some 500 candidates."""


@pytest.mark.parametrize("size", OF_SIZE)
def test_large_search(benchmark: Any, size: str) -> None:
    """All cards x all methods x all layouts of Llama-2-70B; candidates, their rate and the memory are in extra_info.

    The goal is a million candidates in 2 s with 500 MB on two cores; fewer methods and cards show how the time grows.
    """
    methods = []
    for name in standing_alone():
        with suppress(InputError):  # a method that the model cannot have
            build(SPEC, parse(name), replace(RUN, gradient_checkpointing="off"))
            methods.append(parse(name))
    most_methods, cards = OF_SIZE[size]
    job = Job(
        spec=SPEC,
        methods=tuple(methods[:most_methods]),
        targets=tuple(targets(["any"], None)[:cards]),
        tokens=10**7,
        global_batch_size=64,
        settings=replace(RUN, seq_len=2048),
        optimizers=tuple(OPTIMIZERS[name] for name in ("adamw", "adamw_fused", "adamw_8bit", "paged_adamw_8bit")),
    )
    answers = []
    benchmark.pedantic(lambda: answers.append(Search(job, TODAY).answer()), rounds=3, warmup_rounds=1)
    told(benchmark, answers[-1].evaluated)
    benchmark.extra_info["passed_over_included"] = job.candidates


@pytest.mark.parametrize("cards", ["a100-80g", "any"])
def test_split_layouts(benchmark: Any, cards: str) -> None:
    """Three methods under every split of the model: tensor, pipeline and context parallelism with every stage of sharding."""
    job = Job(
        spec=SPEC,
        methods=tuple(parse(method) for method in DEFAULT_METHODS),
        targets=tuple(targets([cards], None)),
        tokens=10**7,
        global_batch_size=64,
        settings=replace(RUN, seq_len=2048),
        layouts="all",
    )
    answers = []
    benchmark.pedantic(lambda: answers.append(Search(job, TODAY).answer()), rounds=3, warmup_rounds=1)
    told(benchmark, answers[-1].evaluated)


def told(benchmark: Any, candidates: int) -> None:
    """How many, how many a second, and the most memory of this process and of one that it started."""
    benchmark.extra_info["candidates"] = candidates
    benchmark.extra_info["candidates_per_second"] = candidates / benchmark.stats.stats.median
    for name, who in (("peak_megabytes", resource.RUSAGE_SELF), ("peak_megabytes_of_a_worker", resource.RUSAGE_CHILDREN)):
        benchmark.extra_info[name] = resource.getrusage(who).ru_maxrss / 1024


def test_a_table_of_batches_and_lengths_in_one_walk(benchmark: Any) -> None:
    """The same walk with numpy arrays: 10,000 configurations of batch and length at once."""
    np = pytest.importorskip("numpy")
    axes: dict[str, Any] = {"micro_batch_size": np.arange(1, 101)[:, None], "seq_len": np.arange(64, 6464, 64)[None, :]}
    run = replace(RUN, **axes)
    parts = parse("lora")
    peaks = benchmark(lambda: step_memory(build(SPEC, parts, run), run, OPTIMIZERS["adamw"]).phases["backward"].peak_bytes)
    assert (100, 100) == peaks.shape
    benchmark.extra_info["configurations_per_second"] = peaks.size / benchmark.stats.stats.median

"""The splits of one model over a number of GPUs that a search looks at: data, tensor, pipeline, context and expert parallel."""

from collections.abc import Iterator

from tuneplan.planner.training.sharding import Sharding

LAYOUTS = ("data", "all")
"""Data parallelism with or without sharding of states alone, or every split of the model beside it."""
MOST_TENSOR_RANKS = 8
"""Ranks that split every layer talk twice in each; beyond the cards of one machine nobody does."""


def splits(count: int, layouts: str, mixture: bool) -> tuple[Sharding, ...]:
    """Layouts of a number of GPUs, without a sharding stage; plain data parallelism first.

    Degrees are powers of two. Tensor-parallel ranks also split the tokens between split linears (sequence parallelism), which
    takes less memory and no more traffic; pipelines run 1F1B.

    Args:
        count: GPUs.
        layouts: of LAYOUTS.
        mixture: the model has experts, which data-parallel ranks may split.
    """
    if layouts == "data":
        return (Sharding(count),)
    return tuple(_every(count, mixture))


def _every(count: int, mixture: bool) -> Iterator[Sharding]:
    for tensor in _divisors(min(count, MOST_TENSOR_RANKS), count):
        for pipeline in _divisors(count // tensor, count // tensor):
            for context in _divisors(count // tensor // pipeline, count // tensor // pipeline):
                data = count // tensor // pipeline // context
                for experts in _divisors(data, data) if mixture else (1,):
                    yield Sharding(
                        data,
                        tensor_parallel=tensor,
                        sequence_parallel=tensor > 1,
                        pipeline_parallel=pipeline,
                        context_parallel=context,
                        expert_parallel=experts,
                    )


def _divisors(most: int, of: int) -> Iterator[int]:
    """Powers of two up to `most` that divide `of`."""
    degree = 1
    while degree <= most:
        if of % degree == 0:
            yield degree
        degree *= 2

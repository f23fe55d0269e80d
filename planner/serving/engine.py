"""A served model on given cards, ready to be timed, or why it cannot be."""

from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.serving.kv_cache import CacheFormat
from tuneplan.planner.serving.request import ServedModel
from tuneplan.planner.serving.token_time import Engine, rates_of
from tuneplan.planner.serving.weight_formats import WeightFormat


def engine_of(
    model: ServedModel, weights: WeightFormat, cache: CacheFormat, gpu: Gpu | None, ways: int, interconnect: str | None
) -> tuple[Engine | None, str]:
    """The engine, or None and the reason.

    Args:
        model: what is served.
        weights: format of its linear layers.
        cache: dtype of its KV cache.
        gpu: the card; None where only its memory is known.
        ways: GPUs of tensor parallelism.
        interconnect: between them.
    """
    if gpu is None:
        return None, "the card is known by its memory alone; name one with --gpu"
    if model.spec is None:
        return None, "the model is known by the size of its weights alone"
    if model.experts:
        return None, "which experts a batch reads is not modelled, so a mixture of experts has no time"
    rates = rates_of(gpu)
    if rates.reason:
        return None, rates.reason
    served = model.weights(weights, ways)
    width = model.attention_width
    return Engine(
        served, weights, model.layers, model.shape.hidden_size, width, model.cache, cache, gpu, ways, rates, interconnect
    ), ""

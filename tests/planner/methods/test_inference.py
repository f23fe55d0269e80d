"""What a method costs when the model answers."""

from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.inference import inference
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec

LLAMA_7B = read_spec(*load("7b"))


def test_full_fine_tuning_costs_nothing_more() -> None:
    """A model that was trained whole runs as it did before."""
    found = inference(LLAMA_7B, parse("full"))
    assert (0, 0, 0, 0) == (found.flops, found.moved_bytes, found.launches, found.adapter_bytes)


def test_lora_beside_the_base() -> None:
    """Two FLOPs for every adapter weight and token, and the scaling of each result; merged it costs nothing."""
    found = inference(LLAMA_7B, parse("lora(r=8,lora_dropout=0.1)"))
    adapters = 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert 2 * adapters == found.flops
    assert 4 * adapters == found.adapter_bytes
    assert found.merged is not None
    assert found.flops == found.unmerged.flops - found.merged.flops


def test_a_quantized_base_is_served_in_four_bits() -> None:
    """The overhead is that of the adapter alone; the base is four bits with or without it."""
    found = inference(LLAMA_7B, parse("qlora"))
    assert inference(LLAMA_7B, parse("lora")).flops == found.flops
    assert 4.2 * 2**30 > found.weight_bytes

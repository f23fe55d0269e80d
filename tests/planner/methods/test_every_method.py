"""Laws that every method with a name keeps, whatever it is made of."""

from datetime import date

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.job import Job
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse, standing_alone
from tuneplan.planner.methods.inference import inference
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.replay import replay
from tuneplan.planner.search import find
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings

SPEC = read_spec(*load("TinyLlama/TinyLlama-1.1B-Chat-v1.0"))
WITH_BIASES = read_spec(*load("Qwen/Qwen2.5-0.5B"))
NO_DECODER = {"xattn"}
"""Methods that are for other models than decoders."""


@pytest.mark.parametrize("method", sorted(set(standing_alone()) - NO_DECODER))
def test_a_step_leaves_what_it_found(method: str) -> None:
    """When the backward is over, weights, states and gradients are there, and not a byte more or less; replayed, too."""
    settings = Settings(seq_len=64, gradient_checkpointing="off")
    wanted = "adaption_prompt(adapter_layers=4)" if method == "adaption_prompt" else method
    spec = WITH_BIASES if method == "bitfit" else SPEC
    network = build(spec, parse(wanted), settings)
    memory = step_memory(network, settings, OPTIMIZERS["adamw"])
    assert memory.phases["optimizer_step"].end_bytes == memory.phases["backward"].end_bytes
    assert network.trainable_parameters > 0
    assert replay(network, settings, OPTIMIZERS["adamw"], layers=1).reserved_bytes >= memory.peak.peak_bytes
    served = inference(spec, parse(wanted))
    assert served.weight_bytes > 0
    assert (served.merged is None) == (not parse(wanted).mergeable)


@pytest.mark.parametrize("method", ["lst", "ipa", "meft", "prefix_tuning", "longlora"])
def test_what_a_method_cannot_have_is_not_proposed(method: str) -> None:
    """On a card that is far too small, the changes that are tried are those that the method can run with."""
    job = Job(SPEC, (parse(method),), tuple(targets(["t4"], (1,))), 10**6, 8, Settings(seq_len=1024), micro_batch_sizes=(8,))
    answer = find(job, date(2026, 11, 1))
    assert answer.plans or answer.rejected


@pytest.mark.parametrize("method", sorted(NO_DECODER))
def test_methods_for_other_models(method: str) -> None:
    """They say so."""
    with pytest.raises(InputError, match="cross-attention"):
        build(SPEC, parse(method), Settings(seq_len=64))

"""What switches save: each figure is that of an estimate with the switch thrown."""

from dataclasses import replace

import pytest

from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.savings import RESERVED, Saving, best
from tuneplan.planner.switches import SAME, TRAINING, switches
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.planner.units import GIB

LLAMA = read_spec(*load("7b"))
PLAIN = Settings(micro_batch_size=8, seq_len=512, gradient_checkpointing="off")


def asked(method: str = "lora", settings: Settings = PLAIN, optimizer: str = "adamw", **changes: object) -> Request:
    """A configuration of Llama 2 7B on an A100."""
    request = Request(LLAMA, parse(method), settings, OPTIMIZERS[optimizer], gpu=load_gpus()["a100-80g"])
    return replace(request, **changes)  # type: ignore[arg-type]


def found(result: Estimate) -> dict[str, Saving]:
    """The savings of an estimate by the name of their switch."""
    return {saving.switch.name: saving for saving in result.savings}


@pytest.mark.parametrize(
    "request_",
    [
        asked(),
        asked("full", replace(PLAIN, gradient_checkpointing="non-reentrant")),
        asked("qlora", replace(PLAIN, padded=True, attention="eager")),
        asked("full", PLAIN, sharding=Sharding(8, 3)),
    ],
    ids=["lora", "full", "qlora", "sharded"],
)
def test_every_figure_is_that_of_an_estimate_with_the_switch(request_: Request) -> None:
    """Bytes and seconds are the difference to the same configuration with the switch thrown, estimated on its own."""
    result = estimate(request_)
    assert result.savings
    assert result.time is not None
    assert result.time.seconds is not None
    for saving in result.savings:
        other = estimate(saving.switch.request, advice=False)
        assert other.time is not None
        assert other.time.seconds is not None
        assert result.time.seconds - other.time.seconds == saving.saved_seconds
        if saving.of == RESERVED:
            assert result.reserved_bytes - other.reserved_bytes == saving.saved_bytes
        else:
            assert result.allocated_bytes - other.allocated_bytes == saving.saved_bytes


def test_sixteen_bit_adapters_save_what_the_warning_says() -> None:
    """The switch that PEFT's default hides gains most for LoRA, and comes first."""
    result = estimate(asked())
    first = result.savings[0]
    assert "bf16_adapters" == first.switch.name
    assert f"saves {first.saved_bytes / GIB:.2f} GiB" in " ".join(result.warnings)


def test_switches_leave_the_tokens_of_an_update_alone() -> None:
    """Every switch trains on as many tokens an update, so that seconds compare."""
    request = asked(settings=replace(PLAIN, padded=True))

    def tokens(r: Request) -> int:
        return int(r.settings.micro_batch_size * r.settings.seq_len) * r.gradient_accumulation_steps

    assert {tokens(request)} == {tokens(switch.request) for switch in switches(request)}


def test_what_is_thrown_is_not_offered_again() -> None:
    """A configuration with every switch thrown has none left that trains the same, but recomputing less."""
    settings = replace(PLAIN, gradient_checkpointing="non-reentrant", loss="liger", attention="flash")
    request = asked("lora(autocast_adapter_dtype=false)", settings, "paged_adamw_8bit", expandable_segments=True)
    assert ["no_checkpointing"] == [s.name for s in switches(request) if s.effect != TRAINING]


def test_fp32_has_no_narrow_adapters_and_no_flash() -> None:
    """Where nothing is in 16 bits, nothing can be kept in them, and FlashAttention has no kernel."""
    names = {switch.name for switch in switches(asked(settings=replace(PLAIN, dtype="fp32")))}
    assert not names & {"bf16_adapters", "flash_attention"}


def test_a_card_before_ampere_has_no_flash() -> None:
    """FlashAttention-2 needs compute capability 8.0."""
    settings = replace(PLAIN, dtype="fp16", compute_capability=(7, 5))
    assert "flash_attention" not in {switch.name for switch in switches(asked(settings=settings))}


def test_the_best_gain_fit_and_train_the_same() -> None:
    """At most three, the first that gain; what does not fit or trains otherwise is left out, and so is a second optimizer."""
    request = asked("full", replace(PLAIN, gradient_checkpointing="non-reentrant"), capacity_bytes=70 * GIB)
    result = estimate(request)
    chosen = best(result.savings)
    assert 1 <= len(chosen) <= 3
    assert all(saving.gain > 0 and saving.fits and saving.switch.effect != TRAINING for saving in chosen)
    assert 1 == sum(saving.switch.name in OPTIMIZERS for saving in chosen)
    assert sorted(chosen, key=lambda saving: (not saving.free, -saving.gain)) == list(chosen)


def test_free_switches_come_first_and_other_training_last() -> None:
    """Recomputing layers costs time, and fewer target modules are no free saving, whatever they save."""
    kinds = [(saving.switch.effect == TRAINING, not saving.free) for saving in estimate(asked()).savings]
    assert sorted(kinds) == kinds
    assert {(False, False), (False, True), (True, False)} <= set(kinds)


def test_expandable_segments_are_replayed_or_left_out() -> None:
    """Without a replay of the step there is nothing to compare them with."""
    assert RESERVED == found(estimate(asked()))["expandable_segments"].of
    assert "expandable_segments" not in found(estimate(asked(sharding=Sharding(8, 3))))


def test_without_a_card_there_are_bytes_and_no_seconds() -> None:
    """Time is never made up."""
    assert {None} == {saving.saved_seconds for saving in estimate(asked(gpu=None)).savings}


def test_modules_that_the_model_lacks_are_no_switch() -> None:
    """A model without the modules of fewer targets has one switch less, not an error."""
    only = asked("lora(target_modules=o_proj)")
    assert "fewer_targets" not in found(estimate(only))


def test_the_fused_loss_computes_at_the_rate_of_the_model() -> None:
    """Liger's products are in 16 bits; the loss that they end in is fp32 and must not set their rate."""
    saving = found(estimate(asked()))["fused_loss"]
    assert SAME == saving.switch.effect
    assert saving.saved_seconds is not None
    assert saving.saved_seconds > 0

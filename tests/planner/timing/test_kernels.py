"""The kernels that dequantize 4-bit weights: their time where a card's were measured, a note where not.

The speeds here are played; no card has any yet.
"""

from dataclasses import replace

import pytest

from tuneplan.hardware_profiles.calibrations import Calibration
from tuneplan.hardware_profiles.kernel_speeds import DequantizeFit, KernelSpeeds
from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.hardware_profiles.records import Gpu
from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.switches import switches
from tuneplan.planner.timing.card_columns import CardColumns
from tuneplan.planner.timing.grid_time import StepSeconds
from tuneplan.planner.timing.step_time import StepTime, step_time
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE

PLAIN = Settings(micro_batch_size=1, seq_len=512)
OURS = replace(PLAIN, kernels="tuneplan")
SPEC = read_spec(*load("8b"))
CARD = find_gpu("h200")
DECODED = "quantized_base+ia3"
"""4-bit weights under layers that stay PEFT's."""
SPEEDS = KernelSpeeds(
    {"bitsandbytes": DequantizeFit(9e-6, 2e-12, 1.0, ("played",)), "tuneplan": DequantizeFit(3e-6, 7e-13, 1.0, ("played",))},
    measured={"note": "played"},
)
MEASURED = replace(CARD, calibration=Calibration(CARD.id, {}, kernels=SPEEDS))


def timed(settings: Settings, gpu: Gpu, method: str = DECODED) -> StepTime:
    """A step on one card."""
    return step_time(build(SPEC, parse(method), settings), settings, find("adamw"), gpu)


def test_a_card_without_measurements_counts_bitsandbytes_and_says_so() -> None:
    """No speed is made up: the time is the same, and a note says what is missing."""
    theirs, ours = timed(PLAIN, CARD), timed(OURS, CARD)
    assert theirs.seconds == ours.seconds
    assert any("not measured on" in note for note in ours.notes)
    assert not any("not measured on" in note for note in theirs.notes)


def test_a_measured_card_takes_its_fits() -> None:
    """Forward: each weight takes a + b * weights instead of the other kernels' a + b * weights."""
    work = network_work(build(SPEC, parse(DECODED), PLAIN), PLAIN).forward
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert 32 * 7 == work.dequantizations
    expected = 32 * 7 * (9e-6 - 3e-6) + linear * (2e-12 - 7e-13)
    saved = timed(PLAIN, MEASURED).forward_seconds - timed(OURS, MEASURED).forward_seconds
    assert saved == pytest.approx(expected, rel=1e-6)


def test_one_launch_instead_of_three() -> None:
    """Launches of the step: two fewer for each dequantization, and only where they were measured."""
    settings = Settings(micro_batch_size=1, seq_len=512, gradient_checkpointing="off")
    work = network_work(build(SPEC, parse(DECODED), settings), settings)
    count = work.forward.dequantizations + work.backward.dequantizations
    theirs, ours = timed(settings, MEASURED), timed(replace(settings, kernels="tuneplan"), MEASURED)
    assert 2 * count == theirs.launches - ours.launches


def test_dense_weights_are_not_dequantized() -> None:
    """A method on 16-bit weights takes the same time with either."""
    assert timed(PLAIN, MEASURED, "ia3").seconds == timed(OURS, MEASURED, "ia3").seconds


@pytest.mark.parametrize("settings", [PLAIN, OURS], ids=["bitsandbytes", "tuneplan"])
def test_arrays_agree(settings: Settings) -> None:
    """The search's sums over cards and micro-batches are those of one step at a time."""
    import numpy as np

    sizes = np.array([1, 4])
    network = build(SPEC, parse(DECODED), replace(settings, micro_batch_size=sizes))
    many = StepSeconds(network, replace(settings, micro_batch_size=sizes), [find("adamw")], CardColumns([CARD, MEASURED]))
    seconds = many.under(SINGLE, np.array([1, 1]))
    expected = [[timed(replace(settings, micro_batch_size=int(n)), gpu).seconds for n in sizes] for gpu in (CARD, MEASURED)]
    assert seconds.reshape(2, 2) == pytest.approx(np.array(expected), rel=1e-9)


def test_fused_adapters_move_less() -> None:
    """A patched QLoRA step takes less time on a card whose kernels were not measured: fewer passes over each output."""
    theirs, ours = timed(PLAIN, CARD, "qlora"), timed(OURS, CARD, "qlora")
    assert (True, True) == (ours.moved_bytes < theirs.moved_bytes, ours.seconds < theirs.seconds)


def test_the_switch_is_offered_where_the_gain_was_measured() -> None:
    """`--kernels tuneplan` is advice only with a figure behind it, and only for 4-bit weights."""

    def offered(gpu: Gpu, method: str, settings: Settings = PLAIN) -> bool:
        request = Request(SPEC, parse(method), settings, find("adamw"), gpu=gpu)
        return "kernels" in {switch.name for switch in switches(request)}

    assert offered(MEASURED, "qlora")
    assert not offered(CARD, "qlora")
    assert not offered(MEASURED, "lora")
    assert not offered(MEASURED, "qlora", OURS)


def test_unknown_kernels() -> None:
    """A name that is none."""
    with pytest.raises(UnknownNameError, match="kernels"):
        check_settings(replace(PLAIN, kernels="unsloth"))


def test_estimates_say_what_is_not_known() -> None:
    """Warnings of an estimate: whose layers the memory is of, and that the card was not measured."""
    from tuneplan.planner.estimate import estimate

    def warned(gpu: Gpu, settings: Settings) -> list[str]:
        request = Request(SPEC, parse("qlora"), settings, find("adamw"), gpu=gpu)
        return [text for text in estimate(request).warnings if "tuneplan" in text]

    assert [] == warned(CARD, PLAIN)
    assert 2 == len(warned(CARD, OURS))
    assert 1 == len(warned(MEASURED, OURS))

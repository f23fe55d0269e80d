"""Bytes and seconds of collectives: exact ring volumes, links, and what can hide behind computation."""

from dataclasses import replace

import numpy as np
import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.models import lookup, network, registry
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import collectives, constants
from tuneplan.planner.training.settings import Settings


def build(part: Part) -> Network:
    """TinyLlama under a method."""
    id, config = lookup.load("tinyllama")
    return network.build(registry.read_spec(id, config), Method("test", (part,)), Settings())


def test_ring_volumes() -> None:
    """An all-gather sends (n-1)/n of the bytes, an all-reduce twice that; one rank sends nothing."""
    assert collectives.all_gather_bytes(800, 8) == 700
    assert collectives.all_reduce_bytes(800, 8) == 1400
    assert collectives.all_reduce_bytes(800, 1) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Gen3 x16", 15.8e9), ("Gen4 x16", 31.5e9), ("Gen4", 31.5e9), ("gen5 x8", 31.5e9), ("Gen6", 121e9)],
)
def test_pcie_text(text: str, expected: float) -> None:
    """Generation and width give bytes per second in one direction; 16 lanes where the width is not said."""
    assert collectives.pcie_bytes_per_second(text) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("text", ["", "x16", "Gen9 x16", "SXM"])
def test_unknown_pcie_text_is_an_error(text: str) -> None:
    """No guess for a text that is not a link."""
    with pytest.raises(ValueError, match="is not a PCI Express link"):
        collectives.pcie_bytes_per_second(text)


def test_nvlink_is_halved_to_one_direction() -> None:
    """The figure of a card counts both directions."""
    link = collectives.gpu_link(find_gpu("a100-80g"))
    assert link.bytes_per_second == 300e9 * constants.NVLINK.value


def test_without_nvlink_ranks_talk_over_pcie() -> None:
    """An L40 has PCIe alone."""
    link = collectives.gpu_link(find_gpu("l40"))
    assert link.note.startswith("PCIe Gen4 x16")
    assert link.bytes_per_second == collectives.pcie_bytes_per_second("Gen4 x16") * constants.PCIE_COLLECTIVE.value


def test_a_machine_may_leave_nvlink_out() -> None:
    """The instance's interconnect wins over what the card could do."""
    a100, without = find_gpu("a100-80g-pcie"), replace(find_gpu("a100-80g-pcie"), nvlink=None)
    assert collectives.gpu_link(without) == collectives.gpu_link(a100, "pcie")
    assert collectives.gpu_link(a100) == collectives.gpu_link(a100, "nvlink")


def test_an_unknown_link_is_assumed_aloud() -> None:
    """A card whose link is not in its profile gets Gen4 x16, and the note says so."""
    gpu = replace(find_gpu("rtx-4090"), pcie_link=None, nvlink=None)
    assert "assumed because no link is known" in collectives.gpu_link(gpu).note


def test_a_measured_link_is_slow_for_few_ranks_and_small_messages() -> None:
    """NCCL on A100s: all-gathers of 512 MB reach 150 GB/s between two cards and 205 between eight; of 64 KiB, a few GB/s."""
    link = collectives.gpu_link(find_gpu("a100-80g"))
    rates = [link.rate("all_gather", 2.0**29, ranks) for ranks in (2, 4, 8)]
    assert [150e9, 192e9, 205e9] == pytest.approx(rates, rel=0.02)
    assert link.rate("all_gather", 2.0**16, 8) < 0.05 * rates[-1]
    assert rates[-1] == pytest.approx(link.rate("all_gather", 2.0**33, 8), rel=0.01)
    assert link.rate("all_reduce", 2.0**29, 8) == pytest.approx(222e9, rel=0.02)


def test_rates_of_several_messages_are_those_of_each() -> None:
    """An array of messages gives what they give one by one."""
    link = collectives.gpu_link(find_gpu("h100-80g"))
    sizes = np.array([1e3, 1e6, 3e7, 1e9, 1e11])
    assert [link.rate("all_gather", float(size), 4) for size in sizes] == pytest.approx(list(link.rate("all_gather", sizes, 4)))


def test_a_card_that_was_not_measured_is_scaled_by_its_link() -> None:
    """A V100's NVLink has half of the A100's bandwidth, and half of its rates."""
    v100, a100 = collectives.gpu_link(find_gpu("v100-32g")), collectives.gpu_link(find_gpu("a100-80g"))
    assert 0.5 == v100.bytes_per_second / a100.bytes_per_second
    assert 0.5 == pytest.approx(v100.rate("all_gather", 1e8, 2) / a100.rate("all_gather", 1e8, 2))


def test_zero_stages_of_full_fine_tuning() -> None:
    """Stages 0 to 2 send twice the weights, stage 3 three times: ZeRO, section 7 (gathers for each micro-batch)."""
    net = build(Full())
    share = 2 * net.total_parameters * 3 / 4
    for stage in (0, 1, 2):
        sent = collectives.data_parallel_bytes(net, 4, stage)
        assert (0.0, 2 * share) == (sent.each_micro_batch, sent.each_step)
    three = collectives.data_parallel_bytes(net, 4, 3)
    assert three.each_step == share
    assert three.each_micro_batch == pytest.approx(2 * share, rel=1e-3)


def test_lora_reduces_adapters_only() -> None:
    """Frozen weights have no gradients; sharded, they are gathered all the same."""
    net = build(Lora(r=8))
    adapters = 4 * net.trainable_parameters
    assert collectives.data_parallel_bytes(net, 2, 0).each_step == adapters
    assert collectives.data_parallel_bytes(net, 2, 3).each_micro_batch > 2e9


def test_exposed_communication() -> None:
    """Behind enough computation only a fixed share is waited for; behind none, all of it."""
    assert collectives.exposed_seconds(1.0, 10.0) == pytest.approx(1 - constants.OVERLAP.value)
    assert collectives.exposed_seconds(1.0, 0.0) == 1.0
    assert collectives.exposed_seconds(0.0, 10.0) == 0.0


def test_copies_between_host_and_device() -> None:
    """Nothing takes no time; a gigabyte over Gen4 x16 about 40 ms."""
    assert collectives.copy_seconds(0, find_gpu("l40s")) == 0.0
    assert collectives.copy_seconds(10**9, find_gpu("l40s")) == pytest.approx(0.040, rel=0.02)

"""Typed access to a GPU's figures."""

from decimal import Decimal

import pytest

from tuneplan.hardware_profiles.loader import find_gpu


def test_absent_figures_are_none() -> None:
    """The T4 has no NVLink and no launch price with a source."""
    t4 = find_gpu("t4")
    assert (t4.nvlink_bytes_per_second, t4.purchase_usd) == (None, None)


def test_torch_names_of_data_types() -> None:
    """bfloat16 is bf16."""
    assert find_gpu("a100").peak_flops("bfloat16") == 312_000_000_000_000


def test_unknown_data_type_is_refused() -> None:
    """A misspelt data type is not an absent rate."""
    with pytest.raises(ValueError, match="No peak rate is kept for 'bf61'"):
        find_gpu("a100").peak_flops("bf61")


def test_figure_carries_source_and_quote() -> None:
    """A figure says where it was read and in which words."""
    memory = find_gpu("a100-80g").memory
    assert (memory.value, memory.quote) == (81038 * 2**20, "CUDA:0 (NVIDIA A100-SXM4-80GB, 81038MiB)")
    assert memory.source.title.startswith("Output of torch")


def test_values_have_their_types() -> None:
    """Capability is a pair, the price is exact, PCIe is words."""
    card = find_gpu("rtx-3060-12g")
    assert (card.compute_capability, card.purchase_usd, card.pcie) == ((8, 6), Decimal(329), "Gen4 x16")


def test_label_is_not_a_measurement() -> None:
    """A capacity taken from the label says so."""
    assert not find_gpu("v100-16g-pcie").memory_is_measured
    assert find_gpu("v100-16g").memory_is_measured


def test_gpu_can_be_a_dictionary_key() -> None:
    """Equal GPUs hash alike."""
    assert hash(find_gpu("a100")) == hash(find_gpu("a100-80g"))

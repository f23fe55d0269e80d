"""Adapters at inference: sizes, merging, tenants, and the count of the reference study."""

from typing import Any

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.registry import names
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.serving.adapters import AdapterLoad, adapter_of, merging, storage, tenancy
from tuneplan.planner.serving.token_time import rates_of
from tuneplan.planner.serving.weight_formats import FORMATS, network_of, served_weights
from tuneplan.planner.units import GIB, GIGA


def spec(name: str) -> Any:
    """A catalog model."""
    return read_spec(*load(name))


def test_size_of_a_lora() -> None:
    """The rank times (in + out) for each of 7 matrices in 32 layers, two bytes each, a multiply-add for each weight and token."""
    adapter = adapter_of(spec("7b"), "lora(r=16)")
    parameters = 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert (parameters, 2 * parameters, 2 * parameters) == (adapter.parameters, adapter.nbytes, adapter.flops_per_token)
    assert 2 * 7 * 32 == adapter.launches


def test_qlora_gives_the_same_adapter() -> None:
    """What the base was kept in does not change the adapter."""
    assert adapter_of(spec("7b"), "lora").parameters == adapter_of(spec("7b"), "qlora").parameters


def test_prefixes_live_in_the_cache() -> None:
    """A prefix of 30 tokens is 30 tokens of keys and values for each tenant, and does not merge."""
    adapter = adapter_of(spec("7b"), "prefix_tuning(num_virtual_tokens=30)")
    assert (30 * 2 * 4096 * 32 * 2, False) == (adapter.nbytes, adapter.mergeable)


NOT_FOR_QWEN2 = ("adaption_prompt", "modules_to_save", "xattn")
"""Other families, a head or an encoder that Qwen2.5-0.5B does not have."""


PRUNES = ("loraprune", "splora")
"""The base that is left computes less than the whole one."""


@pytest.mark.parametrize("method", [name for name in names() if name != "full"])
def test_every_method_with_an_adapter(method: str) -> None:
    """Bytes are positive, and only methods that train the base alone have none."""
    try:
        adapter = adapter_of(spec("qwen2.5-0.5b"), method)
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
        assert adapter.nbytes > 0
        assert adapter.flops_per_token >= 0 or method in PRUNES
    expected = method in NOT_FOR_QWEN2 or "has no adapter" in refused or "nothing by itself" in refused
    assert refused == "" or expected


def test_full_has_no_adapter() -> None:
    """Full fine-tuning trains the base."""
    with pytest.raises(InputError, match="no adapter"):
        adapter_of(spec("7b"), "full")


def test_merging_is_exact_in_16_bits_only() -> None:
    """A quantized base is rounded again, and needs a matrix in 16 bits for a moment."""
    model = network_of(spec("7b"))
    adapter = adapter_of(spec("7b"), "lora")
    plain = merging(adapter, served_weights(model, FORMATS["bf16"]), FORMATS["bf16"])
    packed = merging(adapter, served_weights(model, FORMATS["nf4-double"]), FORMATS["nf4-double"])
    assert [(True, True), (True, False)] == [(m.possible, m.exact) for m in (plain, packed)]
    assert 2 * 32000 * 4096 == plain.needs_bytes
    assert plain.result_bytes > packed.result_bytes


def test_the_count_of_the_reference_study() -> None:
    """In the space of 20 full 7B models the 70B base and about 700 of its adapters fit.

    The study says 280 GB for the 20 models, at 2 bytes for each of 7.0 billion; with its own figure, 686 adapters of rank 8
    fit, and with the models' exact size of 13.48 GB, 635.
    """
    base = served_weights(network_of(spec("70b")), FORMATS["bf16"]).total_bytes
    adapter = adapter_of(spec("70b"), "lora(r=8)").nbytes
    assert 700 == pytest.approx(storage(14 * GIGA, base, adapter, 20).adapters_in_the_same_space, rel=0.025)
    exact = served_weights(network_of(spec("7b")), FORMATS["bf16"]).total_bytes
    assert 635 == storage(exact, base, adapter, 20).adapters_in_the_same_space


def test_full_models_against_one_base() -> None:
    """Base and adapters of 20 tenants are far smaller than 20 models; no models at all are refused."""
    count = storage(100, 100, 1, 20)
    assert (2000, 120, 1900) == (count.full_bytes, count.base_and_adapters_bytes, count.adapters_in_the_same_space)
    with pytest.raises(InputError, match="none to store"):
        storage(1, 1, 1, 0)


def test_tenants() -> None:
    """Device memory holds some adapters, host memory more; loading one takes its bytes over PCIe."""
    adapter = adapter_of(spec("7b"), "lora")
    room = tenancy(adapter, GIB, 64 * GIB, find_gpu("a100-80g"))
    assert (GIB // adapter.nbytes, 64 * GIB // adapter.nbytes, room.host_adapters) == (
        room.device_adapters,
        room.host_adapters,
        room.tenants,
    )
    assert room.load_seconds == pytest.approx(adapter.nbytes / (16 * 1.969e9 * 0.8))
    none = tenancy(adapter, -1, None, None)
    assert (0, None, None, 0) == (none.device_adapters, none.host_adapters, none.load_seconds, none.tenants)


def test_punica_adds_about_two_milliseconds() -> None:
    """A batch of 32 different adapters of rank 16 on an A100; the paper reports 2 ms a token.

    Chen et al. 2023, abstract. Tolerance a factor of two: the paper's is an average over models and batches.
    """
    gpu = find_gpu("a100-80g")
    load_ = AdapterLoad(adapter_of(spec("7b"), "lora(r=16)"), 32)
    seconds = load_.decode_seconds(rates_of(gpu), "bf16", 32, 1)
    assert 0.001 < seconds < 0.004


def test_more_adapters_take_longer_until_the_batch_is_full() -> None:
    """A batch of 8 reads at most 8 adapters."""
    gpu = find_gpu("a100-80g")
    adapter = adapter_of(spec("7b"), "lora(r=64)")
    times = [AdapterLoad(adapter, n).decode_seconds(rates_of(gpu), "bf16", 8, 1) for n in (1, 4, 8, 100)]
    assert sorted(times) == times
    assert times[2] == times[3]

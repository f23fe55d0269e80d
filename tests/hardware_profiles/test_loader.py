"""Finding bundled GPUs, instances and offers."""

import subprocess
import sys
from decimal import Decimal

import pytest

from tuneplan.hardware_profiles import loader
from tuneplan.hardware_profiles.loader import (
    Gpu,
    Instance,
    Offer,
    ProfileError,
    UnknownHardwareError,
    find_gpu,
    find_instance,
    load_gpus,
    load_instances,
    newest,
    offers,
    resolve,
)


@pytest.mark.parametrize("name", ["a100-80g", "a100", "A100-80GB", "a100 80gb", "a100_sxm_80g", " a100-80g "])
def test_find_gpu_by_id_alias_and_spelling(name: str) -> None:
    """Case, spaces and underscores do not matter."""
    assert find_gpu(name).id == "a100-80g"


@pytest.mark.parametrize(
    ("alias", "gpu_id"),
    [("h100", "h100-80g"), ("rtx-a6000", "a6000"), ("rtx-3080-10g", "rtx-3080"), ("v100", "v100-16g")],
)
def test_common_names(alias: str, gpu_id: str) -> None:
    """The names that people use lead to the card that they mean."""
    assert find_gpu(alias).id == gpu_id


def test_find_gpu_unknown() -> None:
    """A close name is offered, never taken."""
    with pytest.raises(UnknownHardwareError) as caught:
        find_gpu("a100-80")
    assert str(caught.value) == f"Unknown GPU 'a100-80'. Did you mean 'a100-80g'? (plan gpus lists all {len(load_gpus())})"


def test_find_instance_ignores_case() -> None:
    """Azure writes its types in mixed case."""
    assert find_instance("standard_nd96isr_h100_v5").id == "Standard_ND96isr_H100_v5"


def test_find_instance_unknown() -> None:
    """A misspelt type is an error with the close ones."""
    with pytest.raises(UnknownHardwareError, match=r"Unknown instance 'p4de\.24'\. Did you mean 'p4de\.24xlarge'"):
        find_instance("p4de.24")


def test_resolve_gpu_and_instance() -> None:
    """One option of the command line takes both."""
    assert isinstance(resolve("a100"), Gpu)
    assert isinstance(resolve("P4DE.24XLARGE"), Instance)


@pytest.mark.parametrize("name", ["", "   ", "a100-80", "../../etc/passwd", "x" * 100_000, "\x00", "\N{SNOWMAN}"])
def test_resolve_unknown(name: str) -> None:
    """Whatever was typed, the answer is one line with exit code 2."""
    with pytest.raises(UnknownHardwareError) as caught:
        resolve(name)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_p4de() -> None:
    """The machine of the reference study: eight A100 80GB on NVLink at Amazon's price of 2026-07-20."""
    instance = find_instance("p4de.24xlarge")
    assert (instance.gpu, instance.gpu_count, instance.interconnect) == ("a100-80g", 8, "nvlink")
    assert (instance.vcpus, instance.host_memory_bytes) == (96, 1152 * 2**30)
    (offer,) = [offer for offer in offers(instance_id="p4de.24xlarge") if offer.region == "us-east-1"]
    assert (offer.purchase, offer.usd_per_hour, offer.date) == ("on_demand", Decimal("27.44705"), "2026-07-20")


def test_p4d_is_the_40_gb_card() -> None:
    """p4d and p4de differ in one letter and half the memory."""
    assert find_instance("p4d.24xlarge").gpu == "a100-40g"


@pytest.mark.parametrize("name", ["t4", "v100-16g", "v100-16g-pcie", "v100-32g"])
def test_no_bf16_before_ampere(name: str) -> None:
    """Turing and Volta have fp16 tensor cores only."""
    gpu = find_gpu(name)
    assert (gpu.peak_flops("bf16"), gpu.peak_flops("tf32")) == (None, None)
    assert gpu.peak_flops("fp16") is not None


def test_every_instance_has_a_known_gpu() -> None:
    """An instance never names a card that is not bundled."""
    assert {instance.gpu for instance in load_instances().values()} <= set(load_gpus())


def test_names_are_unique() -> None:
    """No alias or type stands for two things."""
    names = [name for gpu in load_gpus().values() for name in (gpu.id, *gpu.aliases)]
    names += [instance_id.lower() for instance_id in load_instances()]
    assert sorted(names) == sorted(set(names))


def test_memory_is_below_the_label() -> None:
    """A measured capacity is a little less than the label in the card's name, in GiB, and never more."""
    label_gib = {"t4": 16, "l4": 24, "a100-40g": 40, "a100-80g": 80, "h100-80g": 80, "rtx-4090": 24, "rtx-3060-12g": 12}
    for gpu_id, gib in label_gib.items():
        assert 0.9 * gib * 2**30 < find_gpu(gpu_id).memory_bytes < gib * 2**30


def test_tensor_rates_are_dense_and_not_below_the_ordinary_ones() -> None:
    """16-bit tensor cores are 2 to 25 times as fast as fp32 units; outside it a sparse or ordinary rate hides."""
    for gpu in load_gpus().values():
        fp32, bf16 = gpu.peak_flops("fp32"), gpu.peak_flops("bf16")
        if fp32 and bf16:
            assert 1.95 <= bf16 / fp32 <= 25, gpu.id


@pytest.mark.parametrize(
    ("gpu_id", "bf16"), [("a10g", 70), ("h100-nvl", 835), ("rtx-3090", 71), ("rtx-4090", 165.2), ("rtx-5090", 209.5)]
)
def test_trapped_rates(gpu_id: str, bf16: float) -> None:
    """Cards whose rate many tables have wrong by two or four."""
    assert find_gpu(gpu_id).peak_flops("bf16") == round(bf16 * 10**12)


def test_offers_of_a_gpu() -> None:
    """Offers can be narrowed to a card by its alias."""
    found = offers(gpu_id="a100")
    assert {offer.instance.gpu for offer in found} == {"a100-80g"}
    assert {"AWS", "GCP", "Azure", "Lambda"} <= {offer.instance.provider for offer in found}


def test_offers_of_something_unknown() -> None:
    """An unknown card has no empty list of offers: it is an error."""
    with pytest.raises(UnknownHardwareError):
        offers(gpu_id="a100-81g")
    with pytest.raises(UnknownHardwareError):
        offers(instance_id="p4dx")


def test_prices_are_positive_and_dated_or_explained() -> None:
    """Every bundled price is above zero and says its date or why it has none."""
    assert all(offer.usd_per_hour > 0 and (offer.date or offer.date_note) for offer in offers())


def test_offers_gives_each_caller_a_list_of_its_own() -> None:
    """Emptying the list does not empty the cache."""
    offers().clear()
    assert len(offers()) > 200


def test_newest_row_wins() -> None:
    """The later date counts, a date beats none, and of equal dates the last row."""

    def offer(usd: str, date: str | None, region: str = "r") -> Offer:
        return Offer(Instance("i", "p", "t4", 1), "spot", Decimal(usd), region, date, "", "s")

    rows = [offer("1", "2025-01-01"), offer("2", "2026-01-01"), offer("3", None), offer("4", "2026-01-01")]
    assert [row.usd_per_hour for row in newest([*rows, offer("5", None, "other")])] == [Decimal(4), Decimal(5)]


def test_missing_index_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A broken installation says how to mend it."""
    monkeypatch.setattr(loader, "_HERE", tmp_path)
    loader._read_index.cache_clear()
    try:
        with pytest.raises(ProfileError, match=r"Write it again with: python -m tuneplan.hardware_profiles.compile"):
            loader._read_index("index_gpus.json")
    finally:
        loader._read_index.cache_clear()


def test_nothing_heavy_is_imported() -> None:
    """Reading cards and prices needs neither pydantic nor a TOML parser."""
    code = (
        "import sys; from tuneplan.hardware_profiles import loader; loader.find_gpu('a100'); loader.offers(); "
        "print(sorted({'pydantic', 'tomllib', 'numpy', 'torch', 'difflib', 'csv'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

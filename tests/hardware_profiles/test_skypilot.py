"""SkyPilot's catalogs on this machine as prices."""

import os
from decimal import Decimal
from pathlib import Path

import pytest

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.loader import load_price_file
from tuneplan.hardware_profiles.skypilot import installed, read_installed

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,AvailabilityZone\n"
ROWS = (
    "p4de.24xlarge,A100-80GB,8.0,96.0,1152.0,40.96,us-east-1,,21.5,us-east-1a\n"
    "p4de.24xlarge,A100-80GB,8.0,96.0,1152.0,40.96,us-east-1,,19.25,us-east-1b\n"
    "new.large,L4,2.0,8.0,32.0,1.50,eu-1,,,\n"
    "m5.large,,,2.0,8.0,0.096,us-east-1,,0.04,us-east-1a\n"
    "slice.small,L4,0.5,4.0,16.0,0.4,eu-1,,,\n"
    "inf1.xlarge,Inferentia,1.0,4.0,8.0,0.228,us-east-1,,,\n"
)


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    """A folder as SkyPilot leaves it, with an older schema beside the newest."""
    for version, text in (("v7", "old"), ("v10", HEADER + ROWS)):
        path = tmp_path / version / "aws" / "vms.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        os.utime(path, (1_790_000_000, 1_790_000_000))
    return tmp_path


def test_offers(sky: Path) -> None:
    """The cheapest zone of each region, on demand and spot; the file's date; cards that are not known are counted."""
    found = read_installed(sky)
    prices = {(offer.instance.id, offer.purchase): offer.usd_per_hour for offer in found.offers}
    assert prices == {
        ("p4de.24xlarge", "on_demand"): Decimal("40.96"),
        ("p4de.24xlarge", "spot"): Decimal("19.25"),
        ("new.large", "on_demand"): Decimal("1.50"),
    }
    assert {"Inferentia": 1, "L4": 1} == found.left_out
    assert {"2026-09-21"} == {offer.date for offer in found.offers}


def test_a_bundled_instance_stays_what_it_is(sky: Path) -> None:
    """Its card, host memory and link are those with a source; a new type has what the row says."""
    machines = {offer.instance.id: offer.instance for offer in read_installed(sky).offers}
    assert (machines["p4de.24xlarge"].gpu, machines["p4de.24xlarge"].interconnect) == ("a100-80g", "nvlink")
    assert (machines["new.large"].gpu, machines["new.large"].gpu_count, machines["new.large"].provider) == ("l4", 2, "aws")


def test_a_catalog_is_taken_as_a_price_file(sky: Path) -> None:
    """`--prices FILE` knows the format by its columns."""
    assert 3 == len(load_price_file(installed(sky)[0]))


def test_no_catalogs(tmp_path: Path) -> None:
    """Without SkyPilot the message says what to do."""
    assert installed(tmp_path / "none") == []
    with pytest.raises(ProfileError, match="give a price file"):
        read_installed(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Price,Region", "Cost,Region", "the column Price is missing"),
        ("L4,2.0", "L4,two", "AcceleratorCount is 'two'"),
        ("1.50", "cheap", "Price is 'cheap'"),
        ("1.50", "-3", "Price is -3"),
        ("eu-1,,,\nm5", 'eu-1,,,"\nm5', "near line"),
    ],
)
def test_broken_catalogs(sky: Path, old: str, new: str, message: str) -> None:
    """The file and the line are named."""
    path = installed(sky)[0]
    path.write_text((HEADER + ROWS).replace(old, new), encoding="utf-8")
    with pytest.raises(ProfileError, match=message):
        read_installed(sky)

"""A machine of one's own: what an hour of it costs."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from tuneplan.planner.cost import OWNED, cheapest, within
from tuneplan.planner.errors import InputError
from tuneplan.planner.owned import read_owned

pytest.importorskip("yaml")

TODAY = date(2026, 11, 1)
FILE = """\
name: workstation
gpu: rtx-4090
gpus: 2
machine_price: 7300 USD
host_power: 200 W
electricity: 0.25 USD/kWh
pue: 1.0
hosting: 0 USD/kW/month
lifetime: 36 months
source: our invoice
date: 2026-10-01
use: 50%
"""


def written(folder: Path, text: str) -> Path:
    """A file with a text."""
    path = folder / "machine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_hour(tmp_path: Path) -> None:
    """Written off over half of 36 months' hours, the host's power always, that of two cards of 450 W while they work."""
    offer = read_owned(written(tmp_path, FILE), TODAY).offer
    expected = (7300 / 36 + 0.2 * 730 * 0.25) / 365 + 2 * 0.45 * 0.25
    assert float(offer.usd_per_hour) == pytest.approx(expected, abs=1e-4)
    assert (offer.instance.gpu, offer.instance.gpu_count, offer.purchase) == ("rtx-4090", 2, OWNED)


def test_it_is_an_offer_whatever_the_purchase(tmp_path: Path) -> None:
    """On demand and spot are compared with it; it is one machine, not several."""
    offer = read_owned(written(tmp_path, FILE), TODAY).offer
    assert [True, True, False] == [
        cheapest([offer], 2, kind, TODAY, machines) is not None for kind, machines in (("spot", 1), ("on_demand", 1), ("spot", 2))
    ]


def test_more_use_is_cheaper(tmp_path: Path) -> None:
    """Fixed costs are shared by more hours."""
    prices = [read_owned(written(tmp_path, FILE.replace("50%", use)), TODAY).offer.usd_per_hour for use in ("10%", "50%", "100%")]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] > Decimal(0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("use: 50%", "", "the key 'use' is missing"),
        ("50%", "0%", "never works"),
        ("gpus: 2", "gpu_count: 2", "unknown key 'gpu_count'"),
        ("7300 USD", "-5 USD", "line 4"),
        ("rtx-4090", "rtx-9999", "Unknown GPU"),
        ("name: workstation", "- a", "line"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The file and the line are named."""
    from tuneplan.hardware_profiles.errors import UnknownHardwareError

    with pytest.raises((InputError, UnknownHardwareError), match=message):
        read_owned(written(tmp_path, FILE.replace(old, new)), TODAY)


def test_clouds_and_regions(tmp_path: Path) -> None:
    """Offers of one provider; a name that nobody has is told with close matches."""
    from tuneplan.hardware_profiles.loader import offers

    known = offers("a100-80g")
    assert {"AWS"} == {offer.instance.provider for offer in within(known, ["aws"], [])}
    assert within(known, [], ["US-EAST-1"])
    with pytest.raises(InputError, match=r"Unknown cloud 'asw'\. Did you mean 'aws'"):
        within(known, ["asw"], [])
    with pytest.raises(InputError, match="Unknown region"):
        within(known, [], ["mars-1"])

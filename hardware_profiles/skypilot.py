"""Prices from the catalogs that SkyPilot keeps on this machine: one `vms.csv` a cloud, an instance type and region a row.

Columns after the schema in the README of github.com/skypilot-org/skypilot-catalog. A name of an accelerator that stands for
several cards (SXM and PCIe) is taken as the one that `_CARDS` says, unless the instance is bundled here.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

from tuneplan.hardware_profiles import loader
from tuneplan.hardware_profiles.errors import ProfileError, UnknownHardwareError
from tuneplan.hardware_profiles.reading import read_text
from tuneplan.hardware_profiles.records import Instance, Offer, Source

NAME = "skypilot"
FOLDER = Path("~/.sky/catalogs")
COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")
LARGEST_CATALOG_BYTES = 64 * 2**20
_CARDS = {"a100": "a100-40g", "a100-80gb": "a100-80g", "h100": "h100-80g", "h100-mega": "h100-80g", "v100": "v100-16g"}
_MOST_USD = 10_000
_PURCHASES = {"Price": "on_demand", "SpotPrice": "spot"}


@dataclass(frozen=True, slots=True)
class Catalogs:
    """What the catalogs offer.

    Attributes:
        offers: of cards that are known here.
        left_out: accelerators that are not, with the number of their rows.
    """

    offers: tuple[Offer, ...]
    left_out: Mapping[str, int]


def is_catalog(columns: list[str]) -> bool:
    """Whether a CSV file's columns are those of a catalog."""
    return {"InstanceType", "AcceleratorName"} <= set(columns)


def installed(folder: Path = FOLDER) -> list[Path]:
    """The `vms.csv` files of the newest schema under SkyPilot's folder; none where SkyPilot was never used."""
    try:
        versions = sorted(
            (path for path in folder.expanduser().iterdir() if re.fullmatch(r"v\d+", path.name)),
            key=lambda path: int(path.name[1:]),
        )
        return sorted(versions[-1].glob("*/vms.csv")) if versions else []
    except (OSError, RuntimeError):
        return []


def read_installed(folder: Path = FOLDER) -> Catalogs:
    """Every catalog on this machine. Raises ProfileError where there is none, or one is broken."""
    files = installed(folder)
    if not files:
        raise ProfileError(
            f"SkyPilot has no catalogs under {folder}; they come with its first launch. "
            "Run 'sky show-gpus', or give a price file."
        )
    found = [read_catalog(path) for path in files]
    left_out: Counter[str] = Counter()
    for catalog in found:
        left_out.update(catalog.left_out)
    return Catalogs(tuple(offer for catalog in found for offer in catalog.offers), dict(left_out))


def read_catalog(path: Path) -> Catalogs:
    """One catalog, `<cloud>/vms.csv`. Raises ProfileError, naming file and line, for a row that cannot be."""
    reader = csv.DictReader(io.StringIO(read_text(path, LARGEST_CATALOG_BYTES), newline=""), strict=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ProfileError(f"Cannot use {path}: the column {missing[0]} is missing, which SkyPilot's catalogs have.")
    day = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).date().isoformat()
    left_out: Counter[str] = Counter()
    rows: list[Offer] = []
    try:
        for row in reader:
            if not row["AcceleratorName"]:
                continue
            instance = _instance(row, path, f"{path} line {reader.line_num}")
            if instance is None:
                left_out[row["AcceleratorName"]] += 1
            else:
                rows += _offers(row, instance, path, day, f"{path} line {reader.line_num}")
    except csv.Error as error:
        raise ProfileError(f"Cannot use {path} near line {reader.line_num}: {error}. Download the catalog again.") from None
    return Catalogs(tuple(_cheapest_zone(rows)), dict(left_out))


def _cheapest_zone(rows: list[Offer]) -> Iterator[Offer]:
    """Of the zones of a region, the cheapest: spot prices differ from zone to zone."""
    best: dict[tuple[str, str, str], Offer] = {}
    for offer in rows:
        key = (offer.instance.id, offer.region, offer.purchase)
        if key not in best or offer.usd_per_hour < best[key].usd_per_hour:
            best[key] = offer
    yield from best.values()


def _instance(row: Mapping[str, str], path: Path, where: str) -> Instance | None:
    """The bundled instance of that type, else one made of the row; None for a card that is not known here."""
    bundled = loader.load_instances().get(row["InstanceType"])
    if bundled is not None:
        return bundled
    name = row["AcceleratorName"].lower()
    try:
        gpu = loader.find_gpu(_CARDS.get(name, name))
    except UnknownHardwareError:
        return None
    try:
        count = float(row["AcceleratorCount"])
    except (TypeError, ValueError):
        raise ProfileError(f"Cannot use {where}: AcceleratorCount is {row['AcceleratorCount']!r:.40}, not a number.") from None
    if count < 1 or count != int(count):
        return None  # a slice of a card
    source = Source("SkyPilot's catalog on this machine", str(path), "")
    return Instance(id=row["InstanceType"], provider=path.parent.name, gpu=gpu.id, gpu_count=int(count), source=source)


def _offers(row: Mapping[str, str], instance: Instance, path: Path, day: str, where: str) -> Iterator[Offer]:
    for column, purchase in _PURCHASES.items():
        text = (row[column] or "").strip()
        if not text:
            continue
        try:
            usd = Decimal(text)
        except InvalidOperation:
            raise ProfileError(f"Cannot use {where}: {column} is {text!r:.40}, not a price.") from None
        if not usd.is_finite() or usd.is_zero():
            continue
        if not 0 < usd < _MOST_USD:
            raise ProfileError(f"Cannot use {where}: {column} is {usd}, not a price per hour.")
        note = "date of the catalog's file"
        yield Offer(instance, purchase, usd, row["Region"] or "", day, note, f"SkyPilot catalog {path.parent.name}/vms.csv")

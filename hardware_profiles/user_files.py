"""Cards and prices that the user brings: the same formats as the bundled files, every fault in one line."""

import csv
import io
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path

from tuneplan.hardware_profiles import loader, skypilot
from tuneplan.hardware_profiles.compile import gpu_entry, parse
from tuneplan.hardware_profiles.errors import ProfileError, UnknownHardwareError
from tuneplan.hardware_profiles.reading import read_text, read_toml
from tuneplan.hardware_profiles.records import Gpu, Instance, Offer
from tuneplan.hardware_profiles.schema import GpuModel, PriceRow

_NEEDED = ("provider", "instance", "purchase", "usd_per_hour", "region")
_OPTIONAL = ("date", "date_note", "source")
_DEFINING = ("gpu", "gpu_count")
_MOST_GPUS = 1024


def load_gpu_file(path: str | Path) -> Gpu:
    """See `loader.load_gpu_file`."""
    model = parse(GpuModel, read_toml(path), str(path))
    return loader.gpu_from_index(model.id, gpu_entry(model))


def load_price_file(path: str | Path, gpus: Iterable[Gpu] = ()) -> list[Offer]:
    """See `loader.load_price_file`."""
    if str(path) == skypilot.NAME:
        return list(skypilot.read_installed().offers)
    own_gpus = {name: gpu for gpu in gpus for name in (gpu.id, *gpu.aliases)}
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if skypilot.is_catalog(list(reader.fieldnames or ())):
            return list(skypilot.read_catalog(Path(path)).offers)
        _check_columns(reader.fieldnames, path)
        found = [_offer(row, f"{path} line {reader.line_num}", path, own_gpus) for row in reader]
    except csv.Error as error:
        raise ProfileError(f"Cannot use {path} near line {reader.line_num}: {error}. Correct the file.") from None
    if not found:
        raise ProfileError(f"Cannot use {path}: it has no prices. Add a row below the column names.")
    return loader.newest(found)


def _check_columns(columns: Iterable[str] | None, path: str | Path) -> None:
    given = list(columns or ())
    missing = [name for name in _NEEDED if name not in given]
    unknown = [name for name in given if name not in (*_NEEDED, *_OPTIONAL, *_DEFINING)]
    twice = sorted({name for name in given if given.count(name) > 1})
    for names, fault in ((missing, "is missing"), (unknown, "is not known"), (twice, "is there twice")):
        if names:
            raise ProfileError(
                f"Cannot use {path}: the column {names[0]!r:.60} {fault}. "
                f"Write {','.join(_NEEDED)} and, if you like, {','.join((*_OPTIONAL, *_DEFINING))}."
            )


def _offer(row: Mapping[str | None, str | None], where: str, path: str | Path, own_gpus: Mapping[str, Gpu]) -> Offer:
    if None in row or None in row.values():
        raise ProfileError(f"Cannot use {where}: it has more or fewer values than the columns. Correct the line.")
    cells = {str(name): str(value).strip() for name, value in row.items()}
    price = parse(
        PriceRow,
        {
            **{name: cells[name] for name in _NEEDED},
            "date": cells.get("date", ""),
            "date_note": cells.get("date_note") or ("" if cells.get("date") else "the price file gives no date"),
            "source": cells.get("source") or str(path)[-500:],
        },
        where,
    )
    instance = _instance(price, cells, where, own_gpus)
    usd: Decimal = price.usd_per_hour
    return Offer(instance, price.purchase, usd, price.region, price.date or None, price.date_note, price.source)


def _instance(price: PriceRow, cells: Mapping[str, str], where: str, own_gpus: Mapping[str, Gpu]) -> Instance:
    """The bundled instance of that name, or else the one that the row defines."""
    bundled = _bundled().get(price.instance.lower())
    gpu_name, count_text = cells.get("gpu", ""), cells.get("gpu_count", "")
    if not gpu_name and not count_text:
        if bundled is None:
            raise ProfileError(
                f"Cannot use {where}: instance {price.instance!r:.60} is not known. "
                "Say what is in it in the columns gpu and gpu_count."
            )
        return bundled
    count = int(count_text) if count_text.isascii() and count_text.isdecimal() and len(count_text) <= 4 else 0
    if not 1 <= count <= _MOST_GPUS:
        raise ProfileError(f"Cannot use {where}: gpu_count is {count_text!r:.60}. Write a number from 1 to {_MOST_GPUS}.")
    gpu = _gpu(gpu_name, where, own_gpus)
    if bundled is None:
        return Instance(id=price.instance, provider=price.provider, gpu=gpu.id, gpu_count=count)
    if (bundled.gpu, bundled.gpu_count) != (gpu.id, count):
        raise ProfileError(
            f"Cannot use {where}: {bundled.id} has {bundled.gpu_count} x {bundled.gpu}, not {count} x {gpu.id}. "
            "Leave gpu and gpu_count empty or rename the instance."
        )
    return bundled


@cache
def _bundled() -> dict[str, Instance]:
    return {instance_id.lower(): instance for instance_id, instance in loader.load_instances().items()}


def _gpu(name: str, where: str, own_gpus: Mapping[str, Gpu]) -> Gpu:
    try:
        return own_gpus.get(name.lower()) or loader.find_gpu(name)
    except UnknownHardwareError as error:
        raise ProfileError(f"Cannot use {where}: {error}") from None

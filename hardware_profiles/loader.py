"""GPUs, instances and prices for the planner, read from the compiled index.

The TOML and CSV files beside this module are the data; `compile.py` checks them and writes the two index files, which
are all that is read at run time. Files of the user's own are read by `load_gpu_file` and `load_price_file`.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from tuneplan.hardware_profiles.calibrations import bundled
from tuneplan.hardware_profiles.errors import ProfileError, UnknownHardwareError
from tuneplan.hardware_profiles.records import Figure, Gpu, Instance, Offer, Source

__all__ = [
    "Figure",
    "Gpu",
    "Instance",
    "Offer",
    "ProfileError",
    "Source",
    "UnknownHardwareError",
    "find_gpu",
    "find_instance",
    "load_gpu_file",
    "load_gpus",
    "load_instances",
    "load_price_file",
    "newest",
    "offers",
    "resolve",
]

_HERE = Path(__file__).parent


@cache
def load_gpus() -> dict[str, Gpu]:
    """Every bundled GPU by id, in the order of the ids. Treat it as read-only: it is shared.

    Raises:
        ProfileError: the compiled index is missing or broken.
    """
    return {gpu_id: gpu_from_index(gpu_id, entry) for gpu_id, entry in _read_index("index_gpus.json").items()}


@cache
def load_instances() -> dict[str, Instance]:
    """Every bundled instance by id, in the order of the ids. Treat it as read-only: it is shared.

    Raises:
        ProfileError: the compiled index is missing or broken.
    """
    return {
        instance_id: Instance(id=instance_id, **{**entry, "source": Source(*entry["source"])})
        for instance_id, entry in _read_index("index_offers.json")["instances"].items()
    }


def find_gpu(name: str) -> Gpu:
    """The GPU with this id or alias; case, spaces and underscores do not matter.

    Raises:
        UnknownHardwareError: no GPU has the name.
    """
    gpu_id = _gpu_names().get(_plain(name))
    if gpu_id is None:
        raise UnknownHardwareError("GPU", name, _gpu_names(), len(load_gpus()))
    return load_gpus()[gpu_id]


def find_instance(name: str) -> Instance:
    """The instance of this type, such as "p4de.24xlarge"; case does not matter.

    Raises:
        UnknownHardwareError: no provider has the type.
    """
    instance_id = _instance_names().get(name.strip().lower())
    if instance_id is None:
        raise UnknownHardwareError("instance", name, _instance_names(), len(load_instances()))
    return load_instances()[instance_id]


def resolve(name: str) -> Gpu | Instance:
    """The GPU or the instance that a user means by a name.

    Raises:
        UnknownHardwareError: neither a GPU nor an instance has the name.
    """
    if gpu_id := _gpu_names().get(_plain(name)):
        return load_gpus()[gpu_id]
    if instance_id := _instance_names().get(name.strip().lower()):
        return load_instances()[instance_id]
    raise UnknownHardwareError("GPU", name, {**_instance_names(), **_gpu_names()}, len(load_gpus()))


def offers(gpu_id: str | None = None, instance_id: str | None = None) -> list[Offer]:
    """The newest bundled price of every provider, instance, region and kind of purchase.

    Args:
        gpu_id: keep only instances with this GPU (id or alias).
        instance_id: keep only this instance.

    Raises:
        UnknownHardwareError: the GPU or the instance is not known.
    """
    kept: Iterable[Offer] = _all_offers()
    if gpu_id is not None:
        gpu = find_gpu(gpu_id).id
        kept = (offer for offer in kept if offer.instance.gpu == gpu)
    if instance_id is not None:
        instance = find_instance(instance_id)
        kept = (offer for offer in kept if offer.instance == instance)
    return list(kept)


def newest(rows: Iterable[Offer]) -> list[Offer]:
    """One offer per provider, instance, region and purchase: the latest date, and of equal dates the last row.

    A row with a date beats one without.
    """
    best: dict[tuple[str, str, str, str], Offer] = {}
    for offer in rows:
        key = (offer.instance.provider, offer.instance.id, offer.region, offer.purchase)
        if key not in best or (offer.date or "") >= (best[key].date or ""):
            best[key] = offer
    return list(best.values())


def load_gpu_file(path: str | Path) -> Gpu:
    """A card of the user's own, from a TOML file in the format of `gpus/`.

    Raises:
        ProfileError: the file cannot be read or breaks the format; the message names the file and the field.
    """
    from tuneplan.hardware_profiles import user_files

    return user_files.load_gpu_file(path)


def load_price_file(path: str | Path, gpus: Iterable[Gpu] = ()) -> list[Offer]:
    """Prices of the user's own, from a CSV file in the format of `prices/`; the newest row of each kind wins.

    The columns `provider, instance, purchase, usd_per_hour, region` are needed, `date, date_note, source` may be
    left out. Two more, `gpu` and `gpu_count`, define instances that are not known here. A catalog of SkyPilot (`vms.csv`) is
    taken too, and the path "skypilot" stands for all those that SkyPilot keeps on this machine.

    Args:
        path: the file.
        gpus: cards of the user's own that the column `gpu` may name, besides the bundled ones.

    Raises:
        ProfileError: the file cannot be read or a row cannot be used; the message names the file, line and column.
    """
    from tuneplan.hardware_profiles import user_files

    return user_files.load_price_file(path, gpus)


def gpu_from_index(gpu_id: str, entry: Mapping[str, Any]) -> Gpu:
    """A GPU from its entry in the index; the shape is written by `compile.gpu_entry`."""
    sources = {key: Source(*fields) for key, fields in entry["sources"].items()}

    def figure(fields: list[Any]) -> Figure:
        value, source, quote = fields
        return Figure(value, sources[source], quote)

    fields_of_gpu: dict[str, Any] = entry["plain"] | {name: figure(fields) for name, fields in entry["figures"].items()}
    peaks = {dtype: figure(fields) for dtype, fields in entry["peaks"].items()}
    return Gpu(id=gpu_id, aliases=tuple(entry["aliases"]), peaks=peaks, calibration=bundled(gpu_id), **fields_of_gpu)


@cache
def _all_offers() -> tuple[Offer, ...]:
    instances = load_instances()
    index = _read_index("index_offers.json")
    sources = index["price_sources"]
    return tuple(
        newest(
            Offer(instances[instance], purchase, Decimal(usd), region, date or None, date_note, sources[source])
            for instance, purchase, usd, region, date, date_note, source in index["prices"]
        )
    )


@cache
def _gpu_names() -> dict[str, str]:
    return {name: gpu.id for gpu in load_gpus().values() for name in (gpu.id, *gpu.aliases)}


@cache
def _instance_names() -> dict[str, str]:
    return {instance_id.lower(): instance_id for instance_id in load_instances()}


@cache
def _read_index(name: str) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((_HERE / name).read_bytes())
    except (OSError, ValueError) as error:
        raise ProfileError(
            f"Cannot read {_HERE / name}: {error}. Write it again with: python -m tuneplan.hardware_profiles.compile"
        ) from None
    return index


def _plain(name: str) -> str:
    return "-".join(name.lower().replace("_", " ").split())

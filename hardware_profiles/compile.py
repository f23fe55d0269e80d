"""Checks every data file and writes the two index files that the loader reads.

python -m tuneplan.hardware_profiles.compile            write the index and the JSON Schemas
python -m tuneplan.hardware_profiles.compile --check    write nothing; exit 1 if a written file is out of date
"""

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.reading import read_text, read_toml
from tuneplan.hardware_profiles.schema import (
    FigureModel,
    GpuModel,
    InstanceModel,
    PriceRow,
    SourceModel,
    first_problem,
    json_schemas,
)

_RECORD_FIELDS = {
    "memory_bytes": "memory",
    "bandwidth_bytes_per_second": "bandwidth",
    "compute_capability": "capability",
    "nvlink_bytes_per_second": "nvlink",
    "pcie": "pcie_link",
    "tdp_watts": "tdp",
    "purchase_usd": "purchase",
}
_HERE = Path(__file__).parent
_AnyModel = TypeVar("_AnyModel", bound=BaseModel)


def build(root: Path = _HERE) -> dict[str, str]:
    """The text of every generated file by its path below `root`.

    Raises:
        ProfileError: a file breaks the format, or two files contradict each other.
    """
    gpus = _read_folder(root / "gpus", GpuModel)
    instances = _read_folder(root / "instances", InstanceModel)
    prices = _read_prices(root / "prices")
    _check_gpus(gpus)
    _check_instances(instances, gpus)
    _check_prices(prices, instances)

    sources = sorted({row.source for _, row in prices})
    index_offers = {
        "instances": _lines({model.id: _instance_entry(model) for model in instances.values()}),
        "price_sources": json.dumps(sources),
        "prices": "[\n" + ",\n".join(json.dumps(_price_entry(row, sources)) for _, row in prices) + "\n]",
    }
    return {
        "index_gpus.json": _lines({model.id: gpu_entry(model) for model in gpus.values()}) + "\n",
        "index_offers.json": "{\n" + ",\n".join(f'"{key}": {text}' for key, text in index_offers.items()) + "\n}\n",
        **{f"schemas/{name}": json.dumps(body, indent=1) + "\n" for name, body in json_schemas().items()},
    }


def gpu_entry(model: GpuModel) -> dict[str, Any]:
    """A GPU as the index holds it; read back by `loader.gpu_from_index`."""
    figures = model.figures()
    plain = {name: getattr(model, name) for name in ("name", "vendor", "architecture", "kind", "memory_basis")}
    return {
        "plain": plain | {"note": model.note or ""},
        "aliases": sorted(model.aliases),
        "figures": {_RECORD_FIELDS[name]: _figure(f) for name, f in figures.items() if name in _RECORD_FIELDS},
        "peaks": {name.removeprefix("peak_flops."): _figure(f) for name, f in figures.items() if "." in name},
        "sources": {key: _source(source) for key, source in sorted(model.sources.items())},
    }


def _instance_entry(model: InstanceModel) -> dict[str, Any]:
    entry = model.model_dump(exclude={"id", "source"}, exclude_none=True)
    return {**entry, "source": _source(model.source)}


def _price_entry(row: PriceRow, sources: list[str]) -> list[Any]:
    where = sources.index(row.source)
    return [row.instance, row.purchase, str(row.usd_per_hour), row.region, row.date, row.date_note, where]


def _figure(figure: FigureModel) -> list[Any]:
    return [figure.value, figure.source, figure.quote]


def _source(source: SourceModel) -> list[str]:
    return [source.title, source.reference, source.date]


def _lines(entries: Mapping[str, Any]) -> str:
    """One entry a line, sorted, so that a change of one file is a change of one line."""
    lines = (f"{json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
    return "{\n" + ",\n".join(lines) + "\n}"


def _read_folder(folder: Path, model: type[_AnyModel]) -> dict[Path, _AnyModel]:
    return {path: parse(model, read_toml(path), str(path)) for path in sorted(folder.rglob("*.toml"))}


def parse(model: type[_AnyModel], data: object, where: str) -> _AnyModel:
    """`data` as `model`.

    Raises:
        ProfileError: it does not fit; the message starts with `where` and names the field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ProfileError(f"Cannot use {where}: {first_problem(error)}. Correct the file.") from None


def _read_prices(folder: Path) -> list[tuple[str, PriceRow]]:
    columns = list(PriceRow.model_fields)
    rows = []
    for path in sorted(folder.glob("*.csv")):
        reader = csv.DictReader(io.StringIO(read_text(path)))
        if reader.fieldnames != columns:
            raise ProfileError(f"Cannot use {path}: its columns are {reader.fieldnames}. Write {','.join(columns)}.")
        for line in reader:
            where = f"{path} line {reader.line_num}"
            row = parse(PriceRow, line, where)
            if path.stem != _slug(row.provider):
                raise ProfileError(f"Cannot use {where}: {row.provider} belongs in {_slug(row.provider)}.csv.")
            rows.append((where, row))
    return rows


def _check_gpus(gpus: Mapping[Path, GpuModel]) -> None:
    owner: dict[str, Path] = {}
    for path, model in gpus.items():
        _require(path.stem == model.id, path, f"its id is {model.id!r}", f"Name the file {model.id}.toml")
        for name in (model.id, *model.aliases):
            _require(name not in owner, path, f"{owner.get(name)} has the name {name!r} too", "Rename one")
            owner[name] = path
        unused = set(model.sources) - {figure.source for figure in model.figures().values()}
        _require(not unused, path, f"no figure uses the source {sorted(unused)}", "Remove it")


def _check_instances(instances: Mapping[Path, InstanceModel], gpus: Mapping[Path, GpuModel]) -> None:
    known = {model.id for model in gpus.values()}
    taken = {name for model in gpus.values() for name in (model.id, *model.aliases)}
    for path, model in instances.items():
        folder = _slug(model.provider)
        _require(path.parent.name == folder, path, f"its provider is {model.provider}", f"Move it to {folder}/")
        _require(model.gpu in known, path, f"gpus/ has no {model.gpu!r}", "Add the GPU or correct the id")
        name = model.id.lower()
        _require(name not in taken, path, f"the name {model.id!r} is taken", "Instance types are unique")
        taken.add(name)


def _check_prices(prices: Iterable[tuple[str, PriceRow]], instances: Mapping[Path, InstanceModel]) -> None:
    provider = {model.id: model.provider for model in instances.values()}
    seen = set()
    for where, row in prices:
        known = provider.get(row.instance) == row.provider
        _require(known, where, f"{row.provider} has no instance {row.instance!r}", "Add its file to instances/")
        key = (row.instance, row.purchase, row.region, row.date)
        _require(key not in seen, where, f"there is a price for {key} already", "Append prices with a newer date")
        seen.add(key)


def _require(condition: bool, where: object, reason: str, remedy: str) -> None:
    if not condition:
        raise ProfileError(f"Cannot use {where}: {reason}. {remedy}.")


def _slug(provider: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", provider.lower()).strip("-")


def main(arguments: list[str] | None = None, root: Path = _HERE) -> int:
    """Run the command; the exit code: 0 done or up to date, 1 out of date, 3 a broken data file."""
    parser = argparse.ArgumentParser(prog="python -m tuneplan.hardware_profiles.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    try:
        generated = build(root)
    except ProfileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    stale = [name for name, text in generated.items() if not _is_current(root / name, text)]
    if check:
        for name in stale:
            print(f"{name} is out of date: run python -m tuneplan.hardware_profiles.compile", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(generated[name], encoding="utf-8", newline="\n")
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


if __name__ == "__main__":
    raise SystemExit(main())

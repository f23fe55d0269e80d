"""From a workloads file to checked workloads; every message names the line."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tuneplan.hardware_profiles.errors import ProfileError
from tuneplan.hardware_profiles.loader import find_gpu, find_instance, resolve
from tuneplan.planner.capacity.schema import CHEAPEST, MOST_WORKLOADS, SECTIONS, Workloads
from tuneplan.planner.errors import InputError, TuneplanError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.serving.kv_cache import find_cache_format
from tuneplan.planner.serving.weight_formats import find_format
from tuneplan.planner.yaml_file import YamlFile, first_problem, read_yaml

MOST_GROWTH = 1000
LISTS = ("training", "serving")


def read_workloads(
    path: str | os.PathLike[str], known: frozenset[str] = frozenset(), changes: Mapping[str, str] | None = None
) -> tuple[Workloads, YamlFile]:
    """The workloads of a file.

    Args:
        path: of the YAML file.
        known: instances that the user's own price file defines, besides the bundled ones.
        changes: values given on the command line instead of the file's.

    Raises:
        InputError: the file or anything in it cannot be used; names file, line and place.
    """
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise file.error((), "a workloads file is a mapping. Begin with 'version: 1'; docs/capacity.md has an example.")
    for name in LISTS:
        entries = file.data.get(name)
        if isinstance(entries, list) and len(entries) > MOST_WORKLOADS:
            raise file.error(
                (name, MOST_WORKLOADS),
                f"more than {MOST_WORKLOADS:,} workloads ({len(entries):,}). Give workloads that are alike once, with count.",
            )
    try:
        workloads = Workloads.model_validate({**file.data, **(changes or {})})
    except ValidationError as error:
        keys: dict[str, Any] = {section: model.model_fields for section, model in SECTIONS.items()}
        raise first_problem(file, error, keys) from None
    _check(workloads, file, known)
    return workloads, file


def _check(workloads: Workloads, file: YamlFile, known: frozenset[str]) -> None:
    """What one section says about another: names, methods, formats, machines."""
    machines = _machines(workloads, file, known)
    if (1 + workloads.growth) ** (workloads.horizon - 1) > MOST_GROWTH:
        raise file.error(
            ("growth",),
            f"{workloads.growth:.0%} a month for {workloads.horizon} months is more than {MOST_GROWTH:,} times. Lower it.",
        )
    names: dict[str, int] = {}
    for section in LISTS:
        for index, workload in enumerate(getattr(workloads, section)):
            path = (section, index, "name")
            if workload.name in names:
                raise file.error(
                    path, f"{workload.name!r} is the name of a workload on line {names[workload.name]} already. Rename one."
                )
            names[workload.name] = file.line(path)
            for allowed in workload.only_on or ():
                if allowed.lower() not in machines:
                    listed = ", ".join(sorted(machines))
                    raise file.error(
                        (section, index, "only_on"), f"{allowed!r} is not listed under hardware. Listed are {listed}."
                    )
            if workload.first_month > workloads.horizon:
                raise file.error(
                    (section, index, "first_month"),
                    f"first_month {workload.first_month} lies beyond the horizon of {workloads.horizon} months. Lengthen it.",
                )
    methods: set[str] = set()
    for index, job in enumerate(workloads.training):
        if job.method != CHEAPEST and job.method not in methods:
            _try(file, ("training", index, "method"), parse, job.method)
            methods.add(job.method)
    for index, load in enumerate(workloads.serving):
        _try(file, ("serving", index, "weights"), find_format, load.weights)
        _try(file, ("serving", index, "kv_dtype"), find_cache_format, load.kv_dtype)
        if load.adapter is not None and load.adapter not in methods:
            _try(file, ("serving", index, "adapter"), parse, load.adapter)
            methods.add(load.adapter)


def _machines(workloads: Workloads, file: YamlFile, known: frozenset[str]) -> set[str]:
    """Names of all machines in lower case; each must be known and be listed once in its section."""
    hardware = workloads.hardware
    for index, name in enumerate(hardware.rent):
        if name.lower() not in known:
            _try(file, ("hardware", "rent", index), resolve, name)
    for index, reserved in enumerate(hardware.reserved):
        if reserved.instance.lower() not in known:
            _try(file, ("hardware", "reserved", index, "instance"), find_instance, reserved.instance)
    for index, owned in enumerate(hardware.buy):
        gpu = _try(file, ("hardware", "buy", index, "gpu"), find_gpu, owned.gpu)
        if owned.host_price is not None and gpu.purchase_usd is None:
            raise file.error(
                ("hardware", "buy", index, "host_price"),
                f"no launch price with a source is known for {gpu.id}. Give machine_price, the price of the whole machine.",
            )
        if gpu.tdp_watts is None:
            raise file.error(
                ("hardware", "buy", index, "gpu"), f"no rated power with a source is known for {gpu.id}. Use another card."
            )
    sections = {
        "rent": [name.lower() for name in hardware.rent],
        "reserved": [reserved.instance.lower() for reserved in hardware.reserved],
        "buy": [owned.name.lower() for owned in hardware.buy],
    }
    for section, listed in sections.items():
        for index, name in enumerate(listed):
            if name in listed[:index]:
                raise file.error(("hardware", section, index), f"{name!r} is listed twice. Remove one of them.")
    return {name for listed in sections.values() for name in listed}


def _try(file: YamlFile, path: tuple[str | int, ...], call: Any, value: str) -> Any:
    """Call something that refuses names, and put the place in front of its refusal."""
    try:
        return call(value)
    except (TuneplanError, ProfileError) as error:
        raise file.error(path, str(error)) from None


def at_line(file: YamlFile, path: tuple[str | int, ...], error: InputError) -> InputError:
    """An error that came later, with the place in the file in front."""
    return file.error(path, str(error))

"""Programs as JSON: every storage, operator and form once, and lists of numbers that point to them."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import astuple
from typing import Any, TypeVar

from tuneplan.profiling.counts import Counts
from tuneplan.profiling.fallback.program import Domain, Program
from tuneplan.profiling.fallback.recording import Operator, Recording, Storage, Weight
from tuneplan.profiling.fallback.sizes import Form

T = TypeVar("T", bound=Hashable)


def encode(program: Program) -> dict[str, Any]:
    """A JSON object with all of a program."""
    recording = program.recording
    storages, storage_numbers = _table(recording.storages)
    operators, operator_numbers = _table((op.phase, op.kind, op.dtype) for op in recording.operators)
    forms, form_numbers = _table([*program.sizes, *program.flops, *program.moved])
    return {
        "domain": [list(program.domain.batches), list(program.domain.lengths)],
        "points": [list(point) for point in program.points],
        "residual": program.residual,
        "storages": [list(astuple(storage)) for storage in storages],
        "operators": [list(operator) for operator in operators],
        "forms": [list(form) for form in forms],
        "storage_numbers": storage_numbers,
        "operator_numbers": operator_numbers,
        "form_numbers": form_numbers,
        "log": list(recording.log),
        "phases": [list(phase) for phase in recording.phases],
        "counts": list(astuple(recording.counts)),
        "notes": list(recording.notes),
        "weights": [list(astuple(weight)) for weight in recording.weights],
        "layers": list(recording.layers),
    }


def decode(content: Mapping[str, Any]) -> Program:
    """The program of such an object. Raises KeyError, IndexError, TypeError or ValueError where it is none."""
    storages = [Storage(str(phase), str(op), str(module), int(category)) for phase, op, module, category in content["storages"]]
    forms = [Form(*map(int, form)) for form in content["forms"]]
    kinds = [Operator(str(phase), str(kind), str(dtype), 0, 0) for phase, kind, dtype in content["operators"]]
    born = tuple(storages[number] for number in content["storage_numbers"])
    ran = tuple(kinds[number] for number in content["operator_numbers"])
    fitted = [forms[number] for number in content["form_numbers"]]
    births, ops = len(born), len(ran)
    log = tuple(map(int, content["log"]))
    if len(fitted) != births + 2 * ops or not all(-births <= entry < births for entry in log):
        raise ValueError("its parts do not belong together")
    batches, lengths = ((int(low), int(high)) for low, high in content["domain"])
    residual = content["residual"]
    return Program(
        Domain(batches, lengths),
        tuple((int(batch), int(length)) for batch, length in content["points"]),
        None if residual is None else float(residual),
        Recording(
            born,
            (),
            log,
            tuple((str(name), int(start)) for name, start in content["phases"]),
            ran,
            Counts(*map(int, content["counts"])),
            tuple(map(str, content["notes"])),
            tuple(weights_of(content)),
            tuple(map(str, content["layers"])),
        ),
        tuple(fitted[:births]),
        tuple(fitted[births : births + ops]),
        tuple(fitted[births + ops :]),
    )


def weights_of(content: Mapping[str, Any]) -> Iterator[Weight]:
    """The parameters of such an object."""
    for name, shape, storage, trained, idle, adapter in content["weights"]:
        yield Weight(str(name), tuple(map(int, shape)), str(storage), bool(trained), bool(idle), bool(adapter))


def _table(items: Iterable[T]) -> tuple[list[T], list[int]]:
    """Distinct items in order, and the number of each item."""
    numbers: dict[T, int] = {}
    listed = [numbers.setdefault(item, len(numbers)) for item in items]
    return list(numbers), listed

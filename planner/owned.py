"""A machine of one's own as an offer: what an hour of it costs, from purchase, power and how much it is used."""

import os
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from pydantic import Field, ValidationError

from tuneplan.hardware_profiles.loader import Instance, Offer
from tuneplan.planner.capacity.machines import MachineType, owned_machine
from tuneplan.planner.capacity.quantities import HOURS_PER_MONTH, Share
from tuneplan.planner.capacity.schema import Owned
from tuneplan.planner.cost import OWNED
from tuneplan.planner.errors import InputError
from tuneplan.planner.yaml_file import first_problem, read_yaml


class OwnedMachine(Owned):
    """The file of `--owned`: a machine as `plan capacity` takes it, and how much of the time it works."""

    use: Share = Field()
    """Share of all hours in which it works, such as '60%'; the rest is paid for by these."""


@dataclass(frozen=True, slots=True)
class OwnedOffer:
    """The machine and its price per hour of use."""

    machine: MachineType
    offer: Offer


def read_owned(path: str | os.PathLike[str], today: date) -> OwnedOffer:
    """The machine of a YAML file. Raises InputError, naming file and line, and the loader's errors for an unknown card."""
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise file.error((), "a machine is a mapping with name, gpu, gpus, machine_price and so on; docs/cost.md has an example.")
    try:
        owned = OwnedMachine.model_validate(file.data)
    except ValidationError as error:
        raise first_problem(file, error, {"": OwnedMachine.model_fields}) from None
    if not owned.use:
        raise InputError(f"{file.name}: use 0% never works, so an hour of it has no price; write such as '60%'")
    machine = owned_machine(owned, today)
    instance = Instance(id=owned.name, provider="own", gpu=machine.gpu.id, gpu_count=owned.gpus, interconnect=owned.interconnect)
    usd = Decimal(hourly_usd(machine, float(owned.use))).quantize(Decimal("0.0001"))
    note = f"{owned.machine_price or owned.host_price} USD over {owned.lifetime} months at {owned.use:.0%} use, power included"
    return OwnedOffer(machine, Offer(instance, OWNED, usd, "own", owned.date, note, machine.source))


def hourly_usd(machine: MachineType, use: float) -> float:
    """Dollars an hour of work: a month's write-off and fixed costs over the hours that it works, and the power of its cards.

    Every card is taken to draw its rated power. Formula: (depreciation + overhead) / (730 h x use) + cards x power x price.
    """
    return (machine.depreciation + machine.overhead) / (HOURS_PER_MONTH * use) + machine.gpu_count * machine.busy_gpu_hour

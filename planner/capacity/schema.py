"""What a workloads file may say. The JSON Schema in docs/schemas is generated from these classes."""

from datetime import date as calendar_date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tuneplan.planner.capacity.quantities import (
    Growth,
    Months,
    PerMonth,
    PerSecond,
    Seconds,
    Share,
    Tokens,
    Usd,
    UsdPerHour,
    UsdPerKwh,
    UsdPerKwMonth,
    Watts,
)

LONGEST_HORIZON = 36
MOST_WORKLOADS = 10_000
CHEAPEST = "cheapest"


def _date(value: str) -> str:
    try:
        calendar_date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value[:40]!r} is not a date; write such as '2026-10-31'") from None
    return value


Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")]
Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Day = Annotated[str, AfterValidator(_date), Field(json_schema_extra={"format": "date"})]
Count = Annotated[int, Field(ge=1, le=100_000)]


class Model(BaseModel):
    """Strict types, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, frozen=True)


class Lengths(Model):
    """Tokens of prompts or answers: the mean decides the load, the 95th percentile the memory."""

    mean: int = Field(ge=1, le=2**24)
    """Mean, tokens."""
    p95: int = Field(ge=1, le=2**24)
    """95th percentile, tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> "Lengths":
        if self.p95 < self.mean:
            raise ValueError(f"p95 {self.p95} is below the mean {self.mean}; give the larger one as p95")
        return self


class Workload(Model):
    """What training jobs and serving loads have in common."""

    name: Name
    """A name of its own."""
    model: Name
    """Alias, hub id of the catalog, or path to a config.json."""
    count: Count = 1
    """How many workloads like this there are."""
    only_on: list[Name] | None = Field(default=None, min_length=1)
    """Names of machines under `hardware` that may take it; any if not given."""
    growth: Growth | None = None
    """Its own growth instead of the file's."""
    first_month: int = Field(default=1, ge=1, le=LONGEST_HORIZON)
    """First month in which it runs."""
    last_month: int | None = Field(default=None, ge=1, le=LONGEST_HORIZON)
    """Last month in which it runs; the end if not given."""

    @model_validator(mode="after")
    def _months_are_ordered(self) -> "Workload":
        if self.last_month is not None and self.last_month < self.first_month:
            raise ValueError(f"last_month {self.last_month} is before first_month {self.first_month}; exchange them")
        return self


class Training(Workload):
    """A training job that comes again."""

    method: Name = CHEAPEST
    """A method such as 'lora(r=16)', or 'cheapest' of full, lora and qlora."""
    tokens: Tokens
    """Tokens of one run, all epochs together."""
    runs: PerMonth
    """How often, such as '1/week'."""
    setup: Seconds | None = None
    """Time before each run: starting the machine, loading weights and data; not counted if not given."""
    deadline: Seconds | None = None
    """How long after its start a run must be done."""
    seq_len: int = Field(default=2048, ge=2, le=2**24)
    """Tokens of a sequence."""
    global_batch_size: int = Field(default=64, ge=1, le=2**24)
    """Sequences of one update."""
    interruptible: bool = False
    """Whether spot machines may take it (it saves checkpoints and resumes)."""


class Serving(Workload):
    """A load of requests."""

    requests: PerSecond
    """Mean rate of requests, such as '5/s'."""
    peak: PerSecond | None = None
    """Rate that must be served at the busiest time; the mean if not given."""
    prompt_tokens: Lengths
    """Lengths of prompts."""
    output_tokens: Lengths
    """Lengths of answers."""
    weights: Name = "bf16"
    """Format of the weights: bf16, fp16, fp8, int8, nf4, nf4-double, gptq or awq."""
    kv_dtype: Name = "bf16"
    """Dtype of the KV cache: bf16, fp16, fp8, int8 or int4."""
    adapter: Name | None = None
    """Method of separate adapters, such as 'lora(r=16)'; nothing for a base or a merged model."""
    adapters: int = Field(default=0, ge=0, le=10**6)
    """Different adapters over one base."""
    first_token_p95: Seconds | None = None
    """Longest time to the first token, 95th percentile."""
    token_p95: Seconds | None = None
    """Longest time between two tokens, 95th percentile."""
    min_replicas: int = Field(default=1, ge=1, le=10_000)
    """Replicas that must run whatever the load, for availability."""

    @model_validator(mode="after")
    def _consistent(self) -> "Serving":
        if self.peak is not None and self.peak < self.requests * (1 - 1e-9):
            raise ValueError(f"peak {self.peak:g}/s is below the mean rate {self.requests:g}/s; give the larger one as peak")
        if self.adapters and self.adapter is None:
            raise ValueError(f"{self.adapters} adapters of which kind? Add such as adapter: 'lora(r=16)'")
        if self.adapter is not None and not self.adapters:
            raise ValueError("adapter is given, but not how many; add such as adapters: 20")
        return self


class Reserved(Model):
    """A machine that is paid for the whole time. No reserved price is bundled, so it must come from you."""

    instance: Name
    """Instance type."""
    price: UsdPerHour
    """Price of the machine, such as '12.50 USD/hour'."""
    source: Text
    """Where the price is from."""
    date: Day
    """Date of the price."""
    max: Count | None = None
    """At most so many."""


class Owned(Model):
    """A machine to buy. No price of a machine, of electricity or of hosting is bundled, so they must come from you."""

    name: Name
    """A name of its own."""
    gpu: Name
    """Card, such as 'rtx-4090'."""
    gpus: int = Field(ge=1, le=64)
    """Cards in the machine."""
    machine_price: Usd | None = None
    """Price of the whole machine; or give host_price."""
    host_price: Usd | None = None
    """Price without cards, which then cost their launch price where a source gives one."""
    host_power: Watts
    """Power of the machine without cards; cards draw their rated power while they work."""
    electricity: UsdPerKwh
    """Price of electricity, such as '0.13 USD/kWh'."""
    pue: float = Field(ge=1.0, le=5.0, strict=False)
    """Power usage effectiveness of the room: 1.0 for none of cooling."""
    hosting: UsdPerKwMonth
    """Space and cooling, such as '150 USD/kW/month' of rated power; '0 USD/kW/month' in your own room."""
    lifetime: Months
    """Time over which the machine is written off, such as '36 months'."""
    residual: Share = 0.0
    """Share of the price that is left at the end of its lifetime."""
    interconnect: Literal["nvlink", "pcie"] = "pcie"
    """Between the cards."""
    source: Text
    """Where prices are from."""
    date: Day
    """Date of the prices."""
    max: Count | None = None
    """At most so many."""

    @model_validator(mode="after")
    def _one_price(self) -> "Owned":
        if (self.machine_price is None) == (self.host_price is None):
            raise ValueError(
                "give either machine_price, for the whole machine, or host_price, to which the cards' launch price is added"
            )
        return self


class Hardware(Model):
    """What may be rented, reserved and bought."""

    rent: list[Name] = Field(default=[], max_length=50)
    """Instance types or GPUs to rent by the hour, on demand and spot, at the bundled prices or those of --prices."""
    reserved: list[Reserved] = Field(default=[], max_length=50)
    """Machines paid for the whole time."""
    buy: list[Owned] = Field(default=[], max_length=50)
    """Machines to buy."""

    @model_validator(mode="after")
    def _something(self) -> "Hardware":
        if not (self.rent or self.reserved or self.buy):
            raise ValueError("no machine is listed; add such as rent: [g6e.xlarge]")
        return self


class Workloads(Model):
    """A workloads file."""

    version: Literal[1]
    """Of this format: 1."""
    horizon: Months
    """Time to plan for, 1 to 36 months."""
    growth: Growth = 0.0
    """Growth of all workloads, such as '10%/month'."""
    max_utilisation: Share = 0.8
    """Share of a machine's capacity that is planned for; the rest is head-room."""
    hardware: Hardware
    """What may be rented, reserved and bought."""
    training: list[Training] = []
    """Training jobs."""
    serving: list[Serving] = []
    """Serving loads."""

    @model_validator(mode="after")
    def _sensible(self) -> "Workloads":
        if self.horizon > LONGEST_HORIZON:
            raise ValueError(
                f"the horizon of {self.horizon} months is longer than {LONGEST_HORIZON}; prices will not hold so long"
            )
        if not self.max_utilisation:
            raise ValueError("max_utilisation 0% plans for no use at all; write such as '80%'")
        if not (self.training or self.serving):
            raise ValueError("no workload is listed; add entries under training or serving")
        return self


SECTIONS: dict[str, type[Model]] = {
    "": Workloads,
    "hardware": Hardware,
    "training": Training,
    "serving": Serving,
    "reserved": Reserved,
    "buy": Owned,
    "prompt_tokens": Lengths,
    "output_tokens": Lengths,
}
"""The class of each section, by its name in the file."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a workloads file, for completion in editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Workloads.model_json_schema()}

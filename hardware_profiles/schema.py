"""What a GPU file, an instance file and a row of a price file must look like.

Only the compile step, the tests and files of the user's own go through here; the bundled data are read from the
compiled index.
"""

from datetime import date as calendar_date
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

_LARGEST_USD_PER_HOUR = Decimal(1_000_000)


def _whole(value: object) -> object:
    """Let 2.039e12 stand for an integer, as people write large rates."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _iso_date(value: str) -> str:
    if len(value) != len("2026-01-31") or calendar_date.fromisoformat(value).isoformat() != value:
        raise ValueError("a date is written as 2026-01-31")
    return value


def _date_or_empty(value: str) -> str:
    return _iso_date(value) if value else value


def _price(value: object) -> object:
    try:
        price = Decimal(str(value).strip())
    except InvalidOperation:
        price = Decimal("NaN")
    if not price.is_finite() or not 0 <= price <= _LARGEST_USD_PER_HOUR:
        raise ValueError(f"a price is a number from 0 to {_LARGEST_USD_PER_HOUR}, such as 3.25")
    return price


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]
Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
IsoDate = Annotated[str, AfterValidator(_iso_date)]
Bytes = Annotated[int, BeforeValidator(_whole), Field(ge=2**30, le=2**50)]
Rate = Annotated[int, BeforeValidator(_whole), Field(ge=10**9, le=10**18)]
Watts = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=100_000)]
Usd = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,2})?$")]
Capability = Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]


class Model(BaseModel):
    """Strict types, and no field that is not declared."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SourceModel(Model):
    """Where figures were read; `date` is the snapshot's, or else the day on which they were entered."""

    title: Text
    reference: Text
    date: IsoDate


class FigureModel(Model):
    """`source` names an entry of the file's sources; `quote` is the text or the key and value that was read."""

    value: Any
    source: str
    quote: Text


class ByteFigure(FigureModel):
    """A capacity in bytes, not in GB: 80 GiB is 85899345920."""

    value: Bytes


class RateFigure(FigureModel):
    """Bytes or FLOPs per second, decimal: 2039 GB/s is 2_039_000_000_000."""

    value: Rate


class WattFigure(FigureModel):
    """Watts."""

    value: Watts


class UsdFigure(FigureModel):
    """US dollars, exact, as text."""

    value: Usd


class CapabilityFigure(FigureModel):
    """A CUDA compute capability such as "8.0"."""

    value: Capability


class TextFigure(FigureModel):
    """A fact in words, such as "Gen4 x16"."""

    value: Text


class PeakFlops(Model):
    """Dense tensor-core rates (fp32: the ordinary units), FLOP/s, one multiply-add is 2. No sparse figures."""

    bf16: RateFigure | None = None
    fp16: RateFigure | None = None
    tf32: RateFigure | None = None
    fp32: RateFigure | None = None


class GpuModel(Model):
    """A file in gpus/."""

    id: Name
    name: Text
    vendor: Literal["nvidia", "amd"]
    architecture: Text
    kind: Literal["data centre", "workstation", "consumer"]
    aliases: list[Name] = []
    memory_basis: Literal["cuda", "nvidia-smi", "label"]
    note: Text | None = None
    memory_bytes: ByteFigure
    bandwidth_bytes_per_second: RateFigure
    compute_capability: CapabilityFigure | None = None
    nvlink_bytes_per_second: RateFigure | None = None
    pcie: TextFigure | None = None
    tdp_watts: WattFigure | None = None
    purchase_usd: UsdFigure | None = None
    peak_flops: PeakFlops = PeakFlops()
    sources: dict[str, SourceModel]

    def figures(self) -> dict[str, FigureModel]:
        """Every figure in the file by the name of its field."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        peaks = {f"peak_flops.{name}": getattr(self.peak_flops, name) for name in PeakFlops.model_fields}
        return {name: value for name, value in (own | peaks).items() if isinstance(value, FigureModel)}

    @model_validator(mode="after")
    def _sources_are_declared(self) -> "GpuModel":
        for name, figure in self.figures().items():
            if figure.source not in self.sources:
                raise ValueError(f"{name} names the source {figure.source!r}, which [sources] does not declare")
        return self


class InstanceModel(Model):
    """A file in instances/<provider>/."""

    id: Text
    provider: Text
    gpu: Name
    gpu_count: int = Field(ge=1, le=1024)
    vcpus: int | None = Field(default=None, ge=1, le=100_000)
    host_memory_bytes: Bytes | None = None
    interconnect: Literal["nvlink", "pcie"] | None = None
    note: Text | None = None
    source: SourceModel


class PriceRow(Model):
    """A row of a file in prices/. An empty `date` needs a `date_note` that says why."""

    provider: Text
    instance: Text
    purchase: Literal["on_demand", "spot", "reserved"]
    usd_per_hour: Annotated[Decimal, BeforeValidator(_price)]
    region: Text
    date: Annotated[str, AfterValidator(_date_or_empty)]
    date_note: str = Field(max_length=500)
    source: Text

    @model_validator(mode="after")
    def _no_date_is_explained(self) -> "PriceRow":
        if not self.date and not self.date_note:
            raise ValueError("date is empty and date_note does not say why")
        return self


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: the field, what it should be, what was given."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "no such field"
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (given: {repr(given)[:60]})"
    return f"{field}: {message}{shown}" if field else message


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of the two kinds of TOML file by file name, for completion in editors."""
    return {"gpu.json": GpuModel.model_json_schema(), "instance.json": InstanceModel.model_json_schema()}

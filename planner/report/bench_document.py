"""What `plan bench --json` prints, as classes. The JSON Schema in docs/schemas is generated from them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Shape(_Table):
    """A weight."""

    out_features: int = Field(ge=1, description="Rows of the weight.")
    in_features: int = Field(ge=1, description="Columns of the weight.")


class Case(_Table):
    """What was timed."""

    kernel: str = Field(description="Name of the kernel.")
    shape: Shape = Field(description="The weight.")
    format: Literal["nf4", "fp4", "int8_rows", "int8_blocks"] = Field(description="How the weight is stored.")
    nested: bool = Field(description="Whether the scales of a 4-bit weight are quantized too.")
    blocksize: int = Field(ge=0, description="Weights that share a scale; 0 where a row does.")
    dtype: Literal["bf16", "fp16", "fp32"] = Field(description="Of activations and results.")
    tokens: int = Field(ge=0, description="Rows of activations; 0 where there are none.")
    rank: int = Field(ge=0, description="Of the adapter; 0 for none.")


class Seconds(_Table):
    """Seconds of one call."""

    median: float = Field(gt=0, description="Of the rounds.")
    first_quartile: float = Field(gt=0, description="Of the rounds.")
    third_quartile: float = Field(gt=0, description="Of the rounds.")
    least: float = Field(gt=0, description="Of the rounds.")
    rounds: list[float] = Field(min_length=1, description="Each round's median.")


class Versus(_Table):
    """Seconds over those of the implementation that is compared with."""

    implementation: str = Field(description="The one that is compared with.")
    value: float = Field(gt=0, description="Median over the rounds of the ratio within a round.")
    noise: float = Field(ge=1, description="The factor by which that implementation was off from itself, at worst.")
    verdict: Literal["faster", "slower", "no difference"] = Field(description="No difference: the ratio is within the noise.")


class Correctness(_Table):
    """The result beside the reference, checked before anything is timed."""

    relative_error: float | None = Field(description="In the Frobenius norm; null where the result holds no numbers.")
    bound: float = Field(ge=0, description="The largest that is let through; 0: every value is equal.")


class Row(_Table):
    """One case and one implementation."""

    key: str = Field(description="Case and implementation.")
    kernel: str = Field(description="Name of the kernel.")
    case: Case = Field(description="What was timed.")
    implementation: str = Field(description="What was run.")
    basis: str = Field(default="", description="What the implementation is.")
    state: Literal["measured", "not run", "wrong", "failed"] = Field(description="What became of it.")
    reason: str | None = Field(description="Why it was not run, is wrong, failed, or has no device time.")
    correctness: Correctness | None = Field(default=None, description="Against the reference.")
    clock: Literal["cuda graph", "wall"] | None = Field(default=None, description="What the shares are counted from.")
    device_seconds: Seconds | None = Field(default=None, description="On the device, replayed from a CUDA graph.")
    call_seconds: Seconds | None = Field(default=None, description="From Python until the result is there.")
    versus: Versus | None = Field(default=None, description="Ratio of device times, on a CPU of wall times; null for itself.")
    versus_by_call: Versus | None = Field(default=None, description="Ratio of call times; null for itself.")
    minimum_bytes: int | None = Field(default=None, description="That any implementation must move; charged to all alike.")
    moved_bytes: int | None = Field(default=None, description="That this one moves, where it is known.")
    flops: int | None = Field(default=None, description="That the case needs.")
    share_of_copy: float | None = Field(default=None, description="Of the bandwidth of a copy, with minimum_bytes.")
    share_of_roofline: float | None = Field(default=None, description="Least time by bytes and FLOPs over the measured one.")
    moved_bytes_per_second: float | None = Field(default=None, description="moved_bytes over the time.")
    peak_bytes: int | None = Field(default=None, description="Of the allocator during a call, its result included; GPU only.")
    copy_bytes_per_second: float | None = Field(default=None, description="Of the copy that shares are of.")
    product_flops_per_second: float | None = Field(default=None, description="Of the product that shares are of.")


class Ceilings(_Table):
    """What the device does at best, measured in the same process."""

    copy_bytes_per_second: float = Field(gt=0, description="Bytes read and written.")
    copy_bytes: int = Field(gt=0, description="Of the tensor that was copied.")
    product_flops_per_second: float = Field(gt=0, description="Of a square product in bf16; a multiply-add is 2 FLOPs.")
    product_size: int = Field(gt=0, description="Rows and columns of its matrices.")
    tokens: list[int] = Field(description="Rows of activations of further products.")
    tokens_flops_per_second: list[float] = Field(description="Their rates.")
    launch_seconds: float | None = Field(description="Of one small kernel in a CUDA graph.")
    event_seconds: float | None = Field(description="The least that two events show.")


class Request(_Table):
    """What was asked for."""

    device: str = Field(description="cuda or cpu.")
    seconds: float = Field(description="No case was begun that might end after them.")


class BenchDocument(_Table):
    """The document."""

    schema_version: Literal[1] = Field(description="Of this schema.")
    request: Request = Field(description="What was asked for.")
    provenance: dict[str, Any] = Field(description="Device, driver, versions, commit, command and date.")
    ceilings: Ceilings = Field(description="What the device does at best.")
    clock: str = Field(description="How time was taken.")
    rows: list[Row] = Field(description="Each case and implementation.")
    left: list[str] = Field(description="Cases that the time did not reach.")
    done_before: int = Field(description="Cases that the file of --out held already.")


def json_schema() -> dict[str, Any]:
    """The published JSON Schema."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **BenchDocument.model_json_schema()}

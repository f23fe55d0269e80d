"""A server for a person at a terminal. Figures come ready."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.report.terminal import breakdown, facts
from tuneplan.planner.serving.answer import AdapterAnswer, Choice, Length, ServeAnswer
from tuneplan.planner.serving.offsite import Offsite
from tuneplan.planner.units import format_count, format_gib, format_seconds, format_usd


def serve_report(answer: ServeAnswer) -> RenderableType:
    """One server in full."""
    request, memory = answer.request, answer.memory
    server = request.server
    kinds = ", ".join(f"{count} {kind}" for kind, count in answer.cache.summary().items())
    header = [
        (
            "model",
            f"{request.model.id}{f' ({format_count(answer.weights.parameters)} parameters)' if request.model.spec else ''}",
        ),
        ("weights", f"{request.weights.name} ({request.weights.source})"),
        ("KV cache", f"{request.cache.name}, blocks of {server.block} tokens; layers: {kinds}"),
        ("GPUs", f"{request.target.label}, tensor parallel x {server.tensor_parallel}"),
        (
            "server",
            f"{server.utilisation:g} of the card, {server.max_sequences} sequences, {server.max_batched_tokens} tokens a step",
        ),
    ]
    parts: list[RenderableType] = [
        facts(header),
        Text(),
        Text(f"{format_gib(memory.device_bytes)} of {format_gib(memory.card)} on each GPU", style="bold"),
        breakdown(memory.components(), memory.device_bytes),
        Text(),
        facts(_outcome(answer)),
        Text(),
        _lengths(answer.lengths),
    ]
    if answer.adapters:
        parts += [Text(), Text("Adapters", style="bold"), facts(_adapters(answer.adapters))]
    if answer.offsite:
        parts += [Text(), Text("Offsite-tuning", style="bold"), facts(_offsite(answer.offsite))]
    if answer.choices:
        parts += [Text(), Text("Other ways to deploy it, for the first length", style="bold"), _choices(answer.choices)]
    parts += [Text(), Text(_price(answer), style="dim")]
    parts += [Text(f"! {warning}", style="yellow") for warning in answer.warnings]
    return Group(*parts)


def _outcome(answer: ServeAnswer) -> list[tuple[str, str]]:
    memory = answer.memory
    rows = [("KV cache of a token", f"{answer.kv_bytes_per_token:,} bytes on each GPU")]
    if answer.cache.state_bytes:
        rows.append(("state of a sequence", format_gib(answer.cache.state_bytes)))
    if memory.kv_cache > 0:
        rows.append(("KV cache", f"{format_gib(memory.kv_cache)}, {answer.kv_tokens:,} tokens"))
    else:
        rows.append(("KV cache", f"none: short by {format_gib(-memory.kv_cache)}; use more GPUs, fewer bits or a larger card"))
    return rows


def _table(names: tuple[str, ...], left: int = 0) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index < left else "right")
    return table


_SPEED = ("requests at once", "batch", "first token", "next token", "tokens/s", "$/M tokens")


def _speed(length: Length) -> tuple[str, ...]:
    loaded = length.loaded
    cost = "-" if length.usd_per_million is None else format_usd(length.usd_per_million)
    if loaded is None:
        return (f"{length.concurrent:,}", f"{length.batch:,}", "-", "-", "-", cost)
    return (
        f"{length.concurrent:,}",
        f"{length.batch:,}",
        format_seconds(loaded.first_token_seconds),
        format_seconds(loaded.token_seconds),
        f"{loaded.tokens_per_second:,.0f}",
        cost,
    )


def _lengths(lengths: tuple[Length, ...]) -> Table:
    table = _table(("prompt + answer", *_SPEED), 1)
    for length in lengths:
        table.add_row(f"{length.prompt:,} + {length.output:,}", *_speed(length))
    return table


def _choices(choices: tuple[Choice, ...]) -> Table:
    table = _table(("weights", "adapters", "KV tokens", *_SPEED), 2)
    for choice in choices:
        table.add_row(choice.weights, choice.adapters, f"{choice.kv_tokens:,}", *_speed(choice.length))
    return table


def _adapters(answer: AdapterAnswer) -> list[tuple[str, str]]:
    adapter, tenancy, storage, merging = answer.adapter, answer.tenancy, answer.storage, answer.merging
    load = "" if tenancy.load_seconds is None else f", {format_seconds(tenancy.load_seconds)} to load one"
    added = "" if answer.added_token_seconds is None else f", {format_seconds(answer.added_token_seconds)} more a step"
    host = "host memory not given" if tenancy.host_adapters is None else f"{tenancy.host_adapters:,} in host memory{load}"
    how = "exact" if merging.exact else "not exact"
    return [
        ("each", f"{adapter.method}: {format_count(adapter.parameters)} parameters, {format_gib(adapter.nbytes)}"),
        ("separate", f"{adapter.flops_per_token:,} FLOPs a token{added}, {answer.resident} resident"),
        (
            "merged",
            f"{how}, {format_gib(merging.needs_bytes)} while merging; {merging.note}" if merging.possible else merging.note,
        ),
        ("fit", f"{tenancy.device_adapters:,} on the device beside one request, {host}"),
        (
            "storage",
            f"{storage.models} full models take {format_gib(storage.full_bytes)}, base and {storage.models} adapters "
            f"{format_gib(storage.base_and_adapters_bytes)}; {storage.adapters_in_the_same_space:,} adapters in the same space",
        ),
    ]


def _offsite(sizes: Offsite) -> list[tuple[str, str]]:
    return [
        ("adapter", f"{format_gib(sizes.adapter_bytes)}, sent both ways"),
        ("emulator", f"{sizes.kept_layers} layers, {format_gib(sizes.emulator_bytes)}"),
        ("sent", f"{format_gib(sizes.sent_bytes)} with embeddings and head, of {format_gib(sizes.full_bytes)}"),
    ]


def _price(answer: ServeAnswer) -> str:
    price = answer.price
    if price is None:
        return "Memory is counted but for activations, runtime and CUDA graphs, which are calibrated."
    age = f"{price.age_days} days old" if price.age_days is not None else f"of unknown date ({price.offer.date_note})"
    return (
        f"Memory is counted but for activations, runtime and CUDA graphs, which are calibrated; time is modelled, at full load. "
        f"Price: {format_usd(price.usd_per_hour)}/h {price.offer.instance.id}, {age}, {price.offer.source}."
    )

"""`plan gpus`: cards, instances and their prices."""

from datetime import date
from typing import Any

import click

from tuneplan.hardware_profiles.loader import Figure, Gpu, Instance, Offer, load_gpus, offers, resolve
from tuneplan.planner.cli.options import json_option
from tuneplan.planner.cost import cheapest
from tuneplan.planner.report import document
from tuneplan.planner.units import GIGA, TERA, format_gib, format_usd


@click.group(name="gpus", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """The GPUs that are known by name, with the memory a driver reports and the cheapest price of one."""
    if ctx.invoked_subcommand is not None:
        return 0
    cards = list(load_gpus().values())
    if as_json:
        click.echo(document.text({"gpus": [gpu_json(gpu) for gpu in cards]}))
        return 0
    from rich.table import Table

    from tuneplan.planner.report.terminal import console

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("id", "memory", "bandwidth", "bf16 dense", "cheapest hour of one", "aliases"):
        table.add_column(name, justify="right" if name in ("memory", "bandwidth", "bf16 dense") else "left")
    for gpu in cards:
        peak = gpu.peak_flops("bf16")
        price = cheapest(offers(gpu.id), 1, "on_demand", date.today())
        table.add_row(
            gpu.id,
            format_gib(gpu.memory_bytes),
            f"{gpu.bandwidth_bytes_per_second / GIGA:,.0f} GB/s",
            f"{peak / TERA:,.0f} TFLOP/s" if peak else "-",
            f"{format_usd(price.usd_per_hour)} {price.offer.instance.id}" if price else "-",
            ", ".join(gpu.aliases),
        )
    console().print(table)
    return 0


@command.command(name="show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> int:
    """One GPU or instance: every figure with its source, and every price with its date."""
    found = resolve(name)
    known = offers(found.id) if isinstance(found, Gpu) else offers(instance_id=found.id)
    if as_json:
        body = gpu_json(found) if isinstance(found, Gpu) else instance_json(found)
        click.echo(document.text({**body, "offers": [offer_json(o) for o in known]}))
        return 0
    if isinstance(found, Gpu):
        click.echo(f"{found.id}: {found.name}, {found.architecture}, {found.kind}")
        for label, figure in _figures(found).items():
            click.echo(f"  {label}: {figure.value} ({figure.source.title}, {figure.source.date}: {figure.quote})")
        if found.note:
            click.echo(f"  note: {found.note}")
    else:
        click.echo(f"{found.id}: {found.gpu_count} x {found.gpu}, {found.provider}")
        for label, value in instance_json(found).items():
            click.echo(f"  {label}: {value}")
    for offer in known:
        click.echo(
            f"  {offer.instance.id}: {format_usd(offer.usd_per_hour)}/h {offer.purchase}, {offer.region}, "
            f"{offer.date or offer.date_note}"
        )
    return 0


def _figures(gpu: Gpu) -> dict[str, Figure]:
    named = {
        "memory_bytes": gpu.memory,
        "bandwidth_bytes_per_second": gpu.bandwidth,
        "compute_capability": gpu.capability,
        "nvlink_bytes_per_second": gpu.nvlink,
        "pcie": gpu.pcie_link,
        "tdp_watts": gpu.tdp,
        "purchase_usd": gpu.purchase,
        **{f"peak_flops.{dtype}": figure for dtype, figure in gpu.peaks.items()},
    }
    return {label: figure for label, figure in named.items() if figure is not None}


def gpu_json(gpu: Gpu) -> dict[str, Any]:
    """A card with every figure's value, source and quotation."""
    return {
        "id": gpu.id,
        "name": gpu.name,
        "vendor": gpu.vendor,
        "kind": gpu.kind,
        "aliases": list(gpu.aliases),
        "memory_basis": gpu.memory_basis,
        "figures": {
            label: {
                "value": figure.value,
                "source": figure.source.reference,
                "date": figure.source.date,
                "quote": figure.quote,
            }
            for label, figure in _figures(gpu).items()
        },
    }


def instance_json(instance: Instance) -> dict[str, Any]:
    """An instance."""
    return {
        "id": instance.id,
        "provider": instance.provider,
        "gpu": instance.gpu,
        "gpu_count": instance.gpu_count,
        "vcpus": instance.vcpus,
        "host_memory_bytes": instance.host_memory_bytes,
        "interconnect": instance.interconnect,
        "source": instance.source.reference if instance.source else None,
    }


def offer_json(offer: Offer) -> dict[str, Any]:
    """A price with its date and source."""
    return {
        "provider": offer.instance.provider,
        "instance": offer.instance.id,
        "purchase": offer.purchase,
        "usd_per_hour": float(offer.usd_per_hour),
        "region": offer.region,
        "date": offer.date,
        "date_note": offer.date_note,
        "source": offer.source,
    }

"""A SkyPilot task that rents the plan's machine, sets the tool up and starts it.

Keys are those of SkyPilot 0.14 (sky/utils/schemas.py get_task_schema).
"""

from datetime import date
from decimal import Decimal
from typing import Any

from tuneplan.hardware_profiles.loader import Offer
from tuneplan.planner.cost import STALE_DAYS
from tuneplan.planner.errors import InputError
from tuneplan.planner.export.job import ExportJob
from tuneplan.planner.export.yaml_text import Commented, document

CONFIG = "sky.yaml"
CLOUDS = {
    "AWS": "aws",
    "Azure": "azure",
    "GCP": "gcp",
    "Lambda": "lambda",
    "RunPod": "runpod",
    "Nebius": "nebius",
    "Cudo": "cudo",
    "FluidStack": "fluidstack",
    "Oracle Cloud": "oci",
    "Datacrunch": "verda",
}
"""SkyPilot's name of each provider that it can rent from (sky/skylet/constants.py ALL_CLOUDS)."""
ACCELERATORS = {
    "a10": "A10",
    "a10g": "A10G",
    "a30": "A30",
    "a40": "A40",
    "a4000": "RTXA4000",
    "a5000": "RTXA5000",
    "a6000": "RTXA6000",
    "a100-40g": "A100",
    "a100-40g-pcie": "A100",
    "a100-80g": "A100-80GB",
    "a100-80g-pcie": "A100-80GB",
    "b200": "B200",
    "b300": "B300",
    "h100-80g": "H100",
    "h100-80g-pcie": "H100",
    "h100-nvl": "H100",
    "h200": "H200",
    "l4": "L4",
    "l40": "L40",
    "l40s": "L40S",
    "mi300x": "MI300X",
    "rtx-3090": "RTX3090",
    "rtx-4090": "RTX4090",
    "rtx-5090": "RTX5090",
    "rtx-pro-6000": "RTXPRO6000",
    "t4": "T4",
    "v100-16g": "V100",
    "v100-16g-pcie": "V100",
    "v100-32g": "V100-32GB",
}
MOST_CANDIDATES = 8
DISK_GIB = 256


def write(job: ExportJob) -> tuple[str, tuple[str, ...]]:
    """The task's text, and what it leaves out.

    The folder of the files is the task's workdir; local data and models are mounted. Raises InputError for a card that SkyPilot
    has no name for, or none at all.
    """
    gpu = job.plan.target.gpu
    if gpu is None or gpu.id not in ACCELERATORS:
        named = gpu.id if gpu else job.plan.target.label
        raise InputError(f"SkyPilot has no name for {named} that is known here; leave --skypilot out, or plan for another --gpu")
    name = ACCELERATORS[gpu.id]
    found, left_out = candidates(job)
    resources: dict[str, Any] = {"disk_size": DISK_GIB}
    spot = job.plan.price is not None and job.plan.price.offer.purchase == "spot"
    resources["use_spot"] = spot
    if not found:
        resources["accelerators"] = f"{name}:{job.gpus}"
    else:
        resources["ordered"] = Commented(found, "By price, least first; SkyPilot takes the first that it can get.")
    mounts: dict[str, Any] = {}
    if job.data.local:
        mounts[job.data.name] = job.data.name
    if job.model.startswith("/"):
        mounts[job.model] = job.model
    task: dict[str, Any] = {
        "name": f"tuneplan-{job.plan.request.spec.id.rpartition('/')[2]}".lower()
        .replace(".", "-")
        .replace("_", "-")[:40]
        .rstrip("-"),
        "resources": resources,
        "workdir": ".",
        "num_nodes": 1,
    }
    if mounts:
        task["file_mounts"] = mounts
    task |= {
        "envs": {"HF_HOME": "~/.cache/huggingface"},
        "setup": "python3 -m venv ~/venv\n~/venv/bin/pip install -r requirements.txt\n",
        "run": 'export PATH="$HOME/venv/bin:$PATH"\nbash launch.sh\n',
    }
    gaps = tuple(f"SkyPilot cannot rent from {provider}, which the plan's prices have" for provider in left_out)
    return document(task, job.head("SkyPilot", CONFIG)), gaps


def candidates(job: ExportJob) -> tuple[list[dict[str, Any]], list[str]]:
    """Machines with enough of the card, the cheapest first, once each; and providers that SkyPilot does not know."""
    plan = job.plan
    purchase = plan.price.offer.purchase if plan.price is not None else "on_demand"
    prices: dict[tuple[str, str], Decimal] = {}
    unknown: list[str] = []
    for offer in plan.target.offers:
        instance = offer.instance
        if offer.purchase != purchase or instance.gpu_count < job.gpus or _stale(job, offer):
            continue
        cloud = CLOUDS.get(instance.provider)
        if cloud is None:
            if instance.provider not in unknown:
                unknown.append(instance.provider)
            continue
        key = (cloud, instance.id)
        prices[key] = min(prices.get(key, offer.usd_per_hour), offer.usd_per_hour)
    ranked = sorted(prices.items(), key=lambda item: (item[1], item[0]))[:MOST_CANDIDATES]
    return [{"infra": cloud, "instance_type": instance} for (cloud, instance), _ in ranked], unknown


def _stale(job: ExportJob, offer: Offer) -> bool:
    """Whether an offer is older than those that plans are priced with."""
    return offer.date is not None and (job.today - date.fromisoformat(offer.date)).days > STALE_DAYS

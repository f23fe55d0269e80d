"""Methods side by side: what each trains, computes, holds, costs, serves and is known to reach.

Training memory and compute are those of one configuration that is the same for every method: one card, nothing sharded, the
first optimizer of the job, and gradient checkpointing unless the job is without. Time and money are those of each method's
best plan for the same tokens.
"""

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from tuneplan.planner.device_memory import usable_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.job import Job
from tuneplan.planner.methods import evidence
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.evidence import Finding, Quality
from tuneplan.planner.methods.inference import BASE, Inference, inference
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import EFFORTS
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.plan import Plan, Rejected
from tuneplan.planner.request import Request, check_settings
from tuneplan.planner.search import find
from tuneplan.planner.timing.decoding import Decoding, decoding
from tuneplan.planner.timing.work import network_work
from tuneplan.planner.training.settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """A method on every dimension.

    Attributes:
        method: its parts.
        estimate: of one step at the common configuration.
        flops_per_token: matrix-multiply FLOPs of forward and backward, for each token of the data.
        recomputed_flops_per_token: of the forwards that gradient checkpointing runs again.
        serving: work and bytes of a decoded token; None for a model that is traced, whose answers are not.
        base: time of a decoded token of the base alone; None without a card.
        unmerged: the same with every part beside the base.
        full_model_bytes: of the checkpoint of the whole model in 16 bits.
        plan: the best for the job's tokens; None where nothing fits.
        refused: the closest miss where there is no plan.
        findings: published results.
    """

    method: Method
    estimate: Estimate
    flops_per_token: int
    recomputed_flops_per_token: int
    serving: Inference | None
    base: Decoding | None
    unmerged: Decoding | None
    full_model_bytes: int
    plan: Plan | None
    refused: Rejected | None
    findings: tuple[Finding, ...]

    @property
    def trained_share(self) -> float:
        """Of all parameters, the method's included."""
        return self.estimate.network.trainable_parameters / self.estimate.network.total_parameters

    @property
    def merged(self) -> Decoding | None:
        """Time of a decoded token with everything folded into the base; None where that cannot be."""
        return self.base if self.method.mergeable else None

    @property
    def overhead(self) -> float | None:
        """Device time of a decoded token beside the base, over that of the base alone, less one; None without a card."""
        if self.base is None or self.unmerged is None:
            return None
        return self.unmerged.device_seconds / self.base.device_seconds - 1

    @property
    def least_overhead(self) -> float | None:
        """The overhead as the method is best served: none where it merges."""
        return 0.0 if self.method.mergeable else self.overhead

    @property
    def served_bytes(self) -> int | None:
        """Device bytes of the weights as served unmerged, and of what lies in the cache of every request."""
        return None if self.serving is None else self.serving.weight_bytes + self.serving.cached_bytes

    @property
    def merged_bytes(self) -> int | None:
        """Device bytes of the weights when everything is merged."""
        serving = self.serving
        return serving.weight_bytes - serving.adapter_bytes if serving is not None and self.method.mergeable else None

    @property
    def adapters_per_model(self) -> int:
        """Checkpoints of the method in the space of one whole model."""
        return self.full_model_bytes // max(1, self.estimate.checkpoint_bytes)

    @property
    def quality(self) -> Quality | None:
        """What the findings say together."""
        return evidence.quality(self.findings)

    @property
    def swappable(self) -> bool:
        """Whether what was trained can be exchanged on a loaded base."""
        return all(part.swappable for part in self.method.parts)

    @property
    def batchable(self) -> bool:
        """Whether requests with different such adapters can share a batch; a quantized base changes nothing of that."""
        return all(part.batchable for part in self.method.parts if part.label != BASE)

    @property
    def effort(self) -> str:
        """The largest of the parts, one of EFFORTS."""
        return max([part.effort for part in self.method.parts], key=EFFORTS.index)

    @property
    def code_changes(self) -> tuple[str, ...]:
        """What the user changes, part by part, each thing once."""
        return tuple(dict.fromkeys(part.code_changes for part in self.method.parts))

    @property
    def merge_notes(self) -> tuple[str, ...]:
        """What merging costs where it is not exact."""
        return tuple([part.merge_note for part in self.method.parts if part.merge_note and self.method.mergeable])

    @property
    def leaves_model_alone(self) -> bool:
        """Whether the served model keeps its own weights and modules: prompts and prefixes lie in the cache alone."""
        return not self.method.mergeable and all(part.at_inference() is None for part in self.method.parts if part.label != BASE)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows to keep.

    Attributes:
        mergeable: only methods that fold into the base.
        max_inference_overhead: largest share that a decoded token may take longer; merged where that can be.
        unmerged: judge the overhead with nothing merged, as many adapters over one base are served.
        min_quality: least median of the published scores over those of full fine-tuning.
    """

    mergeable: bool = False
    max_inference_overhead: float | None = None
    unmerged: bool = False
    min_quality: float | None = None

    def check(self, job: Job) -> None:
        """Raise InputError for limits that make no sense."""
        limit = self.max_inference_overhead
        if limit is not None and not 0 <= limit < float("inf"):
            raise InputError(f"max-inference-overhead {limit} is not a share of time; use such as 0.05")
        if limit is not None and job.targets[0].gpu is None:
            raise InputError("max-inference-overhead needs the rates of a card, and --gpu-memory has none; name one with --gpu")
        if self.unmerged and limit is None:
            raise InputError("--unmerged says how --max-inference-overhead is judged; give both or neither")
        least = self.min_quality
        if least is not None and not 0 < least < float("inf"):
            raise InputError(f"min-quality {least} is not a share of full fine-tuning's score; use such as 0.95")

    def refusal(self, row: Row) -> str:
        """Why a row is left out; empty if it stays."""
        if self.mergeable and not row.method.mergeable:
            return "does not merge into the base weights"
        if self.max_inference_overhead is not None:
            overhead = row.overhead if self.unmerged else row.least_overhead
            if overhead is None:
                where = "a model that is traced" if row.serving is None else "this card"
                return f"no inference time is known for {where}"
            if overhead > self.max_inference_overhead:
                return f"a decoded token takes {100 * overhead:.1f} % longer"
        if self.min_quality is not None:
            quality = row.quality
            if quality is None:
                return "no evidence of its quality"
            if quality.median < self.min_quality:
                return f"published median {quality.median:.3f} of full fine-tuning"
        return ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order asked for, and what is not among them.

    Attributes:
        job: what was asked.
        settings: of the common configuration, as for a method that trains adapters.
        rows: methods that the filters leave.
        left_out: names of others, and why.
    """

    job: Job
    settings: Settings
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]


def compare(job: Job, filters: Filters, today: date, skip_misfits: bool = False) -> Comparison:
    """Compare the job's methods.

    Args:
        job: model, methods, one target, tokens and settings.
        filters: which rows to keep.
        today: for the age of prices.
        skip_misfits: leave out, with its reason, a method that does not fit the model or the settings.

    Raises:
        InputError: a method does not fit the model, or none does; several targets; limits that make no sense.
    """
    if len(job.targets) != 1:
        raise InputError(f"plan compare holds methods side by side on one card, not on {len(job.targets)}; name one")
    if job.spec.fixed_length or job.spec.image_tokens:
        raise InputError(f"plan compare also holds methods side by side as they answer, and {job.spec.id} reads images; use plan")
    job.check()
    filters.check(job)
    left_out: list[tuple[str, str]] = []
    estimates: dict[str, Estimate] = {}
    fitting: list[Method] = []
    misfit: InputError | None = None
    for method in job.methods:
        found = _estimate(job, method)
        if isinstance(found, Estimate):
            estimates[method.name] = found
            fitting.append(method)
        elif skip_misfits:
            left_out.append((method.name, str(found)))
            misfit = misfit or found
        else:
            raise found
    if misfit is not None and not fitting:
        raise misfit
    plans, refused = _plans(replace(job, methods=tuple(fitting)), today) if fitting else ({}, {})
    rows = []
    for method in fitting:
        row = _row(job, method, estimates[method.name], plans.get(method.name), refused.get(method.name))
        reason = filters.refusal(row)
        if reason:
            left_out.append((method.name, reason))
        else:
            rows.append(row)
    return Comparison(job, _common(job), tuple(rows), tuple(left_out))


def _estimate(job: Job, method: Method) -> Estimate | InputError:
    """The common configuration of a method, or why it cannot be."""
    try:
        return estimate(_request(job, method), advice=False)
    except InputError as error:
        return error


def _common(job: Job) -> Settings:
    """The settings that every method shares; precision and dtype are its own."""
    checkpointing = "off" if job.checkpointing == ("off",) else "non-reentrant"
    size = job.micro_batch_sizes[0] if job.micro_batch_sizes else 1
    return replace(job.settings, micro_batch_size=size, gradient_checkpointing=checkpointing)


def _request(job: Job, method: Method) -> Request:
    """The common configuration of a method; without checkpointing where it cannot have it."""
    target, common = job.targets[0], _common(job)
    settings = replace(
        job.settings_for(method, target),
        micro_batch_size=common.micro_batch_size,
        gradient_checkpointing=common.gradient_checkpointing,
    )
    if not job.spec.allows(method, settings):
        settings = replace(settings, gradient_checkpointing="off")
    check_settings(settings)
    usable = usable_bytes(target.memory_bytes, job.safety_margin)
    return Request(job.spec, method, settings, job.optimizers[0], gpu=target.gpu, capacity_bytes=usable)


def _plans(job: Job, today: date) -> tuple[dict[str, Plan], dict[str, Rejected]]:
    """The best plan of each method, or what comes closest to one."""
    answer = find(job, today)
    plans: dict[str, Plan] = {}
    for plan in answer.plans:
        plans.setdefault(plan.request.method.name, plan)
    refused: dict[str, Rejected] = {}
    for rejected in answer.rejected:
        name = rejected.plan.request.method.name
        known = refused.get(name)
        if known is None or rejected.plan.short_by_bytes < known.plan.short_by_bytes:
            refused[name] = rejected
    return plans, refused


def _row(job: Job, method: Method, found: Estimate, plan: Plan | None, refused: Rejected | None) -> Row:
    settings, gpu = found.request.settings, found.request.gpu
    work = network_work(found.network, settings)
    tokens = settings.micro_batch_size * settings.seq_len
    serving = inference(job.spec, method, settings.dtype) if job.spec.source is None else None
    base = decoding(serving.base, gpu, settings.dtype) if gpu and serving else None
    unmerged = decoding(serving.unmerged, gpu, settings.dtype) if gpu and serving else None
    return Row(
        method=method,
        estimate=found,
        flops_per_token=_whole((work.forward.flops + work.backward.flops) / tokens),
        recomputed_flops_per_token=_whole(work.recompute.flops / tokens),
        serving=serving,
        base=base,
        unmerged=unmerged,
        full_model_bytes=_model_bytes(job, settings, found.network),
        plan=plan,
        refused=refused,
        findings=evidence.of(method),
    )


def _model_bytes(job: Job, settings: Settings, own: Network) -> int:
    """Bytes of every weight of the model in 16 bits. `own`: the network of a method."""
    if own.recorded is not None:
        return 2 * sum(p.numel for p in own.parameters if not p.adapter and not p.buffer)
    network = build(job.spec, parse("full"), replace(settings, gradient_checkpointing="off"))
    return 2 * network.total_parameters


def _whole(value: Any) -> int:
    return round(float(value))

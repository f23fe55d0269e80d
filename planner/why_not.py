"""Why a configuration that the user has in mind is not the recommended one: it does not fit, breaks a limit, or is worse."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.job import Job
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.plan import Answer, Plan, Rejected, rank
from tuneplan.planner.search import Search
from tuneplan.planner.target import targets
from tuneplan.planner.training.optimizers import find as find_optimizer
from tuneplan.planner.training.settings import CHECKPOINTING
from tuneplan.planner.units import SECONDS_PER_HOUR, format_gib, format_seconds, format_usd

WISHES = ("method", "gpu", "gpus", "micro-batch-size", "gradient-checkpointing", "optimizer", "zero-stage", "precision")
_SWITCH = {"on": CHECKPOINTING[1], "off": CHECKPOINTING[0], **{name: name for name in CHECKPOINTING}}
WORTH_SAYING = 0.05
"""A part of the time is named where it makes up at least this share of the difference."""


@dataclass(frozen=True, slots=True)
class WhyNot:
    """What came of a wish.

    Attributes:
        wish: as the user wrote it.
        plan: the best configuration that keeps to it, where one fits.
        rejected: the closest one, where none fits or a limit is broken.
        recommended: what is better, or None where nothing fits.
        reasons: in words, most important first.
    """

    wish: str
    plan: Plan | None
    rejected: Rejected | None
    recommended: Plan | None
    reasons: tuple[str, ...]


def why_not(job: Job, answer: Answer, wish: str, today: date) -> WhyNot:
    """Search again within the wish, without the job's limits, and compare with the answer.

    Args:
        job: what was asked.
        answer: what was found.
        wish: such as "method=qlora,gpus=2,gradient-checkpointing=off"; what it leaves open is searched.
        today: for prices.

    Raises:
        InputError: the wish names nothing, or something that cannot be.
        UnknownNameError: an option, method, card or optimizer that is not known.
    """
    narrowed = replace(_narrowed(job, _words(wish)), max_hours=None, max_usd=None)
    best = answer.plans[0] if answer.plans else None
    try:
        narrowed.check()
    except InputError as error:  # a batch that cannot be split over so many cards is an answer, not a mistake
        return WhyNot(wish, None, None, best, (f"it cannot be: {error}",))
    found = Search(narrowed, today).answer()
    plan = found.plans[0] if found.plans else None
    if plan is None:
        rejected = min(found.rejected, key=lambda r: r.plan.short_by_bytes, default=None)
        return WhyNot(wish, None, rejected, best, _misfit(rejected))
    return WhyNot(wish, plan, None, best, (*_limits(job, plan), *_compared(plan, best, job.objective)))


def _words(wish: str) -> dict[str, str]:
    """Options and values, split at commas outside of parentheses."""
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(wish):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            pieces.append(wish[start:index])
            start = index + 1
    words: dict[str, str] = {}
    for piece in [*pieces, wish[start:]]:
        name, separator, value = piece.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not separator or not value.strip():
            raise InputError(f"--why-not {piece.strip()[:60]!r} is no wish; write such as method=qlora,gpus=2")
        if name not in WISHES:
            raise UnknownNameError("option of a wish", name, WISHES, "plan --help")
        if name in words:
            raise InputError(f"--why-not names {name} twice; name it once")
        words[name] = value.strip()
    return words


def _narrowed(job: Job, words: Mapping[str, str]) -> Job:
    """The job with the wish's values alone."""
    if "method" in words:
        job = replace(job, methods=(parse(words["method"]),))
    counts = (_number("gpus", words["gpus"]),) if "gpus" in words else None
    if "gpu" in words:
        job = replace(job, targets=tuple(targets([words["gpu"]], counts)))
    elif counts is not None:
        job = replace(job, targets=tuple(replace(target, counts=counts) for target in job.targets))
    if "micro-batch-size" in words:
        size = _number("micro-batch-size", words["micro-batch-size"])
        job = replace(job, micro_batch_sizes=(size,))
    if "gradient-checkpointing" in words:
        name = words["gradient-checkpointing"]
        if name not in _SWITCH:
            raise UnknownNameError("gradient-checkpointing", name, _SWITCH, "plan --help")
        job = replace(job, checkpointing=(_SWITCH[name],))
    if "optimizer" in words:
        job = replace(job, optimizers=(find_optimizer(words["optimizer"]),))
    if "zero-stage" in words:
        job = replace(job, zero_stages=(_number("zero-stage", words["zero-stage"], least=0, most=3),))
    return replace(job, precision=words["precision"]) if "precision" in words else job


def _number(name: str, text: str, least: int = 1, most: int = 2**16) -> int:
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise InputError(f"--why-not {name}={text[:40]} is not a number from {least} to {most}; correct it")
    return int(text)


def _misfit(rejected: Rejected | None) -> tuple[str, ...]:
    if rejected is None:
        return ("no method that was asked for allows it",)
    words = f"it does not fit: {rejected.reason}, short by {format_gib(max(0, rejected.plan.short_by_bytes))}"
    return (words, f"smallest change that makes it fit: {rejected.remedy}") if rejected.remedy else (words,)


def _limits(job: Job, plan: Plan) -> tuple[str, ...]:
    found = []
    if job.max_hours is not None and (plan.hours is None or plan.hours > job.max_hours):
        hours = "an unknown time" if plan.hours is None else format_seconds(plan.hours * SECONDS_PER_HOUR)
        found.append(f"it takes {hours}, above the limit of {job.max_hours:g} h")
    if job.max_usd is not None and (plan.usd is None or plan.usd > job.max_usd):
        found.append(f"it costs {'an unknown amount' if plan.usd is None else format_usd(plan.usd)}, above ${job.max_usd}")
    return tuple(found)


def _compared(plan: Plan, best: Plan | None, objective: str) -> tuple[str, ...]:
    """What makes a plan worse than the best one."""
    if best is None:
        return ("it is the only kind of plan that fits",)
    if _same(plan, best):
        return ("it is the recommended plan",)
    reasons: list[str] = []
    if plan.usd is not None and best.usd is not None:
        reasons.append(
            f"it costs {format_usd(plan.usd)}, the recommended plan {format_usd(best.usd)}{_times(plan.usd, best.usd)}"
        )
    if plan.hours is not None and best.hours is not None:
        own, other = (format_seconds(p.hours * SECONDS_PER_HOUR) for p in (plan, best) if p.hours is not None)
        reasons.append(f"it takes {own}, the recommended plan {other}{_times(plan.hours, best.hours)}")
    reasons += _price(plan, best)
    reasons += _slower(plan, best)
    free, other_free = format_gib(-plan.short_by_bytes), format_gib(-best.short_by_bytes)
    reasons.append(f"it leaves {free} of a card free, the recommended plan {other_free}")
    if rank(plan, objective) < rank(best, objective):
        reasons.insert(0, "it is better, and was left out of what was asked for")
    return tuple(reasons)


def _same(plan: Plan, best: Plan) -> bool:
    a, b = plan.request, best.request
    return (a.method.name, a.settings, a.optimizer, a.sharding, plan.target.label) == (
        b.method.name,
        b.settings,
        b.optimizer,
        b.sharding,
        best.target.label,
    )


def _times(own: object, other: object) -> str:
    ratio = float(str(own)) / float(str(other)) if float(str(other)) else 1.0
    return f" ({ratio:.2f} times)" if abs(ratio - 1) >= 0.005 else ""


def _price(plan: Plan, best: Plan) -> list[str]:
    if plan.price is None or best.price is None:
        return [] if plan.price is not None else ["no price of it is known"]
    own, other = (float(p.price.usd_per_hour) / p.gpu_count for p in (plan, best) if p.price is not None)
    if abs(own / other - 1) < WORTH_SAYING:
        return []
    paid = plan.price.offer.instance.gpu_count * plan.price.instances
    unused = f", of a machine with {paid} cards" if paid > plan.gpu_count else ""
    return [f"an hour of one of its cards costs ${own:.2f}{unused}, one of the recommended plan's ${other:.2f}"]


def _slower(plan: Plan, best: Plan) -> list[str]:
    """Which parts of the step take longer for each token on each card."""
    if plan.time is None or best.time is None or plan.time.seconds is None or best.time.seconds is None:
        return []
    own, other = _parts(plan), _parts(best)
    whole = sum(own.values()) - sum(other.values())
    if whole <= 0:
        return []
    found = []
    for name in sorted(own, key=lambda n: other[n] - own[n]):
        more = own[name] - other[name]
        if more >= WORTH_SAYING * whole:
            found.append(f"for each token a card spends {1e6 * more:,.1f} us more on {name} ({1e6 * own[name]:,.1f} us)")
    return found


def _parts(plan: Plan) -> dict[str, float]:
    """Seconds of a card for each of its tokens, by what it does."""
    time, request = plan.time, plan.request
    assert time is not None
    assert time.seconds is not None
    settings = request.settings
    tokens = settings.micro_batch_size * settings.seq_len * request.gradient_accumulation_steps
    parts = {
        "the forward": time.forward_seconds,
        "recomputing layers": time.recompute_seconds,
        "the backward": time.backward_seconds,
        "the optimizer": time.optimizer_seconds,
        "waiting for other cards": time.communication_seconds,
    }
    device = sum(parts.values())
    parts["waiting for the host to start kernels"] = max(0.0, time.seconds - device)
    return {name: seconds / tokens for name, seconds in parts.items()}

"""The answer of `plan` at a terminal: header, recommendation with its reason, plans, and what does not fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.cost import Price
from tuneplan.planner.job import AUTO, Job
from tuneplan.planner.methods.compose import explicit
from tuneplan.planner.models.tasks import described
from tuneplan.planner.plan import Answer, Plan, Rejected, front
from tuneplan.planner.report.config_account import account, config_rows, config_warnings
from tuneplan.planner.report.terminal import breakdown, facts, plan_levels, savings_lines
from tuneplan.planner.savings import Saving, best
from tuneplan.planner.units import SECONDS_PER_HOUR, format_count, format_gib, format_seconds, format_usd

if TYPE_CHECKING:
    from tuneplan.planner.why_not import WhyNot

OLD_DAYS = 180
MOST_PLANS = 15
SHORT_SECONDS, SHORT_SHARE = 30, 0.01
MOST_REJECTED = 8
FOLDED = (0, 1)
FIRST_FIGURE = 6
_WORDS = {"cost": "cheapest", "time": "fastest", "memory": "smallest"}


def render(answer: Answer, asked: str, savings: Sequence[Saving] = (), why: "WhyNot | None" = None) -> RenderableType:
    """The whole answer.

    Args:
        answer: what was found.
        asked: the model as the user named it.
        savings: switches of the recommended plan.
        why: what is wrong with a configuration that the user named.
    """
    parts: list[RenderableType] = [header(answer.job, asked), Text()]
    if answer.plans:
        parts += _recommendation(answer.plans[0], answer)
        parts += savings_lines(best(savings))
        shown = answer.plans[:MOST_PLANS]
        parts += [Text(), _table(shown, front(answer.plans)[: len(shown)])]
        parts += _more(len(answer.plans) - MOST_PLANS, answer.plans_left_out)
    else:
        parts.append(Text("Nothing that was asked for fits.", style="bold red"))
    if answer.rejected:
        parts += [Text(), Text("Does not work:", style="bold"), *_rejected(answer.rejected[:MOST_REJECTED])]
        parts += _more(len(answer.rejected) - MOST_REJECTED, answer.rejected_left_out)
    if why is not None:
        parts += _why(why)
    parts += [Text(), *_footnotes(answer), *config_warnings(answer.job.config), *account(answer.job.config)]
    return Group(*parts)


def _why(why: "WhyNot") -> list[RenderableType]:
    plan = why.plan or (why.rejected.plan if why.rejected else None)
    lines: list[RenderableType] = [Text(), Text(f"Why not {why.wish}:", style="bold")]
    if plan is not None:
        request, settings = plan.request, plan.request.settings
        batch = f"micro-batch {settings.micro_batch_size} x {request.gradient_accumulation_steps}"
        rest = f"{request.optimizer.name}, checkpointing {settings.gradient_checkpointing}"
        lines.append(Text(f"{request.method.name} on {_cards(plan)}, {request.sharding.label}, {batch}, {rest}"))
    return [*lines, *[Text(f"- {reason}") for reason in why.reasons]]


def header(job: Job, asked: str, methods: str | None = None) -> Table:
    """What was asked, every default included. `methods`: in place of every method with its options."""
    s = job.settings
    arrow = f"{asked} -> {job.spec.id}" if asked != job.spec.id else job.spec.id
    arrow += " (traced)" if job.spec.source is not None else ""
    targets = ", ".join(target.label for target in job.targets)
    counts = ", ".join(str(c) for c in sorted({c for t in job.targets for c in t.counts}))
    precision = job.precision
    if precision == AUTO:
        precision = "fp32 master weights where the base is trained, else pure"
    return facts(
        [
            ("model", arrow),
            ("methods", methods or "; ".join(explicit(method, ", ") for method in job.methods)),
            *described(job.spec, s.target_length, s.images, s.image_size),
            ("GPUs", f"{targets if len(targets) < 200 else f'{len(job.targets)} kinds'} x {counts}"),
            (
                "training",
                f"{format_count(job.tokens)} tokens, sequences of {s.seq_len}, global batch {job.global_batch_size}",
            ),
            ("precision", f"{job.dtype if job.dtype != AUTO else 'bf16 (fp16 where there is none)'}; {precision}"),
            ("optimizers", ", ".join(optimizer.name for optimizer in job.optimizers)),
            ("attention", f"{s.attention}; loss {s.loss}"),
            *([("layouts", "every split of the model, too")] if job.layouts != "data" else []),
            ("prices", f"{job.purchase.replace('_', ' ')}; {100 * job.safety_margin:.3g} % of memory kept free"),
            *config_rows(job.config),
        ]
    )


def _more(count: int, left_out: int) -> list[RenderableType]:
    """A line for what is not shown, and for what a large search did not work out in full."""
    lines: list[RenderableType] = [Text(f"... and {count} more (--json gives all)", style="dim")] if count > 0 else []
    if left_out:
        lines.append(Text(f"... and {left_out:,} worse ones; name fewer cards or methods to see them", style="dim"))
    return lines


def _recommendation(plan: Plan, answer: Answer) -> list[RenderableType]:
    settings = plan.request.settings
    objective = answer.job.objective
    if objective == "cost" and plan.usd is None:
        objective = "time" if plan.hours is not None else "memory"
    others = len(answer.plans) - 1
    why = f"the {_WORDS[objective]} of {others + 1} plans that fit" if others else "the only plan that fits"
    lines = [
        Text(f"Recommended: {plan.request.method.name} on {_cards(plan)}", style="bold green"),
        Text(
            f"micro-batch {settings.micro_batch_size} x {plan.request.gradient_accumulation_steps} accumulated, "
            f"{plan.request.optimizer.name}, checkpointing {settings.gradient_checkpointing}, "
            f"{plan.request.sharding.label}: {why}"
        ),
    ]
    money = _money(plan)
    if plan.hours is not None and plan.time is not None and plan.time.tokens_per_second is not None:
        hours = format_seconds(plan.hours * SECONDS_PER_HOUR)
        lines.append(Text(f"{hours} (modelled) at {plan.time.tokens_per_second:,.0f} tokens/s{money}"))
        lines += _beside(plan)
    lines.append(
        Text(
            f"peak {format_gib(plan.device_bytes)} of {format_gib(plan.usable_bytes)} usable on each GPU, "
            f"in {plan.memory.peak_phase.replace('_', ' ')} at {plan.memory.peak.op}"
        )
    )
    return [*lines, breakdown(plan_levels(plan), plan.usable_bytes)]


def _beside(plan: Plan) -> list[Text]:
    """What the hours are spent on beside training, and what was assumed; nothing where that is seconds."""
    clock = plan.clock
    if clock is None:
        return []
    notes = [Text(note, style="dim") for note in clock.notes]
    if clock.total - clock.training < max(SHORT_SECONDS, SHORT_SHARE * clock.total):
        return notes
    parts = {
        "start-up": clock.startup,
        "evaluation": clock.evaluation,
        "checkpoints": clock.checkpoints,
        "interruptions (expected)": clock.interruptions,
    }
    spent = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in parts.items() if seconds >= 1)
    return [Text(f"of it training {format_seconds(clock.training)}, {spent}"), *notes]


def _cards(plan: Plan) -> str:
    """How many of which card, and in which instance where one was named."""
    if plan.target.instance is not None:
        return f"{plan.gpu_count} x {plan.target.instance.gpu} ({plan.target.instance.id})"
    return f"{plan.gpu_count} x {plan.target.label}"


def _money(plan: Plan) -> str:
    if plan.usd is None or plan.price is None:
        return ", no price known"
    offer = plan.price.offer
    where = f"{offer.instance.provider} {offer.instance.id}"
    return f", {format_usd(plan.usd)} on {where} at {format_usd(plan.price.usd_per_hour)}/h ({_age(plan.price)})"


def _age(price: Price) -> str:
    if price.age_days is None:
        return "price of unknown date"
    return f"price {price.age_days} days old"


def _table(plans: tuple[Plan, ...], on_front: tuple[bool, ...]) -> Table:
    """One line a plan; long names of methods and instances are folded, figures never. `on_front`: see `plan.front`."""
    names = ("method", "GPUs", "layout", "batch", "ckpt", "optimizer", "peak", "tokens/s", "time", "cost")
    rows = [(*_row(plan)[:-1], f"{_row(plan)[-1]}{'*' if best else ' '}") for plan, best in zip(plans, on_front, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for index, name in enumerate(names):
        if index in FOLDED:
            table.add_column(name, overflow="fold")
        else:
            width = max(len(name), *(len(row[index]) for row in rows))
            table.add_column(name, justify="left" if index < FIRST_FIGURE else "right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _row(plan: Plan) -> tuple[str, ...]:
    request, s = plan.request, plan.request.settings
    rate = plan.time.tokens_per_second if plan.time else None
    return (
        request.method.name,
        f"{plan.gpu_count} x {plan.target.label}" if plan.target.instance is None else plan.target.instance.id,
        request.sharding.label if plan.gpu_count > 1 else "single",
        f"{s.micro_batch_size} x {request.gradient_accumulation_steps}",
        "on" if s.gradient_checkpointing != "off" else "off",
        request.optimizer.name,
        format_gib(plan.device_bytes),
        f"{rate:,.0f}" if rate else "-",
        format_seconds(plan.hours * SECONDS_PER_HOUR) if plan.hours is not None else "-",
        format_usd(plan.usd) if plan.usd is not None else "-",
    )


def _rejected(rejected: tuple[Rejected, ...]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for item in rejected:
        short = item.plan.short_by_bytes
        missing = f", short by {format_gib(short)}" if short > 0 else ""
        help = f"; smallest change: {item.remedy}" if item.remedy else ""
        where = f"{item.plan.request.method.name} on {_cards(item.plan)}"
        lines.append(Text(f"- {where}: {item.reason}{missing}{help}"))
    return lines


def _footnotes(answer: Answer) -> list[RenderableType]:
    notes = [] if len(answer.plans) < 2 else ["* no other plan is cheaper, faster and leaves more memory free."]
    if answer.job.spec.source is None:
        notes.append("Memory is counted from the ops of the training step; time is modelled; --json gives every figure.")
    else:
        notes.append("Memory is traced from the real code, for other batches by fits of its sizes; time is modelled.")
        notes.append(f"Note: {answer.job.spec.note}.")
    if answer.job.left_out:
        counts = ", ".join(str(count) for count in answer.job.left_out)
        notes.append(
            f"Left out: {counts} GPUs, over which a global batch of {answer.job.global_batch_size} cannot be split evenly."
        )
    for plan in answer.plans[:1]:
        if plan.price is not None and (plan.price.age_days is None or plan.price.age_days > OLD_DAYS):
            notes.append(f"Check the price before you rent: {_age(plan.price)}, {plan.price.offer.source}.")
        if plan.target.gpu is not None and not plan.target.gpu.memory_is_measured:
            notes.append(f"The capacity of {plan.target.gpu.name} is its label, not what a driver reported.")
        if plan.time is not None and plan.time.seconds is None:
            notes.append(f"No time: {plan.time.reason}")
    return [Text(note, style="dim") for note in notes]

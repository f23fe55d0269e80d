"""A comparison of methods at a terminal: one table for each group of dimensions, the published results, and the guide."""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneplan.planner.compare import Comparison, Row
from tuneplan.planner.guide import guide
from tuneplan.planner.methods.evidence import Finding
from tuneplan.planner.report.answer import header
from tuneplan.planner.report.terminal import facts
from tuneplan.planner.timing.decoding import Decoding
from tuneplan.planner.units import GIGA, KILO, SECONDS_PER_HOUR, format_count, format_gib, format_seconds, format_usd

MOST_FINDINGS = 3
NAME_WIDTH = 18
NO_EVIDENCE = "no evidence"
NOTES = (
    "Memory, FLOPs and checkpoints are counted from the ops; times and costs are modelled. Peak: device memory of one GPU, "
    "nothing sharded. States: gradients and optimizer. Activ.: activations, logits and temporary. Other: fragmentation and "
    "runtime. GFLOP: of forward and backward for a token of the data; again: recomputed by checkpointing.",
    "Time and cost: the best plan of each method for the same tokens, which may use other micro-batches and more GPUs.",
    "A decoded token: batch 1, empty cache. Captured: kernels in a CUDA graph; eager: started one by one, as plain "
    "transformers does. Unmerged: every adapter beside the base, with PEFT's own ops.",
    "Quality: published scores over those of full fine-tuning by the same source (median, range, number of results). GSM8K has "
    "1,319 questions: at one half right, two standard errors are 0.027, or 0.06 of the score.",
)


def render(comparison: Comparison, asked: str) -> RenderableType:
    """The whole comparison. `asked`: the model as the user named it."""
    rows = comparison.rows
    common = comparison.settings
    training = (
        f"Training, {common.micro_batch_size} x {common.seq_len} tokens on one GPU, {comparison.job.optimizers[0].name}, "
        f"checkpointing {common.gradient_checkpointing}"
    )
    names = ", ".join(method.name for method in comparison.job.methods)
    parts: list[RenderableType] = [header(comparison.job, asked, f"{names} (--json has every option)"), Text()]
    if not rows:
        parts.append(Text("No method is left.", style="bold red"))
    else:
        parts += _titled(training, _training(rows, common.gradient_checkpointing))
        parts += _titled(
            f"Time and cost of {format_count(comparison.job.tokens)} tokens on {comparison.job.targets[0].label}", _plans(rows)
        )
        parts += _titled("Inference and storage", _serving(rows))
        parts += _titled("Integration and quality", _integration(rows))
        parts += _titled("Published results, beside full fine-tuning", _evidence(rows))
        parts += _titled("Guide, from these rows", _guide(rows))
    if comparison.left_out:
        parts += [Text("Left out:", style="bold")]
        parts += [Text(f"- {name}: {reason}") for name, reason in comparison.left_out]
        parts.append(Text())
    parts += [Text(note, style="dim") for note in NOTES if rows]
    if comparison.job.spec.source is not None:
        parts.append(Text(f"Note: {comparison.job.spec.note}. How they answer is not traced.", style="dim"))
    return Group(*parts)


def _titled(title: str, table: RenderableType) -> list[RenderableType]:
    return [Text(title, style="bold"), table, Text()]


def _table(names: Sequence[str], left: int) -> Table:
    """A table whose first columns are words and whose others are figures; long names are folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for index, name in enumerate(names):
        if index == 0:
            table.add_column(name, overflow="fold", min_width=NAME_WIDTH, max_width=NAME_WIDTH)
        else:
            table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def _training(rows: Sequence[Row], checkpointing: str) -> Table:
    names = ("method", "trained", "share %", "GFLOP", "again", "peak", "weights", "states", "activ.", "other")
    table = _table(names, 1)
    for row in rows:
        found, levels = row.estimate, row.estimate.components
        other = found.device_bytes - found.allocated_bytes
        alone = found.request.settings.gradient_checkpointing != checkpointing
        table.add_row(
            f"{row.method.name}{' *' if alone else ''}",
            format_count(found.network.trainable_parameters),
            _share(row.trained_share),
            f"{row.flops_per_token / GIGA:.1f}",
            f"{row.recomputed_flops_per_token / GIGA:.1f}",
            f"{format_gib(found.device_bytes)}{'' if _fits(row) else ' !'}",
            format_gib(levels["weights"]),
            format_gib(levels["gradients"] + levels["optimizer_states"]),
            format_gib(levels["activations"] + levels["logits"] + levels["temporary"]),
            format_gib(other),
        )
    marks = []
    if any(row.estimate.request.settings.gradient_checkpointing != checkpointing for row in rows):
        marks.append("* without checkpointing, which it cannot have")
    if not all(_fits(row) for row in rows):
        marks.append("! does not fit one GPU")
    table.caption, table.caption_justify = "; ".join(marks) or None, "left"
    return table


def _fits(row: Row) -> bool:
    capacity = row.estimate.request.capacity_bytes
    return capacity is None or row.estimate.device_bytes <= capacity


def _share(share: float) -> str:
    """A percentage with two digits."""
    return f"{100 * share:.0f}" if share > 0.1 else f"{100 * share:.2g}"


def _plans(rows: Sequence[Row]) -> RenderableType:
    table = _table(("method", "GPUs", "batch", "ckpt", "optimizer", "peak", "tokens/s", "time", "cost"), 5)
    misses: list[Text] = []
    for row in rows:
        plan = row.plan
        if plan is None:
            reason = row.refused.reason if row.refused else "nothing fits"
            misses.append(Text(f"- {row.method.name}: no plan: {reason}", style="red"))
            continue
        s, steps = plan.request.settings, plan.request.gradient_accumulation_steps
        rate = plan.time.tokens_per_second if plan.time else None
        table.add_row(
            row.method.name,
            plan.request.sharding.label,
            f"{s.micro_batch_size} x {steps}",
            "on" if s.gradient_checkpointing != "off" else "off",
            plan.request.optimizer.name,
            format_gib(plan.device_bytes),
            f"{rate:,.0f}" if rate else "-",
            format_seconds(plan.hours * SECONDS_PER_HOUR) if plan.hours is not None else "-",
            format_usd(plan.usd) if plan.usd is not None else "-",
        )
    return Group(table, *misses)


def _serving(rows: Sequence[Row]) -> Table:
    names = ("method", "merged", "unmerged", "captured ms", "eager ms", "overhead", "checkpoint", "per model")
    table = _table(names, 1)
    for row in rows:
        merged = "-" if row.merged_bytes is None else format_gib(row.merged_bytes)
        table.add_row(
            row.method.name,
            merged,
            "-" if row.served_bytes is None else format_gib(row.served_bytes),
            _pair(row, lambda time: time.device_seconds),
            _pair(row, lambda time: time.eager_seconds),
            _overhead(row.overhead),
            format_gib(row.estimate.checkpoint_bytes),
            f"{row.adapters_per_model:,}",
        )
    table.caption, table.caption_justify = "merged / unmerged; per model: checkpoints in the space of one whole model", "left"
    return table


def _pair(row: Row, of: Callable[[Decoding], float]) -> str:
    """Milliseconds of a token merged and unmerged."""
    if row.unmerged is None:
        return "-"
    merged = "-" if row.merged is None else f"{of(row.merged) * KILO:.1f}"
    return f"{merged} / {of(row.unmerged) * KILO:.1f}"


def _integration(rows: Sequence[Row]) -> RenderableType:
    table = _table(("method", "merges", "swaps", "batches", "served model", "effort", "quality"), 6)
    changes: dict[str, list[str]] = {}
    for row in rows:
        merges = "yes" if row.method.mergeable else "no"
        table.add_row(
            row.method.name,
            f"{merges}, rounds" if row.merge_notes else merges,
            "yes" if row.swappable else "no",
            "yes" if row.batchable else "no",
            "as it was" if row.leaves_model_alone else "changed",
            row.effort,
            _quality(row),
        )
        for change in row.code_changes:
            changes.setdefault(change, []).append(row.method.name)
    return Group(table, *[Text(f"- {', '.join(names)}: {change}", style="dim") for change, names in changes.items()])


def _quality(row: Row) -> str:
    quality = row.quality
    if row.method.name == "full":
        return "the baseline"
    if quality is None:
        return "words only" if row.findings else NO_EVIDENCE
    if quality.count == 1:
        return f"{quality.median:.2f} (1)"
    return f"{quality.median:.2f}, {quality.lowest:.2f}-{quality.highest:.2f} ({quality.count})"


def _evidence(rows: Sequence[Row]) -> RenderableType:
    lines: list[tuple[str, str]] = []
    sources: list[str] = []
    for row in rows:
        chosen = _spread(row.findings)
        for finding in chosen:
            if finding.source not in sources:
                sources.append(finding.source)
            name = row.method.name if finding is chosen[0] else ""
            lines.append((name, f"{_words(finding)} [{sources.index(finding.source) + 1}]"))
        if len(row.findings) > len(chosen):
            lines.append(("", f"... {len(row.findings) - len(chosen)} more in --json"))
        if not row.findings:
            lines.append((row.method.name, NO_EVIDENCE))
    return Group(facts(lines), *[Text(f"[{number}] {source}", style="dim") for number, source in enumerate(sources, 1)])


def _spread(found: Sequence[Finding]) -> list[Finding]:
    """The worst, the middle and the best result with figures, and one in words where there is one."""
    ranked = sorted([f for f in found if f.relative is not None], key=lambda f: f.relative or 0.0)
    if len(ranked) > MOST_FINDINGS:
        ranked = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    return ranked + [f for f in found if f.relative is None][:1]


def _words(finding: Finding) -> str:
    """A result in a line: ratio, scores, task, model, setting, metric, forgetting."""
    what = f"{finding.task}, {finding.model}{f' ({finding.setting})' if finding.setting else ''}"
    if finding.relative is None:
        return f"{what}: {finding.note}"
    text = f"{finding.relative:.2f} = {finding.score:g} / {finding.full_score:g} {finding.metric}, {what}"
    if finding.forgetting is not None and finding.full_forgetting is not None:
        text += f"; forgetting {finding.forgetting:.3f} / {finding.full_forgetting:.3f}"
    return f"{text}; {finding.note}" if finding.method == "full" else text


def _guide(rows: Sequence[Row]) -> Table:
    lines = []
    for advice in guide(rows):
        named = "; ".join(f"{name} ({figure})" for name, figure in advice.methods) or "none of these"
        more = f"; {advice.met - len(advice.methods)} more" if advice.met > len(advice.methods) else ""
        lines.append((advice.need, f"{advice.rule}: {named}{more}"))
    return facts(lines)


def _overhead(share: float | None) -> str:
    """How much longer a decoded token takes; from ten times on as a factor, which is shorter."""
    if share is None:
        return "-"
    return f"+{100 * share:.0f} %" if share < 9 else f"x {1 + share:.0f}"

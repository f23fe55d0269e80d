"""The options that describe a data set, and what they mean."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tuneplan.planner.cli.options import stack
from tuneplan.planner.errors import InputError

if TYPE_CHECKING:
    from tuneplan.planner.cli.step_words import Asked
    from tuneplan.planner.data.batches import Batches
    from tuneplan.planner.data.lengths import Lengths
    from tuneplan.planner.job import Job

_ALIASES = {"max": "max_length"}

data_options = stack(
    click.option("--dataset", default=None, metavar="FILE", help="JSON lines or Parquet: the lengths of its sequences."),
    click.option("--dataset-column", default=None, metavar="NAME", help="Column with text, token ids or a number of tokens."),
    click.option("--tokenizer", default=None, metavar="PATH", help="Local tokenizer.json that counts the data's text."),
    click.option("--chars-per-token", type=float, default=None, help="Without a tokenizer.  [default: 4, assumed]"),
    click.option(
        "--lengths",
        default=None,
        metavar="SPEC",
        help="Instead of data: lognormal(mean=600, p99=4000), percentiles(p50=400, p100=8000), or a file.",
    ),
    click.option(
        "--padding", default=None, metavar="longest|max_length|none", help="Of a batch; none: padding-free.  [default: longest]"
    ),
    click.option("--packing", is_flag=True, help="Sequences share rows of --seq-len tokens."),
    click.option("--packing-strategy", default=None, metavar="bfd|wrapped", help="As in TRL.  [default: bfd]"),
    click.option("--group-by-length", is_flag=True, help="Batches of sequences of about the same length."),
    click.option("--pad-to-multiple-of", type=int, default=None, help="Padded lengths are rounded up to it."),
)


def read_batches(given: dict[str, Any], max_length: int) -> "Batches | None":
    """The data that the command line describes, cut to `max_length`; None where it describes none. Raises InputError."""
    if given["dataset"] is None and given["lengths"] is None:
        for name in ("dataset_column", "tokenizer", "chars_per_token", "padding", "packing_strategy", "pad_to_multiple_of"):
            if given[name] is not None:
                raise InputError(f"--{name.replace('_', '-')} is about data; give --dataset FILE or --lengths SPEC too")
        for name in ("packing", "group_by_length"):
            if given[name] is True:
                raise InputError(f"--{name.replace('_', '-')} is about data; give --dataset FILE or --lengths SPEC too")
        return None
    from tuneplan.planner.data.batches import Batches

    if given["packing_strategy"] is not None and not given["packing"]:
        raise InputError("--packing-strategy says how rows are packed; add --packing, or leave it out")
    if given["packing"] and given["padding"] is not None:
        raise InputError("--packing leaves nothing to pad; leave --padding out")
    padding = given["padding"] or "longest"
    batches = Batches(
        _lengths(given),
        max_length,
        padding=_ALIASES.get(padding, padding),
        packing=(given["packing_strategy"] or "bfd") if given["packing"] else "",
        group_by_length=given["group_by_length"],
        pad_to_multiple_of=1 if given["pad_to_multiple_of"] is None else given["pad_to_multiple_of"],
    )
    batches.check()
    return batches


def _lengths(given: dict[str, Any]) -> "Lengths":
    from tuneplan.planner.data.dataset import read
    from tuneplan.planner.data.lengths import distribution

    if given["dataset"] is not None and given["lengths"] is not None:
        raise InputError("--dataset and --lengths both say how long sequences are; give one of them")
    if given["dataset"] is not None:
        return read(given["dataset"], given["tokenizer"], given["chars_per_token"], given["dataset_column"])
    for name in ("dataset_column", "tokenizer", "chars_per_token"):
        if given[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} is for --dataset; leave it out beside --lengths")
    found = distribution(given["lengths"])
    if found is not None:
        return found
    from tuneplan.planner.data.length_file import read_lengths

    return read_lengths(given["lengths"])


def with_batches(step: "Asked", batches: "Batches") -> "Asked":
    """The configuration at the longest batch of the data. Raises InputError beside `--batch-lengths`."""
    from tuneplan.planner.data.epoch import at_the_longest
    from tuneplan.planner.request import check_settings

    if step.batch_lengths:
        raise InputError("--batch-lengths and data both say how long batches are; leave one of them out")
    settings = at_the_longest(step.settings, batches)
    check_settings(settings)
    return replace(step, settings=settings)


def with_data(job: "Job", given: dict[str, Any]) -> "Job":
    """The job with the data that the command line describes: its tokens, the longest batch, padding. Raises InputError."""
    batches = read_batches(given, int(job.settings.seq_len))
    if batches is None:
        return job
    from tuneplan.planner.data.amount import of_job
    from tuneplan.planner.data.epoch import at_the_longest

    epochs = given["epochs"] if given["epochs"] is not None else 1
    data = of_job(batches, epochs, given["samples"] if given["dataset"] is None else None, given["tokens"])
    return replace(job, data=data, tokens=data.tokens, settings=at_the_longest(job.settings, batches))

"""A file of lengths: a number a line, or a length and how many sequences have it."""

import os

from tuneplan.planner.data.lengths import LONGEST, Lengths, of_counts
from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import shown_path

_MOST_LINE = 200


def read_lengths(path: str) -> Lengths:
    """Lengths of a text file: `1024` or `1024,17` a line, # begins a comment line. Raises InputError with the line."""
    given = shown_path(path)
    full = os.path.expanduser(path)
    if "\0" in path or not os.path.isfile(full):
        raise InputError(
            f"--lengths {given} is neither a file nor a distribution; write such as lognormal(mean=600, p99=4000), "
            "percentiles(p50=400, p90=1500, p100=8000), or the path of a file with a length a line"
        )
    counts: dict[int, int] = {}
    try:
        with open(full, encoding="utf-8") as file:
            number = 0
            while line := file.readline(_MOST_LINE):
                number += 1
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                try:
                    length, times = (int(piece) for piece in (text.split(",") if "," in text else (text, "1")))
                except ValueError:
                    raise InputError(
                        f"{given}, line {number}: {text[:40]!r} is no length; write 1024, or 1024,17 for 17 sequences"
                    ) from None
                if not 1 <= length <= LONGEST or not 0 <= times <= 10**12:
                    raise InputError(
                        f"{given}, line {number}: {text[:40]!r} is no length from 1 to {LONGEST} with a number of sequences"
                    )
                if times:
                    counts[length] = counts.get(length, 0) + times
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{given} cannot be read: {reason}; give a text file with a length a line") from error
    return of_counts(counts, given)

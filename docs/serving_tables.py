"""Print the tables of docs/accuracy.md on serving, as Markdown.

    PYTHONPATH=src python docs/serving_tables.py    a second

Rows are in tests/golden; configurations and tolerances are those of tests/planner/serving.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from types import ModuleType


def module(name: str) -> ModuleType:
    """A test module of tests/planner/serving, whose rows and configurations are used here."""
    path = Path(__file__).parents[1] / "tests" / "planner" / "serving" / f"{name}.py"
    spec = spec_from_file_location(f"serving_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def spread(errors: list[float]) -> str:
    """Number, median and worst of errors in size."""
    sizes = [abs(error) for error in errors]
    return f"{len(sizes)} rows: median {100 * median(sizes):.2f} %, worst {100 * max(sizes):.2f} %"


def table(header: str, rows: list[tuple[str, ...]]) -> None:
    """A Markdown table."""
    print(header)
    print("|" + "---|" * (header.count("|") - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def kv_from_printed(published: ModuleType) -> None:
    """Tokens by formula from the printed size of the cache."""
    rows, errors = [], []
    for row_id in published.FROM_PRINTED:
        row = published.ROWS[row_id]
        ours, theirs = published.from_printed(row), int(row["kv_tokens"])
        errors.append(ours / theirs - 1)
        rows.append(
            (row["model"], row["tensor_parallel"], row["kv_gib"], f"{theirs:,}", f"{ours:,}", f"{100 * errors[-1]:+.2f} %")
        )
    table("| model | GPUs | cache GiB, printed | tokens, printed | tokens, ours | error |", rows)
    print(spread(errors) + "\n")


def kv_alone(published: ModuleType) -> None:
    """Tokens from card, share and model alone; rows that the log does not allow, with the reason."""
    rows, errors = [], []
    for row_id in published.ALONE:
        row = published.ROWS[row_id]
        ours, theirs = published.alone(row), published.printed_tokens(row)
        error = ours / theirs - 1
        fitted = row_id in published.FITTED
        if not fitted:
            errors.append(error)
        name = row["model"] + (" (chose the sampler's bytes)" if fitted else "")
        rows.append((name, row["total_gib"], row["utilisation"], f"{theirs:,}", f"{ours:,}", f"{100 * error:+.1f} %"))
    table("| model | card GiB | share | tokens, printed | tokens, ours | error |", rows)
    print(spread(errors) + ", without the fitted row\n")
    table(
        "| row | why the log does not allow it |", [(published.ROWS[i]["model"], why) for i, why in published.NOT_ALLOWED.items()]
    )


def decoding(timing: ModuleType) -> None:
    """Speed of decoding at batch 1."""
    rows, errors = [], []
    for row in timing.SPEEDS:
        error = timing.speed_error(row)
        theirs = float(row["tokens_per_second"])
        if row not in timing.FITTED:
            errors.append(error)
        rows.append(
            (
                row["model"],
                row["weights"],
                row["tensor_parallel"],
                f"{theirs:.1f}",
                f"{theirs * (1 + error):.1f}",
                f"{100 * error:+.0f} %",
            )
        )
    table("| model | weights | A100-80GB | tokens/s, published | tokens/s, ours | error |", rows)
    print(spread(errors) + ", without the two that chose the shares of packed weights")


if __name__ == "__main__":
    rows_of_logs = module("test_published")
    print("#### Tokens from the printed bytes of the cache\n")
    kv_from_printed(rows_of_logs)
    print("#### Tokens from the card, the share and the model alone\n")
    kv_alone(rows_of_logs)
    print("#### Decoding at batch 1\n")
    decoding(module("test_token_time"))

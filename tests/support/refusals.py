"""The form that every refusal of the command line has."""

from typing import Any


def refuse(outcome: Any, *parts: str) -> None:
    """Check the form of a refusal and that it says what it should."""
    assert (2, "") == (outcome.code, outcome.out)
    assert 1 == outcome.err.count("\n")
    assert outcome.err.startswith("plan: ")
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err

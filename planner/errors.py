"""What can go wrong, as the user sees it.

TuneplanError
+-- InputError            exit code 2: something the user typed or a file the user gave
|   +-- UnknownNameError  a model, method or option value that is not known; carries close matches
|   +-- NotModelledError  a sound model whose training the ledger does not have; a trace of the real code may
+-- DataFileError         exit code 3: a bundled data file is broken

Every message has three parts: what was given, why it cannot be, what to do.
"""

from collections.abc import Iterable


class TuneplanError(Exception):
    """Base of every expected failure; the command line prints it in one line, without a traceback."""

    exit_code = 2


class InputError(TuneplanError):
    """Something the user typed, or a file the user gave, cannot be used."""


class NotModelledError(InputError):
    """A model that may well be trained, but that no family mirrors, or not with this option of its config.

    Attributes:
        reason: the message without its advice.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        """Compose the message: what is not modelled, and what to do."""
        super().__init__(reason + advice)
        self.reason = reason


class DataFileError(TuneplanError):
    """A data file (prices, cards, catalog) is broken."""

    exit_code = 3


class UnknownNameError(InputError):
    """A name that is not known, with the closest ones that are."""

    def __init__(self, kind: str, given: str, known: Iterable[str], where: str) -> None:
        """Compose the message.

        Args:
            kind: what the name should have been, such as "model".
            given: what the user typed.
            known: every name that would have been accepted.
            where: the command that lists them all, such as "plan models".
        """
        from difflib import get_close_matches

        names = sorted(set(known))
        shown = given if len(given) <= 80 else given[:77] + "..."
        lowered = {name.lower(): name for name in reversed(names)}
        close = [lowered[m] for m in get_close_matches(given.lower()[:80], lowered, n=3, cutoff=0.6)]
        hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        super().__init__(f"Unknown {kind} {shown!r}.{hint} ({where} lists all {len(names)})")
        self.given = given
        self.close = tuple(close)

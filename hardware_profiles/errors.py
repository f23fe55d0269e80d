"""What can be wrong with a hardware name or a hardware file, as the user sees it.

ProfileError                exit code 3: a data file, bundled or the user's own, is broken
+-- UnknownHardwareError    exit code 2: a GPU or instance name that no file declares

Every message has three parts: what was given, why it cannot be, what to do.
"""

from collections.abc import Mapping

_LONGEST_NAME_SHOWN = 80
_AS_GOOD_AS_THE_BEST = 0.05
_CLOSE_ENOUGH = 0.6


class ProfileError(Exception):
    """A GPU, instance or price file cannot be used; the message names the file and the field in one line."""

    exit_code = 3


class UnknownHardwareError(ProfileError):
    """A name that no file declares, with the closest ones that are.

    Attributes:
        given: what the user typed.
        close: ids of the closest known entries, best first; empty if nothing is close.
    """

    exit_code = 2

    def __init__(self, kind: str, given: str, known: Mapping[str, str], total: int) -> None:
        """Compose the message.

        Args:
            kind: what the name should have been, "GPU" or "instance".
            given: what the user typed.
            known: every name that would have been accepted, lower case, to the id that it stands for.
            total: how many entries `plan gpus` lists.
        """
        shown = given if len(given) <= _LONGEST_NAME_SHOWN else given[: _LONGEST_NAME_SHOWN - 3] + "..."
        self.given = given
        self.close = _closest(given.strip().lower()[:_LONGEST_NAME_SHOWN], known)
        hint = f" Did you mean {' or '.join(repr(name) for name in self.close)}?" if self.close else ""
        super().__init__(f"Unknown {kind} {shown!r}.{hint} (plan gpus lists all {total})")


def _closest(given: str, known: Mapping[str, str]) -> tuple[str, ...]:
    from difflib import SequenceMatcher, get_close_matches

    names = get_close_matches(given, known, n=6, cutoff=_CLOSE_ENOUGH)
    if not names:
        return ()
    score = {name: SequenceMatcher(None, name, given).ratio() for name in names}
    best = max(score.values())
    return tuple(dict.fromkeys(known[name] for name in names if score[name] >= best - _AS_GOOD_AS_THE_BEST))[:3]

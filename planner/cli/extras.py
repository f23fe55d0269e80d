"""Commands that need more than the base install say which extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from tuneplan.planner.errors import InputError


@contextmanager
def profiling_needs(command: str) -> Iterator[None]:
    """Around the imports of a command that runs real training code. Raises InputError where a library is missing."""
    with _needs(command, "the real training code", "profile"):
        yield


@contextmanager
def kernels_need(command: str) -> Iterator[None]:
    """Around the imports of a command that runs kernels. Raises InputError where a library is missing."""
    with _needs(command, "kernels", "kernels"):
        yield


@contextmanager
def _needs(command: str, what: str, extra: str) -> Iterator[None]:
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels when it is imported
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise InputError(f"{command} runs {what}, and {missing} is not installed; pip install 'tuneplan[{extra}]'") from error

"""The pytest plugin: a `memory_budget` marker and a `track_memory` fixture.

It is loaded in every pytest run of an environment that has tuneplan, so it imports nothing but pytest until a test asks for it.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tuneplan.profiling.regression.block import Memory

PROPERTY = "tuneplan_peak_bytes"
MARKER = "memory_budget"
_MEMORIES = pytest.StashKey[list[Any]]()
_SEEN = pytest.StashKey[dict[str, int]]()
_HELP = (
    "memory_budget(limit=None, *, max_increase=None, max_increase_percent=None): most live bytes of the test, such as '64MiB'; "
    "without a limit, compared with the baseline by test id"
)
TrackMemory = Callable[..., AbstractContextManager["Memory"]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that records, and the name of the file."""
    group = parser.getgroup("tuneplan", "memory budgets")
    group.addoption("--memory-update", action="store_true", help="record the peaks of memory_budget tests")
    parser.addini("memory_baseline", "file of the recorded peaks, from the root", default="tuneplan-tests.toml")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known to --strict-markers."""
    config.addinivalue_line("markers", _HELP)
    config.stash[_SEEN] = {}


@pytest.fixture
def track_memory(request: pytest.FixtureRequest) -> TrackMemory:
    """What a test calls as a context manager: `with` it `as m`, and `m.peak_bytes` is the most that was alive.

    Arguments of the block: a model or several (weights count, modules are named), optimizer, device. Without a model only what
    the block allocates counts. Skips the test where torch is missing.
    """
    if find_spec("torch") is None:
        pytest.skip("torch is not installed; track_memory tracks its tensors")
    return _tracker(request.node)


def _tracker(item: pytest.Item) -> TrackMemory:
    """Blocks of a test; each is remembered for its budget."""

    def track_block(model: Any = None, optimizer: Any = None, device: str | None = None) -> "AbstractContextManager[Memory]":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels when it is imported
        from tuneplan.profiling.regression.block import track

        return _remembering(item, track(model, optimizer, device, item.config.rootpath.resolve()))

    return track_block


@contextmanager
def _remembering(item: pytest.Item, block: "AbstractContextManager[Memory]") -> Iterator["Memory"]:
    """Enters a block and gives its memory to the test."""
    with block as memory:
        item.stash.setdefault(_MEMORIES, []).append(memory)
        yield memory


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a marked test to its budget: its tracked blocks, or all of it where it tracks none itself."""
    marker = item.get_closest_marker(MARKER)
    if marker is None or find_spec("torch") is None:
        return (yield)
    if "track_memory" in getattr(item, "fixturenames", ()):
        result = yield
    else:
        with _tracker(item)():
            result = yield
    memories = item.stash.get(_MEMORIES, [])
    if not memories:
        pytest.fail(f"{item.nodeid} has a {MARKER} and tracked nothing; use `with track_memory() as m:`", pytrace=False)
    _hold(item, marker, max(memories, key=lambda memory: memory.peak_bytes))
    return result


def _hold(item: pytest.Item, marker: pytest.Mark, memory: "Memory") -> None:
    """Fail the test where its peak is above what its marker allows."""
    from tuneplan.planner.errors import InputError
    from tuneplan.profiling.regression.budget import budget, excess

    peak = memory.peak_bytes
    item.user_properties.append((PROPERTY, peak))
    try:
        words = budget(marker.args, marker.kwargs)
        update = item.config.getoption("memory_update")
        message = excess(words, memory, item.nodeid, _path(item.config), update)
    except InputError as error:
        message = str(error)
    if message:
        pytest.fail(message, pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Collect results where they come together: in the only process, or in the one that xdist's workers report to."""
    if session.config.getoption("memory_update") and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Recorder(session.config), "tuneplan-memory-recorder")


class _Recorder:
    """Writes the baseline from what tests report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that passed has its peak among its properties."""
        if report.when == "call" and report.passed:
            peaks = [int(str(value)) for name, value in report.user_properties if name == PROPERTY]
            if peaks:
                self._config.stash[_SEEN][report.nodeid] = max(peaks)

    def pytest_sessionfinish(self) -> None:
        """Write; tests that did not run keep what they had, but for those whose file is gone."""
        seen = self._config.stash[_SEEN]
        if seen:
            from tuneplan.profiling.regression.budget import record

            record(_path(self._config), seen, self._config.rootpath)


def _path(config: pytest.Config) -> Path:
    return config.rootpath / str(config.getini("memory_baseline"))

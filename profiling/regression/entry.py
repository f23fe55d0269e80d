"""A user's own training code in a process of its own, with a time limit."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tuneplan
from tuneplan.planner.errors import InputError
from tuneplan.profiling.regression.cases import Case
from tuneplan.profiling.regression.reading import Reading

_PATHS = (str(Path(tuneplan.__file__).parents[1]),)


def run_entry(case: Case, root: Path) -> Reading:
    """Build and step what a case's entry point builds.

    Raises:
        InputError: the entry point cannot be found, raises, gives something else, ends its process or exceeds its time.
    """
    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    with tempfile.TemporaryDirectory(prefix="plan-check-") as folder:
        answer = Path(folder) / "answer.json"
        request = {"entry_point": case.entry_point, "device": case.device, "root": str(root), "answer": str(answer)}
        code, errors = _run([sys.executable, "-m", "tuneplan.profiling.regression.worker", json.dumps(request)], root, case)
        try:
            content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = (errors.strip().splitlines() or ["it printed nothing"])[-1][:200]
            raise InputError(
                f"{case.entry_point} ended its process (exit code {code}) before its steps were done: {last}"
            ) from None
    if "error" in content:
        raise InputError(content["error"])
    return Reading.of_json(content)


def _run(command: list[str], root: Path, case: Case) -> tuple[int, str]:
    """Run to the end or to the time limit, then end the whole process group; gives exit code and stderr."""
    paths = [*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        try:
            code = process.wait(case.time_limit_seconds)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{case.entry_point} was not done after {case.time_limit_seconds:g} s and was stopped; make the step smaller or "
                f"raise time_limit_seconds"
            ) from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        return code, errors.read().decode("utf-8", "replace")

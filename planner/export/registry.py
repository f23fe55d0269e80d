"""Every tool that a plan can be written for, by the name on the command line."""

from collections.abc import Callable
from importlib import import_module

from tuneplan.planner.errors import UnknownNameError
from tuneplan.planner.export.job import Export, ExportJob

FORMATS = {
    "trl": "trl",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "torchtune": "torchtune",
}
"""The module of each; its `write` gives the files."""


def writer(name: str) -> Callable[[ExportJob, str | None], Export]:
    """The function that writes a tool's files. Raises UnknownNameError."""
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS, "plan export --help")
    found: Callable[[ExportJob, str | None], Export] = import_module(f"tuneplan.planner.export.{FORMATS[name]}").write
    return found

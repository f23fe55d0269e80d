"""The command line as a function: arguments in, exit code and both streams out."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tuneplan.planner.cli.main import run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout as one strict JSON document: NaN and Infinity are not JSON."""
        return json.loads(self.out, parse_constant=_refuse)


Plan = Callable[..., Outcome]
WriteConfig = Callable[..., str]


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Run `plan` with arguments in this process; the streams are read apart, also under hypothesis."""

    def call(*args: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(list(args))
        return Outcome(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Write a config.json, a small Llama with some keys changed (None removes one) or raw bytes, and give its path."""

    def write(raw: bytes | None = None, name: str = "config.json", **changes: Any) -> str:
        values = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
        path = tmp_path / name
        path.write_bytes(json.dumps(values).encode() if raw is None else raw)
        return str(path)

    return write

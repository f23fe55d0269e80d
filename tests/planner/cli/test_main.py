"""The command line as a whole: help, version, streams, exit codes, colour."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneplan import __version__
from tuneplan.planner.cli import main
from tuneplan.planner.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]
ESCAPE = "\x1b"
IN_A_SHELL = "from tuneplan.planner.cli.main import main; main()"


def shell(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`plan` as a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", IN_A_SHELL, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


def test_version(plan: Any) -> None:
    """--version prints the name and the version, and nothing else."""
    result = plan("--version")
    assert (0, f"plan {__version__}\n", "") == (result.code, result.out, result.err)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(plan: Any, option: str) -> None:
    """The help names every command with its line, and shows examples on lines of their own."""
    result = plan(option)
    assert (0, "") == (result.code, result.err)
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", result.out, re.M), name
    assert re.search(r"^ +plan --model 70b --gpu a100-80g$", result.out, re.M)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_a_command(plan: Any, command: str) -> None:
    """Each command has a help of its own; click's paragraph mark does not show in it."""
    result = plan(command, "--help")
    assert (0, "") == (result.code, result.err)
    assert result.out.startswith(f"Usage: plan {command}")
    assert "\\b" not in result.out
    assert "\b" not in result.out


@pytest.mark.parametrize("command", ["estimate", "explain"])
def test_examples_in_help_stand_on_their_own_lines(plan: Any, command: str) -> None:
    """An example can be copied from the help in one piece."""
    assert re.search(rf"^ +plan {command} .*--model 7b", plan(command, "--help").out, re.M)


def test_a_report_goes_to_stdout_alone() -> None:
    """The console script's process: exit 0, the report on stdout, stderr empty."""
    result = shell("--model", "70b", "--gpu", "a100-80g")
    assert (0, "") == (result.returncode, result.stderr)
    assert "meta-llama/Llama-2-70b-hf" in result.stdout


def test_an_error_goes_to_stderr_alone() -> None:
    """The console script's process: exit 2, one line on stderr, stdout empty."""
    result = shell("--model", "70b", "--gpu", "a100-80")
    assert (2, "", 1) == (result.returncode, result.stdout, result.stderr.count("\n"))
    assert result.stderr.startswith("plan: Unknown GPU 'a100-80'. Did you mean 'a100-80g'?")


def test_a_no_is_exit_code_1() -> None:
    """The console script's process: nothing fits is an answer on stdout with exit code 1."""
    result = shell("--model", "70b", "--gpu", "a100-80g", "--method", "full", "--gpus", "1")
    assert (1, "") == (result.returncode, result.stderr)
    assert "Nothing that was asked for fits." in result.stdout


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1", "TERM": "xterm-256color"}, {}])
@pytest.mark.parametrize("arguments", [("--model", "7b", "--gpu", "a100-80g"), ("estimate", "--model", "7b"), ("gpus",)])
def test_no_escape_codes_where_there_is_no_terminal(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Output into a pipe is plain text, whatever NO_COLOR and TERM say."""
    result = shell(*arguments, **environment)
    assert 0 == result.returncode
    assert ESCAPE not in result.stdout + result.stderr


def test_no_color_wins_over_forced_colour() -> None:
    """NO_COLOR takes the colours out even where a terminal is forced."""
    colours = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m")
    arguments = ("--model", "7b", "--gpu", "a100-80g")
    assert colours.search(shell(*arguments, FORCE_COLOR="1").stdout)
    assert not colours.search(shell(*arguments, FORCE_COLOR="1", NO_COLOR="1").stdout)


def test_output_does_not_depend_on_the_process() -> None:
    """Two processes with different hash seeds print the same bytes."""
    first, second = (shell("--model", "7b", "--gpu", "a100-80g,h100", "--json", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first.stdout == second.stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    """`plan ... | head -1` ends without a complaint."""
    command = f'"{sys.executable}" -c "{IN_A_SHELL}" gpus --json | head -1'
    result = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert ("{\n", "") == (result.stdout, result.stderr)


def test_interrupt_is_one_line(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C gives one line, below the terminal's ^C, and the shell's exit code for it."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuneplan.planner.search.find", interrupt)
    result = plan("--model", "7b", "--gpu", "a100-80g")
    assert (130, "", "\nplan: interrupted\n") == (result.code, result.out, result.err)


def test_defects_keep_their_traceback(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw is not dressed up as wrong input."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tuneplan.planner.search.find", fail)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        plan("--model", "7b", "--gpu", "a100-80g")


def test_main_exits_with_the_code_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point of the console script passes the exit code on."""
    monkeypatch.setattr(main, "run", lambda: 1)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert 1 == stopped.value.code

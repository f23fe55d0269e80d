"""`plan`: the main job and the group of commands. Commands are imported when they are called, so that `plan` starts at once."""

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "estimate": "One configuration, in full.",
    "trace": "The same from the real code, without a GPU.",
    "profile": "The same measured: the real step on this machine.",
    "compare": "Methods side by side on every dimension.",
    "diff": "Two training configs: memory, time and cost.",
    "bench": "Kernels beside other implementations, timed on this machine.",
    "check": "Memory regressions: a repository's cases against its baseline.",
    "models": "The models that are known by name.",
    "gpus": "The GPUs and instances that are known by name.",
    "methods": "The fine-tuning methods.",
    "serve-memory": "A served model: KV cache, adapters, speed and cost.",
    "capacity": "What to rent, reserve or buy for a set of workloads.",
    "export": "A plan as files that training tools and SkyPilot run.",
    "calibrate": "A card's constants from what was measured on it.",
    "explain": "Any figure: its formula, its numbers and its source.",
}


LONGEST_LINE = 700


class LazyGroup(click.Group):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tuneplan.planner.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Unknown commands get close matches."""
        if args and args[0] not in COMMANDS:
            from tuneplan.planner.errors import UnknownNameError

            raise UnknownNameError("command", args[0], COMMANDS, "plan --help")
        return super().resolve_command(ctx, args)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code: 0 done, 1 an honest no, 2 wrong input, 3 a broken data file."""
    from tuneplan.hardware_profiles.errors import ProfileError
    from tuneplan.planner.cli.search import plan
    from tuneplan.planner.errors import TuneplanError

    try:
        result = plan.main(args=list(args) if args is not None else None, prog_name="plan", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        _complain(error.format_message(), "plan --help" if not isinstance(error, click.FileError) else "")
        return 2
    except (TuneplanError, ProfileError) as error:
        _complain(str(error), "")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", "")
        return 130
    return result if isinstance(result, int) else 0


def _complain(message: str, hint: str) -> None:
    """One line on stderr."""
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE - 200]} ... {line[-150:]}"
    sys.stderr.write(f"plan: {line}{f' ({hint})' if hint and hint not in line else ''}\n")


def main() -> None:
    """Entry point of the console script.

    The process is short and makes hardly any cycles, so the garbage collector would only slow its start.
    """
    gc.disable()
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Every registry against its folder: a file that nobody registered, or an entry without a file, is found here."""

import ast
from importlib import import_module
from pathlib import Path

import click
import pytest

from tuneplan.planner.cli.main import COMMANDS, LazyGroup
from tuneplan.planner.graph.loss import LOSSES
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.registry import PARTS, PRESETS, names
from tuneplan.planner.models.registry import FAMILIES, family
from tuneplan.planner.training.optimizers import ALIASES, OPTIMIZERS

PLANNER = Path(__file__).parents[1] / "planner"


def modules(folder: str) -> list[str]:
    """Names of the modules in a folder of the planner."""
    return sorted(path.stem for path in (PLANNER / folder).glob("*.py") if path.stem != "__init__")


def test_parts() -> None:
    """Every Part subclass of planner/methods is registered under its own label."""
    found: dict[str, type[Part]] = {}
    for module in modules("methods"):
        for value in vars(import_module(f"tuneplan.planner.methods.{module}")).values():
            if isinstance(value, type) and issubclass(value, Part) and "label" in vars(value):
                found[value.label] = value
    assert found == PARTS


def test_part_files_are_named_after_their_part() -> None:
    """`lora` is in lora.py: who looks for a method finds its file."""
    for label, part in PARTS.items():
        assert f"tuneplan.planner.methods.{label}" == part.__module__


@pytest.mark.parametrize("label", list(PARTS))
def test_parts_say_where_they_come_from(label: str) -> None:
    """Each part names its paper and the equation or file that it follows, and has a summary."""
    part = PARTS[label]
    assert part.__doc__
    assert part.paper
    assert part.source


def test_presets_are_compositions_of_parts() -> None:
    """A preset parses, keeps its name, and does not hide a part's name."""
    assert not set(PRESETS) & set(PARTS)
    for name in PRESETS:
        assert name == parse(name).name
    assert sorted([*PARTS, *PRESETS]) == names()


def test_families() -> None:
    """Every file of planner/models/families is registered under its name."""
    assert modules("models/families") == sorted(FAMILIES)
    for name, model_types in FAMILIES.items():
        assert f"tuneplan.planner.models.families.{name}" == family(model_types[0]).__name__


def test_no_model_type_is_claimed_twice() -> None:
    """Each model type belongs to one family."""
    claimed = [model_type for model_types in FAMILIES.values() for model_type in model_types]
    assert len(set(claimed)) == len(claimed)


def test_commands() -> None:
    """Every file of planner/cli that defines `command` is in COMMANDS, and the other way round."""
    found = []
    for name in modules("cli"):
        tree = ast.parse((PLANNER / "cli" / f"{name}.py").read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body):
            found.append(name)
    assert sorted(found) == sorted(name.replace("-", "_") for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_commands_have_the_name_they_are_called_by(name: str) -> None:
    """A command's own name is that of the group, and its options have help."""
    group = LazyGroup("plan")
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert name == command.name
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


def test_optimizers() -> None:
    """Entries are keyed by their own name, and aliases point to entries and hide none."""
    assert [optimizer.name for optimizer in OPTIMIZERS.values()] == list(OPTIMIZERS)
    assert set(ALIASES.values()) <= set(OPTIMIZERS)
    assert not set(ALIASES) & set(OPTIMIZERS)


def test_losses_are_functions_of_their_name() -> None:
    """Each loss is registered under its function's name."""
    assert {function.__name__: function for function in LOSSES.values()} == LOSSES

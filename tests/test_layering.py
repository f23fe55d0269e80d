"""Who may import whom, and the shape of the tree: read from the files, not from a running interpreter."""

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("planner", "profiling", "kernels", "hardware_profiles")
HEAVY = ("torch", "transformers", "triton", "peft", "bitsandbytes", "accelerate")
ALLOWED = {
    "hardware_profiles": ("hardware_profiles",),
    "planner": ("planner", "hardware_profiles"),
    "kernels": ("kernels", "hardware_profiles"),
    "profiling": PACKAGES,
}
LONGEST = 400


def files(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a piece of code imports, wherever the statement stands, with relative ones as dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "tuneplan":
                yield from ((f"tuneplan.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def in_functions(tree: ast.AST) -> set[int]:
    """Lines that stand inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {line for node in functions for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


ALL = [path for package in PACKAGES for path in files(package)]


def at(path: Path, line: int) -> str:
    """A place in a file."""
    return f"{path.relative_to(ROOT)}:{line}"


def test_there_is_something_to_look_at() -> None:
    """The folders are found, so that the tests below cannot pass on nothing."""
    assert all(files(package) for package in ("planner", "profiling", "hardware_profiles"))
    assert len(ALL) > 50


def test_imports_follow_the_layers() -> None:
    """hardware_profiles knows nobody, planner uses hardware_profiles, kernels neither planner nor profiling.

    The command line alone reaches into profiling and kernels, inside the function that needs them.
    """
    wrong = []
    for path in ALL:
        tree = parsed(path)
        package, lazy = path.relative_to(ROOT).parts[0], in_functions(tree)
        command_line = (ROOT / "planner" / "cli") in path.parents
        for module, line in imports(tree):
            head, _, rest = module.partition(".")
            if head != "tuneplan" or not rest or rest == "__version__":
                continue
            target = rest.split(".")[0]
            reached = command_line and target in ("profiling", "kernels") and line in lazy
            if target not in ALLOWED[package] and not reached:
                wrong.append(f"{at(path, line)} imports {module}")
    assert [] == wrong


def test_planning_never_imports_heavy_packages() -> None:
    """No torch, transformers, triton or peft anywhere in planner or hardware_profiles, not even inside a function."""
    paths = files("planner") + files("hardware_profiles")
    found = [(at(path, line), module) for path in paths for module, line in imports(parsed(path))]
    assert [] == [(place, module) for place, module in found if module.split(".")[0] in HEAVY]


def test_imports_are_absolute() -> None:
    """Only `tuneplan.` imports: no relative ones, and none of the bare names that other packages have too."""
    found = [(at(path, line), module) for path in ALL for module, line in imports(parsed(path))]
    assert [] == [(place, module) for place, module in found if module.startswith(".") or module.split(".")[0] in PACKAGES]


def test_no_file_is_long() -> None:
    """A file has one subject and at most 400 lines."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL}
    assert {} == {name: length for name, length in lengths.items() if length > LONGEST}


@pytest.mark.parametrize("package", ["kernels", "profiling"])
def test_no_init_where_a_name_would_collide(package: str) -> None:
    """With an `__init__.py` these folders would shadow other packages of the same name from the repository's root."""
    assert (ROOT / package).is_dir()
    assert not (ROOT / package / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_namespace_is_four_relative_links(package: str) -> None:
    """`src/tuneplan` holds a relative symbolic link to each top-level folder, which resolves to it."""
    link = ROOT / "src" / "tuneplan" / package
    assert link.is_symlink()
    assert f"../../{package}" == os.readlink(link)
    assert (ROOT / package) == link.resolve()


def test_nothing_else_is_in_the_namespace() -> None:
    """Beside the links there are `__init__.py` and `py.typed`."""
    found = {path.name for path in (ROOT / "src" / "tuneplan").iterdir() if path.name != "__pycache__"}
    assert {"__init__.py", "py.typed", *PACKAGES} == found


def test_every_package_of_the_planner_has_an_init() -> None:
    """Sub-folders with code are packages, so that tools agree on their names."""
    folders = {path.parent for package in ("planner", "hardware_profiles") for path in files(package)}
    assert [] == sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())


def test_code_is_ascii() -> None:
    """Code and comments are ASCII; other characters are written as escapes."""
    paths = [*ALL, *sorted((ROOT / "tests").rglob("*.py"))]
    assert [] == [str(path.relative_to(ROOT)) for path in paths if not path.read_text(encoding="utf-8").isascii()]

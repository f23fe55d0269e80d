"""Versions of what allocates: a change of them may change the memory of the same code."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def installed() -> dict[str, str]:
    """By package, without the local part (`+cpu`), which changes no byte of a trace; those that are missing are left out."""
    found = {package: _version(package) for package in PACKAGES}
    return {package: number for package, number in found.items() if number}


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""

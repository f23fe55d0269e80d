"""Where a measurement comes from: the processor, the driver, versions and the commit of the code that measured."""

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command() -> str:
    """How this process was started, without the folder of its program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the distributions that are installed."""
    return {name: found for name in names if (found := _version(name))}


def git_commit() -> str | None:
    """The commit of the checkout that this code is in, with "+changes" where files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver() -> str | None:
    """Version of the NVIDIA driver: as NVML gives it, else as the driver's own file does; None where neither can be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # NVML raises classes of its own, made at run time
        return _driver_of_kernel()
    return found.decode() if isinstance(found, bytes) else str(found)


def _driver_of_kernel() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return next((word for word in words if word.count(".") in (1, 2) and word.replace(".", "").isdigit()), None)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

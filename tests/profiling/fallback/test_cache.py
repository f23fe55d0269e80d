"""The user's cache: programs read back, and nothing in it can break an estimate."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.profiling.fallback import cache
from tuneplan.profiling.fallback.program import Program
from tuneplan.profiling.subject import Subject

pytestmark = pytest.mark.traced

Made = tuple[Subject, Program]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, in a folder that does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")


def test_programs_read_back(lora: Made) -> None:
    """What is kept gives the same step at any point."""
    subject, program = lora
    where = cache.store(subject, [program])
    (found,) = cache.load(subject)

    assert Path(where).is_file()
    assert found.step(3, 200).phases == program.step(3, 200).phases
    assert found.operators(3, 200) == program.operators(3, 200)
    assert (found.domain, found.points, found.residual, found.counts) == (
        program.domain,
        program.points,
        program.residual,
        program.counts,
    )


@pytest.mark.parametrize("change", ["config", "settings", "task", "versions"])
def test_another_key_is_another_entry(lora: Made, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config, the settings, the task and the versions of the libraries all count; batch and length do not."""
    subject, program = lora
    cache.store(subject, [program])
    other = {
        "config": replace(subject, config={**subject.config, "vocab_size": 1001}),
        "settings": replace(subject, settings=replace(subject.settings, dtype="fp16")),
        "task": replace(subject, task="causal-lm"),
        "versions": subject,
    }[change]
    if change == "versions":
        monkeypatch.setattr(cache, "versions", lambda: {"torch": "0"})
    longer = replace(subject, settings=replace(subject.settings, seq_len=999))

    assert [] == cache.load(other)
    assert (1 if change != "versions" else 0) == len(cache.load(longer))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"no gzip",
        gzip.compress(b"{"),
        gzip.compress(b"[]"),
        gzip.compress(b'{"key": {}}'),
        gzip.compress(b"\xff\xfe"),
        gzip.compress(b"[" * 100000),
    ],
    ids=["empty", "text", "cut", "list", "other key", "not utf-8", "deep"],
)
def test_a_broken_file_is_no_file(lora: Made, damage: bytes) -> None:
    """Whatever stands in it; and the next program overwrites it."""
    subject, program = lora
    Path(cache.store(subject, [program])).write_bytes(damage)
    assert [] == cache.load(subject)
    cache.store(subject, [program])
    assert 1 == len(cache.load(subject))


@pytest.mark.parametrize("part", ["log", "forms", "form_numbers", "storages", "counts", "domain", "points", "residual"])
def test_a_part_that_does_not_belong(lora: Made, part: str) -> None:
    """A file of the right key with a part cut off or exchanged is not used."""
    subject, program = lora
    path = Path(cache.store(subject, [program]))
    content = json.loads(gzip.decompress(path.read_bytes()))
    content["programs"][0][part] = [[10**9]]
    path.write_bytes(gzip.compress(json.dumps(content).encode()))

    assert [] == cache.load(subject)


def test_a_cache_that_cannot_be_written(lora: Made, tmp_path: Path) -> None:
    """The estimate goes on; nothing is kept."""
    (tmp_path / "cache").write_text("a file where the folder should be")

    assert "" == cache.store(*lora[:1], [lora[1]])
    assert [] == cache.load(lora[0])


def test_old_files_leave(lora: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder does not grow without end."""
    monkeypatch.setattr(cache, "MOST_FILES", 2)
    for vocabulary in (10, 11, 12):
        cache.store(replace(lora[0], config={"vocab_size": vocabulary}), [])

    assert 2 == len(list(cache.folder().iterdir()))


@pytest.mark.parametrize(
    ("platform", "variable", "end"),
    [
        ("linux", "XDG_CACHE_HOME", "tuneplan/traces"),
        ("darwin", "HOME", "Library/Caches/tuneplan/traces"),
        ("win32", "LOCALAPPDATA", "tuneplan/traces"),
    ],
)
def test_the_platform_s_convention(
    platform: str, variable: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux, macOS and Windows."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert tmp_path / end == cache.folder()


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG base directory specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / ".cache" / "tuneplan" / "traces" == cache.folder()

"""The model catalog: the index agrees with the folder, and each config builds the model that it says."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from tuneplan.planner.errors import DataFileError, InputError, UnknownNameError
from tuneplan.planner.models import lookup

INDEX = json.loads(lookup.INDEX.read_text("utf-8"))
FAMILIES = {
    *("llama", "mistral", "qwen2", "qwen3", "granite"),
    *("gpt2", "gpt_neox", "opt", "bloom", "phi", "phi3", "starcoder2"),
    *("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "nemotron_h", "minimax_m2"),
    *("bert", "roberta", "xlm-roberta", "deberta-v2", "distilbert", "albert", "modernbert"),
    *(
        "vit",
        "llava",
        "clip",
        "gemma3",
        "paligemma",
        "mllama",
        "mistral3",
        "idefics3",
        "smolvlm",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
    ),
}


def distinct_configs() -> list[object]:
    """One catalog entry for each different config; several models have the same."""
    first = {entry.config_path.read_bytes(): entry for entry in reversed(lookup.entries())}
    return [pytest.param(entry, id=entry.id) for entry in first.values()]


def test_index_and_folder_agree() -> None:
    """Every file of the folder is in the index once, and every file of the index is in the folder."""
    listed = Counter(record["file"] for record in INDEX["models"])
    present = Counter(path.name for path in lookup.CATALOG.iterdir() if path != lookup.INDEX)
    assert present == listed


def test_files_are_named_after_their_model() -> None:
    """org/name is in org--name.json."""
    assert [record["id"].replace("/", "--") + ".json" for record in INDEX["models"]] == [
        record["file"] for record in INDEX["models"]
    ]


def test_names_are_unique() -> None:
    """No id or alias, in any case, means two models."""
    names = Counter(name for entry in lookup.entries() for name in {entry.id.lower(), *entry.aliases})
    assert [] == [name for name, count in names.items() if count > 1]


def test_aliases_are_lower_case_ascii_words() -> None:
    """An alias can be typed: lower case, without spaces or path separators."""
    aliases = [alias for entry in lookup.entries() for alias in entry.aliases]
    assert [] == [a for a in aliases if a != a.lower() or not a.isascii() or set(a) & set(" /\\") or a.startswith(".")]


def test_every_source_is_declared_and_used() -> None:
    """A record's source is one of the index's sources, and none is left over."""
    assert set(INDEX["sources"]) == {record["source"] for record in INDEX["models"]}


def test_catalog_holds_at_least_sixty_different_configs() -> None:
    """The catalog covers enough models to be useful, of the families that people fine-tune."""
    contents = {entry.config_path.read_bytes() for entry in lookup.entries()}
    assert len(contents) >= 60
    assert FAMILIES == {json.loads(content)["model_type"] for content in contents}


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("7b", "meta-llama/Llama-2-7b-hf"),
        ("13b", "meta-llama/Llama-2-13b-hf"),
        ("70b", "meta-llama/Llama-2-70b-hf"),
        ("8b", "meta-llama/Meta-Llama-3.1-8B"),
        ("405b", "meta-llama/Meta-Llama-3.1-405B"),
        ("llama2-7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("QWEN/qwen3-8b", "Qwen/Qwen3-8B"),
        ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("granite-3.1-8b", "ibm-granite/granite-3.1-8b-instruct"),
        ("meta-llama/llama-2-70b-hf", "meta-llama/Llama-2-70b-hf"),
    ],
)
def test_aliases_and_ids_in_any_case(alias: str, expected: str) -> None:
    """Size-only names mean Llama 2 and Llama 3.1; natural names and hub ids work in any case."""
    assert expected == lookup.find(alias).id
    assert expected == lookup.load(alias)[0]


def test_variants_share_the_config_of_their_model() -> None:
    """An instruct or chat variant is its own id with the same config and parameters."""
    base, chat = lookup.find("7b"), lookup.find("llama-2-7b-chat")
    assert "meta-llama/Llama-2-7b-chat-hf" == chat.id
    assert (base.config_path, base.parameters) == (chat.config_path, chat.parameters)


def test_load_gives_a_reader_named_after_the_model() -> None:
    """The reader's errors name the hub id."""
    name, config = lookup.load("70b")
    assert ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-hf") == (name, config.origin)
    assert 8192 == config.integer("hidden_size")


def test_unknown_name_offers_close_matches() -> None:
    """A misspelt alias is answered with what it may have meant."""
    with pytest.raises(UnknownNameError) as caught:
        lookup.find("lama-2-7b")
    assert "llama-2-7b" in caught.value.close
    assert "(plan models lists all " in str(caught.value)


def test_unknown_hub_id_points_to_a_downloaded_config() -> None:
    """A hub id outside the catalog is not fetched; the message says that a path works."""
    with pytest.raises(UnknownNameError) as caught:
        lookup.load("some-org/some-model-5b")
    assert "a path to a downloaded config.json works too; plan models lists all" in str(caught.value)


def write_config(folder: Path) -> Path:
    """A folder with a config.json in it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    return folder


@pytest.mark.parametrize("given", ["./sub", "sub", "sub/config.json", "own/name", "./70b", "sub/../sub"])
def test_existing_paths_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A file or a folder with a config.json is read, and keeps the name that the user gave."""
    for folder in ("sub", "own/name", "70b"):
        write_config(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    name, config = lookup.load(given)
    assert (given, {"hidden_size": 64}) == (name, config.mapping)


def test_bare_alias_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model 70b` means Llama 2 even where a folder is called 70b."""
    write_config(tmp_path / "70b")
    monkeypatch.chdir(tmp_path)
    assert "meta-llama/Llama-2-70b-hf" == lookup.load("70b")[0]


def test_local_copy_wins_over_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers, an existing folder org/name is read instead of the hub's model of that id."""
    write_config(tmp_path / "Qwen" / "Qwen3-8B")
    monkeypatch.chdir(tmp_path)
    assert {"hidden_size": 64} == lookup.load("Qwen/Qwen3-8B")[1].mapping


@pytest.mark.parametrize("given", ["absent.json", "./absent", "/absent", "~/absent-7f3a", "a\0b"])
def test_what_looks_like_a_path_is_reported_as_one(given: str) -> None:
    """A mistyped path is not answered with model names."""
    with pytest.raises(InputError) as caught:
        lookup.load(given)
    assert not isinstance(caught.value, UnknownNameError)


@pytest.mark.parametrize("content", ["", "[]", '{"models": [{}], "sources": {}}', '{"models": 3, "sources": {}}'])
def test_broken_index_is_a_data_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """A damaged installation is told apart from a user's mistake (exit code 3)."""
    broken = tmp_path / "index.json"
    broken.write_text(content)
    monkeypatch.setattr(lookup, "INDEX", broken)
    lookup._index.cache_clear()
    try:
        with pytest.raises(DataFileError, match=r"index\.json"):
            lookup.find("7b")
    finally:
        lookup._index.cache_clear()


def test_broken_bundled_config_is_a_data_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bundled config is the installation's fault, not the user's."""
    monkeypatch.setattr(lookup, "CATALOG", tmp_path)
    with pytest.raises(DataFileError, match="Llama-2-7b-hf"):
        lookup.load("7b")


def test_only_the_needed_files_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up reads the one config that it needs."""
    opened: list[str] = []
    real = open

    def record(file: str, *arguments: object, **options: object) -> object:
        opened.append(Path(file).name)
        return real(file, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", record)
    lookup.load("70b")
    assert ["meta-llama--Llama-2-70b-hf.json"] == [name for name in opened if name != "index.json"]


def test_entries_are_immutable() -> None:
    """A catalog entry is shared, so it cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        lookup.find("7b").id = "other"  # type: ignore[misc]


@pytest.mark.parametrize("entry", distinct_configs())
def test_parameters_equal_what_transformers_builds(entry: lookup.CatalogEntry) -> None:
    """The library accepts the config and builds a model of exactly `parameters` parameters, tied weights once."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    content = json.loads(entry.config_path.read_bytes())
    config = transformers.AutoConfig.for_model(**content)
    with torch.device("meta"):
        model = getattr(transformers, content["architectures"][0])(config)
    assert entry.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_equal_configs_have_equal_parameters() -> None:
    """The models that the test above skips as repetitions state the same count."""
    counts: dict[bytes, set[int]] = {}
    for entry in lookup.entries():
        counts.setdefault(entry.config_path.read_bytes(), set()).add(entry.parameters)
    assert {1} == {len(parameters) for parameters in counts.values()}

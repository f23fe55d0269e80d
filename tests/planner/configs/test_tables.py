"""Every key that a tool's own source has is in the tool's table, once."""

from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tuneplan.planner.configs import accelerate, deepspeed, llama_factory, torchtune, training_arguments, trl, unsloth
from tuneplan.planner.configs.axolotl_keys import AXOLOTL
from tuneplan.planner.configs.registry import FORMATS, reader
from tuneplan.planner.configs.sharding_keys import FSDP_TABLE
from tuneplan.planner.configs.table import Table, known_keys

CASES: dict[str, tuple[Table, str, tuple[str, ...]]] = {
    "transformers": (training_arguments.TABLE, "transformers", ("TrainingArguments", "Seq2SeqTrainingArguments")),
    "accelerate": (accelerate.TABLE, "accelerate", ("ClusterConfig",)),
    "accelerate deepspeed_config": (accelerate.DEEPSPEED_TABLE, "accelerate", ("deepspeed_config",)),
    "deepspeed zero_optimization": (deepspeed.ZERO, "deepspeed", ("DeepSpeedZeroConfig",)),
    "axolotl": (AXOLOTL, "axolotl", ("AxolotlInputConfig", "DeprecatedParameters", "LISAConfig")),
    "axolotl fsdp_config": (FSDP_TABLE, "axolotl", ("FSDPConfig",)),
    "llama-factory": (
        llama_factory.table(),
        "llamafactory",
        ("ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments"),
    ),
    "torchtune": (torchtune.TABLE, "torchtune", ("recipe",)),
    "unsloth": (unsloth.TABLE, "unsloth", ("TrainingConfig", "LoraConfig", "DataConfig", "LoggingConfig")),
    **{
        kind: (trl.table(kind), "trl", (name, "ModelConfig", "ScriptArguments", "DatasetMixtureConfig"))
        for kind, name in trl.CLASSES.items()
    },
}
ELSEWHERE = {"torchtune": {"get"}}


@pytest.mark.parametrize("name", list(CASES))
def test_no_key_is_missing(name: str) -> None:
    """What the tool's classes have, the table has."""
    table, tool, groups = CASES[name]
    keys = {key for group in groups for key in known_keys(tool)[group]}
    assert [] == sorted(keys - table.names() - ELSEWHERE.get(tool, set()))


@pytest.mark.parametrize("name", list(CASES))
def test_no_key_has_two_meanings(name: str) -> None:
    """A key is used, or irrelevant for one reason, or not modelled for one reason; an earlier name is not a present one."""
    table = CASES[name][0]
    grouped = [key for keys in (*table.irrelevant.values(), *table.not_modelled.values()) for key in keys]
    counted = Counter([*table.used, *grouped, *table.renamed])
    assert [] == sorted(key for key, count in counted.items() if count > 1)
    assert set(table.renamed.values()) <= table.names()


def test_accelerate_fsdp_keys() -> None:
    """The options of `accelerate launch` for FSDP, without their prefix."""
    keys = {key.removeprefix("fsdp_") for key in known_keys("accelerate")["fsdp_config"]}
    assert [] == sorted(keys - FSDP_TABLE.names())


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_has_a_reader(kind: str) -> None:
    """The registry's modules exist and read."""
    assert callable(reader(kind))


def test_the_page_of_keys_is_up_to_date() -> None:
    """docs/config_keys.md is what docs/config_tables.py writes."""
    path = Path(__file__).parents[3] / "docs" / "config_tables.py"
    spec = spec_from_file_location("config_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == module.TARGET.read_text(encoding="utf-8")

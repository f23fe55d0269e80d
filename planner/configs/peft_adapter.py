"""PEFT's adapter_config.json beside other files: the method, and an account of its keys."""

from dataclasses import fields

from tuneplan.planner.configs.accounting import IRRELEVANT, NOT_MODELLED, USED
from tuneplan.planner.configs.adapter_keys import Adapter
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, version
from tuneplan.planner.methods.peft_config import LABELS, from_mapping, without_effect
from tuneplan.planner.methods.registry import PARTS
from tuneplan.planner.secrets import shown_key
from tuneplan.planner.yaml_file import YamlFile


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note the method. Raises InputError with the file's name for what PEFT would not read either."""
    section = Section(file, (), file.data, Table({}), facts)
    given = from_mapping(file.data, file.name)
    label = LABELS[file.data["peft_type"]]
    part, *others = given.method.parts
    names = "target_modules" in {f.name for f in fields(part)}
    targets = getattr(part, "target_modules", None) if file.data.get("target_modules") is not None else None
    facts.set("adapter", Adapter(label, targets=targets if names else None, others=tuple(others), given=part), file.name)
    facts.stack(f"peft {version('peft')}")
    if given.base_model:
        facts.set("adapter_base", given.base_model, section.source("base_model_name_or_path"))
    own = {f.name for f in fields(PARTS[label])} | {"peft_type", "modules_to_save", "trainable_token_indices"}
    for key in file.data:
        if key in own or key == "base_model_name_or_path":
            section.account(key, USED, "the model" if key.startswith("base_model") else f"the method: {shown_key(key)}")
        elif f"{key}=" not in "".join(given.warnings):
            note = "changes neither memory nor time, or is at its default"
            section.account(key, IRRELEVANT, note if without_effect(file.data["peft_type"], key) else f"at its default: {note}")
        else:
            section.account(key, NOT_MODELLED, "figures are without it")
    for warning in given.warnings:
        facts.warn(warning)

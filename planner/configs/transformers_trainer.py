"""A file with nothing but `TrainingArguments`, as `HfArgumentParser.parse_yaml_file` and `parse_json_file` read it."""

from tuneplan.planner.configs import training_arguments as hf
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import defaults, version
from tuneplan.planner.yaml_file import YamlFile

TRAINER = "the Trainer without PEFT"


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line; an unknown key is one, as transformers refuses it."""
    section = Section(file, (), file.data, hf.TABLE, facts)
    facts.stack(f"transformers {version('transformers')}")
    facts.set("objective", "sft", file.name, explicit=False)
    facts.set("attention", "sdpa", "transformers' default", explicit=False)
    facts.set("adapter", None, TRAINER, explicit=False)
    facts.set("padded", True, "the Trainer's default", explicit=False)
    hf.read_training_arguments(section, defaults("transformers", "Seq2SeqTrainingArguments"), "TrainingArguments")
    section.finish()

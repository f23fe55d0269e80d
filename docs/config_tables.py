"""Writes docs/config_keys.md: every key of every tool, and what the planner makes of it.

`PYTHONPATH=src python docs/config_tables.py`; a test compares the file with the tables of planner/configs/.
"""

from pathlib import Path

from tuneplan.planner.configs import accelerate, deepspeed, llama_factory, torchtune, training_arguments, trl, unsloth
from tuneplan.planner.configs.axolotl_keys import AXOLOTL
from tuneplan.planner.configs.sharding_keys import FSDP_TABLE
from tuneplan.planner.configs.table import Table, version
from tuneplan.planner.methods.peft_config import LABELS, WITHOUT_EFFECT

IRRELEVANT = "Without effect on memory, time and cost"
TARGET = Path(__file__).with_name("config_keys.md")
TABLES: dict[str, tuple[str, Table]] = {
    "transformers: TrainingArguments": ("transformers", training_arguments.TABLE),
    "TRL: keys beside those of TrainingArguments": (
        "trl",
        Table(trl.MODEL_USED, trl.MODEL_IRRELEVANT, trl.MODEL_NOT_MODELLED, trl.RENAMED),
    ),
    "accelerate": ("accelerate", accelerate.TABLE),
    "accelerate: deepspeed_config": ("accelerate", accelerate.DEEPSPEED_TABLE),
    "FSDP: fsdp_config of accelerate, the Trainer and axolotl (with or without fsdp_ in front)": ("accelerate", FSDP_TABLE),
    "DeepSpeed": ("deepspeed", deepspeed.TOP),
    "DeepSpeed: zero_optimization": ("deepspeed", deepspeed.ZERO),
    "axolotl": ("axolotl", AXOLOTL),
    "LLaMA-Factory: keys beside those of TrainingArguments": ("llamafactory", llama_factory.FACTORY),
    "torchtune": ("torchtune", torchtune.TABLE),
    "Unsloth": ("unsloth", unsloth.TABLE),
}


def page() -> str:
    """The page."""
    lines = [
        "# Keys of training configs",
        "",
        "Written by `docs/config_tables.py` from the tables of `planner/configs/`; a test keeps both equal, and another holds",
        "them against the keys that the tools' own classes have (`planner/configs/keys/`, written by `docs/config_keys.py`).",
        "[configs.md](configs.md) says how they are read.",
    ]
    for title, (tool, table) in TABLES.items():
        lines += ["", f"## {title} ({version(tool)})", "", "Used:", "", "| key | what it sets |", "|---|---|"]
        lines += [f"| `{key}` | {what} |" for key, what in sorted(table.used.items())]
        for heading, groups in (
            ("Without effect on memory, time and cost", table.irrelevant),
            ("Not modelled", table.not_modelled),
        ):
            if groups:
                lines += ["", f"{heading}:", ""]
                lines += [
                    f"- {reason}: {', '.join(f'`{key}`' for key in sorted(keys))}" for reason, keys in groups.items() if keys
                ]
        if table.renamed:
            pairs = ", ".join(f"`{old}` (`{new}`)" for old, new in sorted(table.renamed.items()))
            lines += ["", f"Other names: {pairs}."]
    kinds = ", ".join(f"`{kind}`" for kind in sorted(LABELS))
    plain = ", ".join(f"`{key}`" for key in sorted(WITHOUT_EFFECT))
    lines += ["", f"## PEFT: adapter_config.json ({version('peft')})", "", f"`peft_type`: {kinds}.", ""]
    lines += [f"Without effect on memory and time: {plain}. Options of the method's part are used; others are warned about.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")

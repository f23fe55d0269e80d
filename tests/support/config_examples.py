"""Writes tests/golden/configs/expected.json: what each example config is read as, and its estimate.

`PYTHONPATH=src python tests/support/config_examples.py`; a change of the file is shown in a pull request like that of any other
figure. `plan trace --config FILE --verify` holds an estimate against the real code.
"""

import json
from pathlib import Path
from typing import Any

import click

from tuneplan.planner.cli.step_words import asked, request_options
from tuneplan.planner.estimate import estimate

FOLDER = Path(__file__).parents[1] / "golden" / "configs"
KEYS = (
    "model", "method", "seq_len", "micro_batch_size", "gradient_accumulation_steps", "dtype", "precision", "optimizer",
    "gradient_checkpointing", "attention", "loss", "padded", "max_grad_norm", "data_parallel", "zero_stage", "empty_cache_steps",
)  # fmt: skip
"""What a file decides, and no other change of the planner."""
EXPECTED = FOLDER / "expected.json"
CASES: dict[str, dict[str, Any]] = {
    "trl_sft_lora.yaml": {},
    "trl_sft_qlora.yaml": {},
    "trl_dpo.yaml": {},
    "trl_grpo.json": {},
    "training_arguments.json": {"model": "HuggingFaceTB/SmolLM2-135M", "seq_len": 512, "method": "full"},
    "training_arguments.yaml": {"model": "HuggingFaceTB/SmolLM2-135M", "seq_len": 512, "method": "full"},
    "adapter_config.json": {"seq_len": 512},
    "adapter_config_default_modules.json": {"seq_len": 512},
    "axolotl_qlora.yaml": {},
    "axolotl_full_fsdp.yaml": {},
    "llama_factory_lora.yaml": {},
    "llama_factory_full.yaml": {},
    "torchtune_lora.yaml": {},
    "torchtune_qlora.yaml": {},
    "unsloth_cli.yaml": {},
    "unsloth_flat.json": {},
    "trl_sft_lora.yaml,accelerate_fsdp2.yaml": {},
    "trl_sft_lora.yaml,accelerate_zero2.yaml": {},
    "trl_sft_lora.yaml,deepspeed_zero3.json": {"data_parallel": 2},
    "llama_factory_full.yaml,deepspeed_zero1.json": {"data_parallel": 8},
}
"""Files, with commas where several are read together, and what is typed beside them."""


@click.command()
@request_options
def _words(**given: Any) -> None:
    """The options of `plan estimate`."""


def request_of(files: str, typed: dict[str, Any]) -> Any:
    """The request of one case."""
    given: dict[str, Any] = {p.name: p.get_default(click.Context(_words)) for p in _words.params if p.name}
    given |= {"config_formats": (), "configs": tuple(str(FOLDER / name) for name in files.split(",")), **typed}
    return asked(given, set(typed)).request()


def result_of(files: str) -> dict[str, Any]:
    """What a case is expected to be; with an estimate where the trace can confirm it: one GPU, supervised fine-tuning."""
    asked_for = request_of(files, CASES[files])
    told = asked_for.to_json()
    result = {"typed": CASES[files], "request": {key: told[key] for key in KEYS}}
    if asked_for.sharding.data_parallel > 1 or told["training"]["name"] != "sft":
        return result
    found = estimate(asked_for, advice=False)
    components = {name: size for name, size in found.components.items() if name != "runtime"}
    return {**result, "allocated_bytes": found.allocated_bytes, "components": components}


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps({files: result_of(files) for files in CASES}, indent=2) + "\n")

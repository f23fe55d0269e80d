"""Exported files through the parsers of the tools that they are for.

Each tool in an environment of its own, as they ask for different versions of the same packages:

    python tests/support/own_parsers.py axolotl DIR

prints what the tool made of the files as JSON, or fails as the tool fails. Nothing is trained, and nothing is downloaded.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def axolotl(folder: Path) -> dict[str, Any]:
    """Axolotl's pydantic schema, with the checks that `axolotl train` makes of a configuration."""
    import yaml
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    config = DictDefault(yaml.safe_load((folder / "axolotl.yaml").read_text()))
    capabilities = {"bf16": True, "fp8": False, "n_gpu": 8, "compute_capability": "sm_80", "n_node": 1, "tf32": True}
    checked = validate_config(config, capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})
    kept = {key: checked.get(key) for key in config}
    return {key: value for key, value in kept.items() if isinstance(value, str | int | float | bool | None)}


def llama_factory(folder: Path) -> dict[str, Any]:
    """LLaMA-Factory's argument parser, with the checks of `llamafactory-cli train`."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    import yaml
    from llamafactory.hparams import parser

    os.chdir(folder)
    values = yaml.safe_load((folder / "train.yaml").read_text())
    values["use_cpu"] = True
    pure = values.pop("pure_bf16", False)  # it asks the device, and there is none here
    values.pop("deepspeed", None)
    parser._check_extra_dependencies = lambda *_: None
    model, data, training, finetuning, _ = parser.get_train_args(values)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(data.dataset) <= set(info)
    return {
        "cutoff_len": data.cutoff_len,
        "packing": data.packing,
        "batch": training.per_device_train_batch_size,
        "accumulation": training.gradient_accumulation_steps,
        "optim": str(training.optim.value),
        "finetuning_type": finetuning.finetuning_type,
        "lora_rank": finetuning.lora_rank,
        "pure_bf16": pure,
        "quantization_bit": model.quantization_bit,
    }


def torchtune(folder: Path) -> dict[str, Any]:
    """Torchtune's own check of a configuration (`tune validate`), and its model built on the meta device."""
    import torch
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.config._utils import _get_component_from_path

    loaded = OmegaConf.load(folder / "torchtune.yaml")
    config.validate(loaded)
    for part in ("tokenizer", "dataset", "checkpointer", "optimizer", "loss", "metric_logger"):
        _get_component_from_path(loaded[part]["_component_"])
    with torch.device("meta"):
        model = config.instantiate(loaded.model)
    return {"parameters": sum(p.numel() for p in model.parameters()), "batch": loaded.batch_size, "dtype": loaded.dtype}


def skypilot(folder: Path) -> dict[str, Any]:
    """SkyPilot's schema of a task."""
    import yaml
    from sky.utils import common_utils, schemas

    content = yaml.safe_load((folder / "sky.yaml").read_text())
    common_utils.validate_schema(content, schemas.get_task_schema(), "Invalid task: ")
    resources = content["resources"]
    common_utils.validate_schema(resources, schemas.get_resources_schema(), "Invalid resources: ")
    return {"name": content["name"], "candidates": len(resources.get("ordered", []))}


def deepspeed(folder: Path) -> dict[str, Any]:
    """DeepSpeed's own configuration object."""
    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(json.loads((folder / "deepspeed.json").read_text()))
    return {
        "stage": int(config.zero_config.stage),
        "batch": config.train_micro_batch_size_per_gpu,
        "bf16": bool(config.bfloat16_config.enabled),
    }


def accelerate(folder: Path) -> dict[str, Any]:
    """The reader of `accelerate launch --config_file`."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(folder / "accelerate.yaml"))
    return {"type": str(config.distributed_type.value), "processes": config.num_processes, "fsdp": config.fsdp_config}


PARSERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    function.__name__: function for function in (axolotl, llama_factory, torchtune, skypilot, deepspeed, accelerate)
}


if __name__ == "__main__":
    print(json.dumps(PARSERS[sys.argv[1]](Path(sys.argv[2]).resolve()), default=str))

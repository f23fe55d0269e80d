"""Every family by the `model_type` of its config.json."""

from dataclasses import replace
from importlib import import_module
from types import ModuleType

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.spec import CAUSAL_LM, ModelSpec

FAMILIES = {
    "llama": ("llama", "mistral", "qwen2", "qwen3", "granite"),
    "cohere": ("cohere", "cohere2"),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "gpt2": ("gpt2", "gpt-sw3"),
    "gpt_neox": ("gpt_neox",),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", "olmo3"),
    "opt": ("opt",),
    "phi": ("phi",),
    "phi3": ("phi3",),
    "stablelm": ("stablelm",),
    "starcoder2": ("starcoder2",),
    "mixtral": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
    "bart": ("bart",),
    "t5": ("t5", "mt5"),
    "bert": ("bert", "roberta", "xlm-roberta", "electra"),
}
"""Module names in `families/`, which are imported when they are needed, with the model types that each mirrors."""


def family(model_type: str, origin: str = "") -> ModuleType:
    """The family module of a model type. Raises NotModelledError where no family mirrors it yet."""
    for name, model_types in FAMILIES.items():
        if model_type in model_types:
            return import_module(f"tuneplan.planner.models.families.{name}")
    known = ", ".join(sorted(t for model_types in FAMILIES.values() for t in model_types))
    raise NotModelledError(
        f"{origin + ': ' if origin else ''}model_type {model_type!r} is an architecture that tuneplan does not know yet",
        f", so it will not guess; it knows {known}",
    )


def read_spec(id: str, config: ConfigReader, task: str = "") -> ModelSpec:
    """The spec of a config.json.

    Args:
        id: hub id or path, for the report.
        config: contents of the file.
        task: one of tasks.TASKS, or "" for the first that the family mirrors.

    Raises:
        InputError: an unknown family, impossible dimensions, a quantized checkpoint, a task that the family does not mirror.
    """
    if config.has("quantization_config"):
        raise InputError(
            f"{config.origin}: this is the config of a checkpoint that is quantized already (quantization_config), which "
            "tuneplan does not know; use the original model's config, with --method qlora for a 4-bit base"
        )
    module = family(config.text("model_type"), config.origin)
    chosen = tasks.chosen(task, getattr(module, "TASKS", (CAUSAL_LM,)), config)
    spec: ModelSpec = module.read(id, config)
    labels = tasks.labels_of(config) if chosen in tasks.CLASSIFIES else tasks.DEFAULT_LABELS
    return spec if (chosen, labels) == (spec.task, spec.num_labels) else replace(spec, task=chosen, num_labels=labels)

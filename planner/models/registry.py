"""Every family by the `model_type` of its config.json."""

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from tuneplan.planner.errors import InputError, NotModelledError
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.foreign import refuse_foreign
from tuneplan.planner.models.spec import CAUSAL_LM, ModelSpec
from tuneplan.planner.training.attention_kernel import FLASH_MAX_HEAD_DIM
from tuneplan.planner.training.settings import CHECKPOINTING

FAMILIES = {
    "llama": ("llama", "mistral", "qwen2", "qwen3", "granite"),
    "bloom": ("bloom",),
    "cohere": ("cohere", "cohere2"),
    "falcon": ("falcon",),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "mistral3": ("mistral3",),
    "mllama": ("mllama",),
    "idefics3": ("idefics3", "smolvlm"),
    "gemma_vision": ("gemma3", "paligemma"),
    "gemma4": ("gemma4_text",),
    "gpt2": ("gpt2", "gpt-sw3"),
    "gpt_bigcode": ("gpt_bigcode",),
    "gpt_neo": ("gpt_neo",),
    "gpt_neox": ("gpt_neox",),
    "gptj": ("gptj", "codegen"),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", "olmo3"),
    "mpt": ("mpt",),
    "nemotron": ("nemotron",),
    "nemotron_h": ("nemotron_h",),
    "nemotron_nas": ("nemotron-nas",),
    "opt": ("opt",),
    "phi": ("phi",),
    "phi3": ("phi3",),
    "llama4": ("llama4_text",),
    "relatives": (
        "internlm3",
        "iquestcoder",
        "smollm3",
        "ministral",
        "seed_oss",
        "hunyuan_v1_dense",
        "arcee",
        "helium",
        "glm",
        "glm4",
        "exaone4",
    ),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "glm_moe": ("glm4_moe", "minimax_m2"),
    "gpt_oss": ("gpt_oss",),
    "granite_hybrid": ("granitemoehybrid",),
    "granite_moe": ("granitemoe",),
    "stablelm": ("stablelm",),
    "starcoder2": ("starcoder2",),
    "mixtral": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
    "qwen_hybrid": ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    "bart": ("bart",),
    "t5": ("t5", "mt5"),
    "bert": ("bert", "roberta", "xlm-roberta", "electra"),
    "albert": ("albert",),
    "deberta": ("deberta-v2",),
    "distilbert": ("distilbert",),
    "vit": ("vit",),
    "llava": ("llava",),
    "qwen2_vl": ("qwen2_vl", "qwen2_5_vl"),
    "qwen3_vl": ("qwen3_vl", "qwen3_vl_moe"),
    "clip": ("clip",),
    "modernbert": ("modernbert",),
}
"""Module names in `families/`, which are imported when they are needed, with the model types that each mirrors."""

TEXT_MODELS = {"llama4": "llama4_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
"""Models with images whose config transformers loads as a text model where a causal model is asked for."""
BESIDE_TOWERS = {"gemma4": "gemma4_text"}
"""Models with images that are loaded whole where a causal model is asked for, with the type of their text model alone."""
SAME_SHAPE = {"kimi_k2": "deepseek_v3", "mimo": "qwen2", "minimax_m3": "minimax_m3_vl_text"}
"""Types that transformers does not have, with the type that has the same weights and ops."""
LORA_NAMES = ("lora", "qlora", "dora", "lora_fa")
MADE_DENSE = ("fp8", "mxfp4")
"""Formats of checkpoints that are made dense when they are loaded to be trained (`dequantize=True`)."""


def family(model_type: str, origin: str = "") -> ModuleType:
    """The family module of a model type. Raises NotModelledError where no family mirrors it yet."""
    for name, model_types in FAMILIES.items():
        if model_type in model_types:
            return import_module(f"tuneplan.planner.models.families.{name}")
    known = ", ".join(sorted(t for model_types in FAMILIES.values() for t in model_types))
    raise NotModelledError(
        f"{origin + ': ' if origin else ''}model_type {model_type!r} is an architecture that tuneplan does not know yet",
        f", so it will not guess; it knows {known}. For any other, plan, plan compare and plan estimate trace the real code "
        "(docs/any-model.md)",
    )


def suited(spec: ModelSpec, names: Iterable[str]) -> list[str]:
    """Names of methods, LoRA's with targets where PEFT's `all-linear` does not run on the model (`ADAPTED` of its family)."""
    targets = getattr(family(spec.model_type), "ADAPTED", ()) if spec.source is None else ()
    given = f"(target_modules={','.join(targets)})"
    return [f"{name}{given}" if targets and name in LORA_NAMES else name for name in names]


def has_flash(spec: ModelSpec) -> bool:
    """Whether transformers has FlashAttention for the architecture (`EAGER_ONLY` or `NO_FLASH` of a family: it does not).

    And whether its heads are small enough for it. Of a model that is traced nobody knows.
    """
    if spec.source is not None:
        return False
    module = family(spec.model_type)
    if max(spec.head_dim, getattr(spec, "global_head_dim", 0)) > FLASH_MAX_HEAD_DIM:
        return False
    return not (getattr(module, "EAGER_ONLY", False) or getattr(module, "NO_FLASH", False))


def has_checkpointing(spec: ModelSpec) -> bool:
    """Whether transformers has gradient checkpointing for the architecture (`NO_CHECKPOINTING` of a family: it does not).

    A model that is traced is asked when it is built.
    """
    return spec.source is not None or not getattr(family(spec.model_type), "NO_CHECKPOINTING", False)


def checkpointing_kinds(spec: ModelSpec) -> tuple[str, ...]:
    """What a search has to consider: without gradient checkpointing and, where there is one, with transformers' default."""
    return CHECKPOINTING[:2] if has_checkpointing(spec) else CHECKPOINTING[:1]


def read_spec(id: str, config: ConfigReader, task: str = "") -> ModelSpec:
    """The spec of a config.json.

    Args:
        id: hub id or path, for the report.
        config: contents of the file.
        task: one of tasks.TASKS, or "" for the first that the family mirrors.

    Raises:
        InputError: an unknown family, impossible dimensions, a quantized checkpoint, a task that the family does not mirror.
    """
    config, note = described(config)
    module = _mirrored(config)
    chosen = tasks.chosen(task, getattr(module, "TASKS", (CAUSAL_LM,)), config)
    spec: ModelSpec = module.read(id, config)
    refuse_foreign(config.mapping, config.asked, config.origin)
    labels = tasks.labels_of(config) if chosen in tasks.CLASSIFIES else tasks.DEFAULT_LABELS
    note = "; ".join([text for text in (note, spec.note) if text])
    if (chosen, labels, note) == (spec.task, spec.num_labels, spec.note):
        return spec
    return replace(spec, task=chosen, num_labels=labels, note=note)


def _mirrored(config: ConfigReader) -> ModuleType:
    """The family of a config. Raises NotModelledError, with the number of weights where that is known."""
    try:
        return family(config.text("model_type"), config.origin)
    except NotModelledError as error:
        from tuneplan.planner.models.counted import parameters, remark

        count = parameters(config)
        if count is None:
            raise
        said = remark(config)
        known = f"{count:,} parameters, which it does know" + (f": {said}" if said else "")
        raise NotModelledError(f"{error.reason} ({known})", str(error)[len(error.reason) :]) from None


def described(config: ConfigReader) -> tuple[ConfigReader, str]:
    """The config of the model that is trained, and what was read otherwise than it is written.

    Raises InputError for a checkpoint in a format that training does not start from.
    """
    notes = []
    if config.has("auto_map"):
        notes.append("the config points to code of its own (auto_map), which is never run; the model is read by its model_type")
    if config.has("quantization_config"):
        section = config.section("quantization_config")
        method = section.text("quant_method", "")
        if method not in MADE_DENSE:
            raise InputError(
                f"{config.origin}: this is the config of a checkpoint that is quantized already (quantization_config), which "
                "tuneplan does not know; use the original model's config, with --method qlora for a 4-bit base"
            )
        notes.append(f"the checkpoint is in {method}; figures are of the model in 16 bits, as it is made dense to be trained")
    kind = config.text("model_type")
    text = TEXT_MODELS.get(kind) or BESIDE_TOWERS.get(kind)
    if text is not None and config.has("text_config"):
        inner = config.section("text_config")
        given = {key: config.mapping[key] for key in ("tie_word_embeddings",) if key in config.mapping}
        config = ConfigReader({**given, **inner.mapping, "model_type": text}, inner.origin)
        notes.append(
            "figures are of the text model alone, as AutoModelForCausalLM loads it"
            if kind in TEXT_MODELS
            else "figures are of the text model alone; AutoModelForCausalLM loads its vision and audio towers beside it, which "
            "lie in memory and which text does not train"
        )
    same = SAME_SHAPE.get(config.text("model_type"))
    if same is not None:
        notes.append(f"its own code is not part of transformers; it is planned as {same}, whose shape it has")
        if config.text("model_type") == "mimo" and config.has("num_nextn_predict_layers"):
            notes.append("its layers for the prediction of further tokens, which fine-tuning as such does not load, are left out")
        config = as_known(config)
    return config, "; ".join(notes)


def as_known(config: ConfigReader) -> ConfigReader:
    """The config under the name that transformers has for its shape."""
    same = SAME_SHAPE.get(config.text("model_type"))
    return config if same is None else ConfigReader({**config.mapping, "model_type": same}, config.origin, config.asked)

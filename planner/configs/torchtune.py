"""torchtune's recipe configs: components by their dotted names, and values that refer to others.

Keys are those of torchtune 0.6.1 (recipes/*.py and recipes/configs). Nothing is imported: `_component_` is looked up in tables.
"""

import re
from typing import Any

from tuneplan.planner.configs.adapter_keys import Adapter, note_adapter
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, version, words
from tuneplan.planner.configs.torchtune_models import ANY_SIZE, BUILDERS, DIMENSIONS, FORMS, PREFIX, of_dimensions
from tuneplan.planner.errors import InputError
from tuneplan.planner.secrets import shown
from tuneplan.planner.yaml_file import YamlFile

NAME = "torchtune"
DEEPEST_REFERENCE = 10
_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.\[\]]+)\}")
MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
MLP = ("gate_proj", "up_proj", "down_proj")
LOSSES = {
    "torchtune.modules.loss.LinearCrossEntropyLoss": "chunked",
    "torchtune.modules.loss.CEWithChunkedOutputLoss": "chunked",
    "torch.nn.CrossEntropyLoss": "eager",
}
OPTIMIZERS = {
    "torch.optim.AdamW": "adamw",
    "torch.optim.Adam": "adamw",
    "torch.optim.SGD": "sgd",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit",
}
OBJECTIVES = {
    "DPOLoss": "dpo",
    "RSOLoss": "dpo",
    "SimPOLoss": "dpo",
    "PPOLoss": "ppo",
    "GRPOLoss": "grpo",
    "GRPOSimpleLoss": "grpo",
}

TABLE = Table(
    {
        "model": "model and method",
        "tokenizer": "tokens of a sequence",
        "dataset": "packed sequences",
        "batch_size": "micro-batch size",
        "gradient_accumulation_steps": "micro-batches of an update",
        "optimizer": "optimizer",
        "loss": "loss",
        "clip_grad_norm": "clipping of gradients",
        "dtype": "dtype of weights and activations",
        "enable_activation_checkpointing": "gradient checkpointing",
        "epochs": "passes over the data",
        "max_steps_per_epoch": "updates",
        "fsdp_cpu_offload": "weights in host memory",
        "fsdp_reshard_after_forward": "what GPUs split",
        "tensor_parallel_dim": "tensor parallelism",
        "checkpointer": "where the model is",
    },
    {
        "logging": words("metric_logger log_every_n_steps log_peak_memory_stats log_level profiler output_dir"),
        "saving": words(
            "resume_from_checkpoint save_adapter_weights_only save_every_n_epochs enable_async_checkpointing low_cpu_ram"
        ),
        "numbers of the update and its schedule": words("lr_scheduler"),
        "which data": words("seed shuffle collate_fn dataloader limit tasks include_path"),
        "where and how it runs": words("device cudnn_deterministic_mode tensor_parallel_plan"),
        "generation": words("prompt max_new_tokens temperature top_k enable_kv_cache quantizer stop_token_ids"),
        "numbers of the objective": words(
            """gamma lmbda kd_ratio kl_coeff penalise_no_eos reward_penalty min_response_length whiten_rewards"""
        ),
    },
    {
        "torch.compile fuses ops and keeps other tensors": words("compile"),
        "activations that are moved to the host": words("enable_activation_offloading"),
        "an update inside the backward": words("optimizer_in_bwd"),
        "checkpointing of every so many layers": words("ac_mode ac_option"),
        "modules that are split apart": words("custom_sharded_layers memory_efficient_fsdp_wrap fsdp"),
        "quantization-aware training": words("fake_quant_after_n_steps"),
        "layers that are skipped": words("layer_dropout early_exit_loss"),
        "more models than the trained one": words(
            """teacher_model teacher_checkpointer kd_loss ref_checkpointer ref_policy_checkpointer reward_and_value_model
            reward_checkpointer value_checkpointer policy_model"""
        ),
        "rollouts": words(
            "ppo_batch_size ppo_epochs forward_batch_size max_generated_tokens grpo_samples num_steps max_seq_length"
        ),
        "several data sets": words("datasets"),
    },
    {},
    {"enable_kv_cache": True, "tensor_parallel_dim": 1},
)


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    data = filled_in(file)
    section = Section(file, (), data, TABLE, facts, "torchtune's recipes ignore it", numbers_in_text=True)
    facts.stack(f"torchtune {version('torchtune')}")
    facts.warn("torchtune has model code of its own; figures are those of transformers' code with torchtune's settings")
    _model(section)
    section.raw("checkpointer")
    section.fact("micro_batch_size", section.integer("batch_size"), "batch_size")
    section.fact(
        "gradient_accumulation_steps", section.integer("gradient_accumulation_steps", 1), "gradient_accumulation_steps", NAME
    )
    section.fact("max_grad_norm", section.number("clip_grad_norm", 0.0), "clip_grad_norm", NAME)
    dtype = section.choice("dtype", ("bf16", "fp16", "fp32"))
    if dtype is not None:
        section.fact("load_dtype", dtype, "dtype")
    facts.set("precision", "pure", f"{NAME} computes in the weights' dtype")
    on = section.flag("enable_activation_checkpointing")
    section.fact("gradient_checkpointing", "non-reentrant" if on else "off", "enable_activation_checkpointing", NAME)
    _lengths(section)
    _components(section)
    section.fact("epochs", section.number("epochs"), "epochs")
    updates = section.integer("max_steps_per_epoch")
    if updates is not None:
        section.fact("max_steps", updates * int(section.number("epochs", 1) or 1), "max_steps_per_epoch")
    if section.flag("fsdp_cpu_offload"):
        facts.set("offload_params", True, section.source("fsdp_cpu_offload"))
    shards = section.flag("fsdp_reshard_after_forward", True)
    facts.set("zero_stage", 3 if shards else 2, f"{NAME}'s distributed recipes", explicit=False)
    degree = section.integer("tensor_parallel_dim", 1)
    if degree and degree > 1:
        facts.set("tensor_parallel", degree, section.source("tensor_parallel_dim"))
    section.finish()


def filled_in(file: YamlFile) -> dict[str, Any]:
    """The top of the file with `${other.key}` replaced; what no key of the file answers is left as it is."""

    def value(item: Any, depth: int) -> Any:
        if isinstance(item, dict):
            return {key: value(inner, depth) for key, inner in item.items()}
        if isinstance(item, list):
            return [value(inner, depth) for inner in item]
        if not isinstance(item, str) or "${" not in item or depth > DEEPEST_REFERENCE:
            return item
        whole = _REFERENCE.fullmatch(item)
        if whole:
            found = _look_up(file.data, whole.group(1))
            return item if found is None else value(found, depth + 1) if isinstance(found, str) else found
        return _REFERENCE.sub(lambda match: _text(file.data, match), item)[:1000]

    result: dict[str, Any] = value(file.data, 0)
    return result


def _look_up(data: Any, name: str) -> Any:
    for step in name.split("."):
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _text(data: Any, match: "re.Match[str]") -> str:
    found = _look_up(data, match.group(1))
    return str(found) if isinstance(found, str | int | float) else match.group()


def _component(section: Section, key: str) -> tuple[str, dict[str, Any]]:
    """The dotted name of a component, and its arguments."""
    data = section.mapping(key) or {}
    name = data.get("_component_", "")
    if not isinstance(name, str):
        raise section.error(key, "_component_ is no dotted name. Write such as torchtune.models.llama3_1.lora_llama3_1_8b.")
    return name, data


def _model(section: Section) -> None:
    facts = section.facts
    name, arguments = _component(section, "model")
    package, _, builder = name.removeprefix(PREFIX).rpartition(".")
    form = next((form for form in FORMS if builder.startswith(form)), "")
    plain = f"{package}.{builder.removeprefix(form)}"
    sized = package in ANY_SIZE and plain == f"{package}.{package}"
    if not name.startswith(PREFIX) or not (sized or plain in BUILDERS):
        raise section.error("model", f"the builder {shown(name)} is not known. Known are {', '.join(sorted(BUILDERS))[:300]}.")
    model = of_dimensions(package, arguments) if sized else BUILDERS[plain]
    if model is not None:
        facts.set("model", model, section.source("model"))
    else:
        section.warn("model", "no model of the catalog has these dimensions; name it with --model")
    if not form:
        facts.set("adapter", None, section.source("model"))
        return
    below = Section(
        section.file, ("model",), arguments,
        Table(dict.fromkeys(words("lora_attn_modules apply_lora_to_mlp lora_rank lora_alpha lora_dropout use_dora quantize_base"),
                            "method") | dict.fromkeys((*DIMENSIONS, "tie_word_embeddings"), "model"),
              {"the builder": ("_component_",), "the model's own": words("max_seq_len norm_eps rope_base scale_factor")},
              {"LoRA on the head": ("apply_lora_to_output",)}), facts, numbers_in_text=True,
    )  # fmt: skip
    targets = [MODULES.get(module, module) for module in below.names("lora_attn_modules") or ()]
    if below.flag("apply_lora_to_mlp"):
        targets += MLP
    if not targets:
        raise section.error("model", "LoRA adapts nothing: lora_attn_modules is missing. Name modules such as q_proj, v_proj.")
    if form == "qlora_" or below.flag("quantize_base"):
        facts.set("quantized", {"quant_type": "nf4", "double_quant": True, "prepare_kbit": False}, section.source("model"))
    options: dict[str, Any] = {
        "r": below.integer("lora_rank", 8),
        "lora_alpha": below.number("lora_alpha", 16),
        "lora_dropout": below.number("lora_dropout", 0.0),
        "use_dora": below.flag("use_dora"),
        "autocast_adapter_dtype": False,
    }
    note_adapter(section, Adapter("lora", options, tuple(sorted(targets))), "model")
    below.finish()


def _lengths(section: Section) -> None:
    facts = section.facts
    tokenizer = section.mapping("tokenizer") or {}
    dataset = section.mapping("dataset") or {}
    length = tokenizer.get("max_seq_len", dataset.get("max_seq_len"))
    if isinstance(length, int) and not isinstance(length, bool) and length > 1:
        facts.set("seq_len", length, section.source("tokenizer"))
    elif length is not None:
        raise section.error("tokenizer", f"max_seq_len: {shown(length)} is no length. Write such as 2048, or null.")
    packed = dataset.get("packed", False) is True
    facts.set("packing", packed, section.source("dataset"))
    facts.set("padded", False, f"{NAME} passes no mask for padding", explicit=False)
    facts.set("attention", "sdpa", f"{NAME}'s attention", explicit=False)
    if packed:
        section.warn("dataset", "the mask of packed sequences is not modelled; figures are those of causal attention")


def _components(section: Section) -> None:
    facts = section.facts
    name, arguments = _component(section, "loss")
    short = name.rpartition(".")[2]
    if short in OBJECTIVES:
        facts.set("objective", OBJECTIVES[short], section.source("loss"))
    elif name in LOSSES:
        facts.set("loss", LOSSES[name], section.source("loss"))
        if short == "CEWithChunkedOutputLoss":
            section.warn("loss", "counted as LinearCrossEntropyLoss; the older loss also keeps the 16-bit logits")
    elif name:
        section.warn("loss", "this loss is not modelled; figures are those of cross-entropy")
    name, arguments = _component(section, "optimizer")
    found = OPTIMIZERS.get(name)
    if found == "adamw":
        found = (
            "adamw_fused" if arguments.get("fused") is True else "adamw_forloop" if arguments.get("foreach") is False else "adamw"
        )
    elif found == "sgd" and arguments.get("momentum"):
        found = "sgd_momentum"
    elif name and found is None:
        section.warn("optimizer", "this optimizer is not modelled; figures are those of adamw_fused")
    if name:
        facts.set("optimizer", found or "adamw_fused", section.source("optimizer"))
    elif "optimizer" not in section:
        raise InputError(f"{section.file.name}: the key 'optimizer' is missing. Give the config of a training recipe.")

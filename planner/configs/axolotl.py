"""Axolotl's YAML: its own words for what the Trainer, PEFT and accelerate do.

Keys and defaults are those of axolotl 0.19 (utils/schemas/*.py). What it does with them: utils/config/__init__.py (precision,
checkpointing), loaders/model.py and loaders/adapter.py (dtypes, LoRA), core/builders/base.py (the Trainer's arguments).
"""

from typing import Any

from tuneplan.planner.configs.adapter_keys import Adapter, note_adapter, read_targets
from tuneplan.planner.configs.axolotl_keys import AXOLOTL
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.optimizer_names import read_optimizer
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.sharding_keys import fsdp_section, read_fsdp_options, set_fsdp
from tuneplan.planner.configs.table import Table, defaults, version
from tuneplan.planner.configs.training_arguments import read_deepspeed
from tuneplan.planner.configs.trl import note_attention
from tuneplan.planner.yaml_file import YamlFile

NAME = "axolotl"
OWN_OPTIMIZERS = (
    "optimi_adamw", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8", "adopt_adamw", "came_pytorch", "muon", "dion", "sinkgd",
    "flash_adamw", "flash_adam", "flash_sgd", "flash_sgdw", "flash_lion", "q_galore_adamw8bit", "lion_pytorch", "apollo_adamw",
)  # fmt: skip
FLAGS = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "xformers_attention": "xformers",
    "flex_attention": "flex_attention",
    "sage_attention": "sage_attention",
}
RL = ("dpo", "gdpo", "grpo", "ipo", "orpo", "kto", "simpo", "ebft")


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    own = {
        **AXOLOTL.defaults,
        **{k: v for k, v in defaults("axolotl", "AxolotlInputConfig").items() if k not in AXOLOTL.defaults},
    }
    table = Table(AXOLOTL.used, AXOLOTL.irrelevant, AXOLOTL.not_modelled, AXOLOTL.renamed, own)
    section = Section(file, (), file.data, table, facts, "axolotl ignores it", numbers_in_text=True)
    facts.stack(f"axolotl {version('axolotl')}")
    section.fact("model", section.text("base_model"), "base_model")
    objective = section.choice("rl", RL)
    reward = section.flag("reward_model")
    section.fact(
        "objective", objective or ("reward" if reward else "sft"), "rl" if objective or not reward else "reward_model", NAME
    )
    _precision(section)
    _batch(section)
    _attention(section)
    _checkpointing(section, objective is None)
    read_optimizer(section, "optimizer", "adamw_torch_fused", NAME, OWN_OPTIMIZERS)
    _loss(section)
    _method(section)
    _sharding(section)
    section.finish()


def _precision(section: Section) -> None:
    """`bf16: auto` is bf16 on cards that have it; the weights are loaded in the dtype that autocast runs in."""
    given = section.raw("bf16", "auto")
    if given not in (True, False, "auto", "full"):
        raise section.error("bf16", "the value is none of true, false, auto and full. Write one of them.")
    fp16, half = section.flag("fp16"), section.flag("float16")
    bf16 = given in (True, "full") or (given == "auto" and not fp16)
    bfloat = section.flag("bfloat16")
    section.flag("float32")
    if bf16 or bfloat:
        section.fact("load_dtype", "bf16", "bf16", NAME)
        section.fact("mixed_precision", "no" if given == "full" else "bf16", "bf16", NAME)
        return
    eight = section.flag("load_in_8bit")
    section.fact("load_dtype", "fp16" if fp16 or half or eight else "fp32", "fp16", NAME)
    section.fact("mixed_precision", "fp16" if fp16 else "no", "fp16", NAME)


def _batch(section: Section) -> None:
    section.fact("micro_batch_size", section.integer("micro_batch_size", 1), "micro_batch_size", NAME)
    steps = section.integer("gradient_accumulation_steps", 1)
    whole = section.integer("batch_size")
    if whole is not None and "gradient_accumulation_steps" not in section:
        section.fact("gradient_accumulation_steps", max(1, whole // (section.integer("micro_batch_size", 1) or 1)), "batch_size")
    else:
        section.fact("gradient_accumulation_steps", steps, "gradient_accumulation_steps", NAME)
    section.fact("seq_len", section.integer("sequence_len", 512, least=2), "sequence_len", NAME)
    norm = section.number("max_grad_norm", 1.0)
    section.fact("max_grad_norm", max(0.0, norm or 0.0), "max_grad_norm", NAME)
    section.fact("epochs", section.number("num_epochs", 1.0), "num_epochs", NAME)
    updates = section.integer("max_steps", -1, least=-1)
    if updates is not None and updates > 0:
        section.fact("max_steps", updates, "max_steps")
    section.fact("empty_cache_steps", section.integer("torch_empty_cache_steps", 0, least=0), "torch_empty_cache_steps", NAME)


def _attention(section: Section) -> None:
    facts = section.facts
    facts.set("attention", "sdpa", "transformers' default", explicit=False)
    name = section.text("attn_implementation")
    if name is not None:
        note_attention(section, "attn_implementation", name)
    for flag, implementation in FLAGS.items():
        if section.flag(flag) and name is None:
            note_attention(section, flag, implementation)
    packed = section.flag("sample_packing")
    filled = section.flag("pad_to_sequence_len", packed)
    masked = not packed or facts.get("attention") == "sdpa"
    facts.set("padded", masked, section.source("sample_packing") if packed else f"default of {NAME}", packed)
    facts.set("packing", packed, section.source("sample_packing") if packed else f"default of {NAME}", packed)
    if packed and facts.get("attention") != "flash":
        section.warn("sample_packing", "packing without FlashAttention needs a mask for each sequence")
    if packed and not filled:
        section.warn("pad_to_sequence_len", f"batches are of {section.facts.get('seq_len')} tokens at most")


def _checkpointing(section: Section, supervised: bool) -> None:
    given = section.raw("gradient_checkpointing", False)
    on = given is True or (isinstance(given, str) and given.lower() not in ("false", "none"))
    if on and given is not True:
        section.warn("gradient_checkpointing", "offloaded checkpoints are not modelled; they are kept on the GPU")
    options: dict[str, Any] = section.mapping("gradient_checkpointing_kwargs") or {}
    kind = options.get("use_reentrant", supervised and "gradient_checkpointing_kwargs" not in section)
    if not isinstance(kind, bool):
        raise section.error("gradient_checkpointing_kwargs", "use_reentrant is neither true nor false. Write one of them.")
    section.fact(
        "gradient_checkpointing", ("reentrant" if kind else "non-reentrant") if on else "off", "gradient_checkpointing", NAME
    )


def _loss(section: Section) -> None:
    for key, loss in (
        ("liger_fused_linear_cross_entropy", "liger"),
        ("cut_cross_entropy", "liger"),
        ("chunked_cross_entropy", "chunked"),
    ):
        if section.flag(key):
            section.facts.set("loss", loss, section.source(key))
            if key == "cut_cross_entropy":
                section.facts.warn(
                    f"{section.source(key)}: cut cross-entropy is counted as Liger's fused loss, whose buffer is larger"
                )


def _method(section: Section) -> None:
    facts = section.facts
    name = section.choice("adapter", ("lora", "qlora", "llama-adapter", "none"), "none")
    four, eight = section.flag("load_in_4bit"), section.flag("load_in_8bit")
    if name == "llama-adapter":
        raise section.error("adapter", "llama-adapter is no adapter of present axolotl. Write lora or qlora.")
    if name == "qlora" and not four:
        raise section.error("adapter", "qlora needs load_in_4bit: true, and axolotl refuses it without. Add it, or write lora.")
    quant: dict[str, Any] = section.mapping("bnb_config_kwargs") or {}
    if name != "none" and (four or eight):
        quantized: dict[str, Any] = {"quant_type": "int8", "prepare_kbit": False}
        if four:
            quantized = {
                "quant_type": str(quant.get("bnb_4bit_quant_type", "nf4")),
                "double_quant": bool(quant.get("bnb_4bit_use_double_quant", True)),
                "prepare_kbit": False,
            }
        facts.set("quantized", quantized, section.source("load_in_4bit" if four else "load_in_8bit"))
    if name == "none":
        layers = section.integer("lisa_n_layers")
        if layers is not None:
            note_adapter(section, Adapter("lisa", {"active_layers": layers}), "lisa_n_layers")
            return
        facts.set(
            "adapter", None, section.source("adapter") if "adapter" in section else f"default of {NAME}", "adapter" in section
        )
        if facts.get("attention") != "flash" and facts.get("load_dtype") != "fp32":
            facts.warn("axolotl keeps norms and embeddings in fp32 here; figures have them in 16 bits")
        return
    targets = read_targets(section, "lora_target_modules")
    if section.flag("lora_target_linear"):
        targets = ("all-linear",)
    layers_chosen = section.raw("peft_layers_to_transform")
    options: dict[str, Any] = {
        "r": section.integer("lora_r", 8),
        "lora_alpha": section.number("lora_alpha", 8),
        "lora_dropout": section.number("lora_dropout", 0.0),
        "use_dora": section.flag("peft_use_dora"),
        "use_rslora": section.flag("peft_use_rslora"),
        "autocast_adapter_dtype": section.flag("peft_autocast_adapter_dtype", True),
    }
    if layers_chosen is not None:
        chosen = layers_chosen if isinstance(layers_chosen, list) else [layers_chosen]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in chosen):
            raise section.error("peft_layers_to_transform", "not a list of whole numbers. Write such as [0, 1, 2].")
        options["layers_to_transform"] = tuple(chosen)
    saved = section.names("lora_modules_to_save") or ()
    note_adapter(section, Adapter("lora", options, targets, saved), "adapter")


def _sharding(section: Section) -> None:
    facts = section.facts
    ranks = section.integer("world_size", -1, least=-1)
    if ranks is not None and ranks > 0:
        facts.set("data_parallel", ranks, section.source("world_size"))
    shards, copies = section.integer("dp_shard_size"), section.integer("dp_replicate_size", 1)
    if shards is not None:
        facts.set("data_shard", shards, section.source("dp_shard_size"))
        facts.set("data_replicate", copies or 1, section.source("dp_replicate_size"), "dp_replicate_size" in section)
    for key, fact in (
        ("tensor_parallel_size", "tensor_parallel"),
        ("context_parallel_size", "context_parallel"),
        ("sequence_parallel_degree", "context_parallel"),
    ):
        degree = section.integer(key, 1)
        if degree and degree > 1:
            facts.set(fact, degree, section.source(key))
    read_deepspeed(section, "deepspeed")
    below = fsdp_section(section, "fsdp_config")
    given = section.raw("fsdp")
    if given or below is not None:
        words = [str(word) for word in given] if isinstance(given, list) else str(given or "").split()
        set_fsdp(
            facts, section.source("fsdp" if given else "fsdp_config"), 2 if "shard_grad_op" in words else None, "offload" in words
        )
    if below is not None:
        read_fsdp_options(below, section.integer("fsdp_version", 1) or 1, None)
        below.finish()
    else:
        section.integer("fsdp_version", 1)

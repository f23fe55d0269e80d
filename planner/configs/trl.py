"""Files of TRL's scripts (`trl sft --config FILE`): a trainer's config and ModelConfig, ScriptArguments, DatasetMixtureConfig.

Keys and defaults are those of trl 1.16 (trainer/*_config.py, trainer/model_config.py); names of earlier versions are known too.
"""

from typing import Any

from tuneplan.planner.configs import training_arguments as hf
from tuneplan.planner.configs.adapter_keys import Adapter, note_adapter, read_targets
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, defaults, joined, version, words
from tuneplan.planner.yaml_file import YamlFile

CLASSES = {
    "trl-sft": "SFTConfig",
    "trl-dpo": "DPOConfig",
    "trl-reward": "RewardConfig",
    "trl-grpo": "GRPOConfig",
    "trl-kto": "KTOConfig",
    "trl-rloo": "RLOOConfig",
}
ROLLOUTS = ("trl-grpo", "trl-rloo")
DTYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "auto": "auto",
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
}
ATTENTIONS = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "flash_attention_4": "flash",
}

MODEL_USED = {
    "model_name_or_path": "model",
    "dtype": "dtype of the loaded weights",
    "attn_implementation": "attention",
    "use_peft": "LoRA or full fine-tuning",
    "lora_r": "LoRA's rank",
    "lora_alpha": "LoRA's scaling",
    "lora_dropout": "LoRA's dropout",
    "lora_target_modules": "LoRA's modules",
    "lora_modules_to_save": "modules that are trained whole",
    "use_rslora": "LoRA's scaling",
    "use_dora": "DoRA",
    "load_in_8bit": "8-bit base",
    "load_in_4bit": "4-bit base",
    "bnb_4bit_quant_type": "4-bit format",
    "use_bnb_nested_quant": "double quantization",
    "model_init_kwargs": "dtype and attention of the loaded model",
    "max_length": "tokens of a sequence",
    "packing": "packed sequences",
    "packing_strategy": "packed sequences",
    "padding_free": "sequences without padding",
    "gradient_checkpointing_use_reentrant": "kind of gradient checkpointing",
    "max_completion_length": "tokens of a completion",
    "num_generations": "completions of a prompt",
    "beta": "whether there is a reference model",
    "loss_type": "loss of the objective",
    "precompute_ref_log_probs": "whether the reference model stays",
    "max_prompt_length": "tokens of a prompt",
    "model_loss": "the loss of transformers' model (exported scripts)",
    "prepare_kbit": "PEFT's preparation of a quantized base (exported scripts)",
    "autocast_adapter_dtype": "adapters in fp32 (exported scripts)",
    "adapter_config": "PEFT's own file, which is read when it is given too (exported scripts)",
}
MODEL_IRRELEVANT = {
    "which data": words(
        """dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming datasets streaming
        test_split_size dataset_text_field dataset_kwargs dataset_num_proc dataset_batch_size chars_per_token num_of_sequences
        shuffle_dataset truncation_mode eos_token pad_token padding_value label_pad_token_id chat_template_path
        chat_template_kwargs config completion_only_loss assistant_only_loss eval_packing num_generations_eval tools
        max_target_length is_encoder_decoder"""
    ),
    "which revision of the model": words("model_revision trust_remote_code lora_task_type"),
    "numbers of the objective": words(
        """loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing use_weighting discopop_tau
        ref_model_mixup_alpha ref_model_sync_steps disable_dropout center_rewards_coefficient temperature top_p top_k min_p
        repetition_penalty epsilon epsilon_high delta reward_weights scale_rewards mask_truncated_completions
        importance_sampling_level multi_objective_aggregation desirable_weight undesirable_weight normalize_advantages
        reward_clip_range top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
        entropy_coef_delta entropy_target sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg
        vespo_lambda_neg off_policy_mask_threshold use_bias_correction_kl vllm_importance_sampling_correction
        vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
        vllm_importance_sampling_cap rpo_alpha kl_coef cliprange whiten_rewards normalize_reward normalize_advantage
        missing_eos_penalty token_level_kl reference_free"""
    ),
    "logging": words(
        """log_completions log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo
        wandb_log_unique_prompts exp_name ignore_bias_buffers env"""
    ),
    "how a server of vLLM is reached": words(
        """vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_model_impl
        vllm_structured_outputs_regex vllm_guided_decoding_regex"""
    ),
}
MODEL_NOT_MODELLED = {
    "activations that are moved to the host": words("activation_offloading"),
    "padding of every batch to a multiple": words("pad_to_multiple_of"),
    "experts that LoRA adapts as parameters": words("lora_target_parameters"),
    "4-bit weights stored in another dtype than uint8": words("bnb_4bit_quant_storage"),
    "the auxiliary loss of mixtures of experts": words("router_aux_loss_coef"),
    "a reference model that follows the trained one": words("sync_ref_model ref_model_init_kwargs force_use_ref_model"),
    "adapters as policy and reference": words("model_adapter_name ref_adapter_name base_model_attribute_name"),
    "generation inside training": words(
        """use_vllm vllm_mode vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
        vllm_enable_sleep_mode generation_kwargs cache_implementation use_transformers_paged
        use_transformers_continuous_batching transformers_continuous_batching_config ds3_gather_for_generation
        max_tool_calling_iterations generate_during_eval"""
    ),
    "several updates on the same completions": words("num_iterations steps_per_generation generation_batch_size"),
    "the head and its logits in fp32": words("cast_lm_head_to_fp32"),
    "a loss of Liger for preferences": words("use_liger_loss use_logits_to_keep"),
    "batch of the reference model's pass": words("precompute_ref_batch_size"),
    "counts of an earlier RLOO trainer": words(
        """batch_size local_batch_size local_mini_batch_size local_rollout_forward_batch_size micro_batch_size mini_batch_size
        num_mini_batches num_ppo_epochs num_sample_generations num_total_batches response_length reward_model_path rloo_k
        sft_model_path stop_token stop_token_id total_episodes world_size"""
    ),
}
RENAMED = {"max_seq_length": "max_length", "torch_dtype": "dtype"}
UNKNOWN = "TRL's scripts ignore it"


def table(kind: str) -> Table:
    """The keys of a format of CLASSES, those of its trainer before those of the others."""
    own = {
        **hf.TABLE.defaults, **defaults("trl", "ScriptArguments"), **defaults("trl", "DatasetMixtureConfig"),
        **defaults("trl", "ModelConfig"), **defaults("trl", CLASSES[kind]),
    }  # fmt: skip
    return Table(
        {**hf.USED, **MODEL_USED},
        joined(hf.IRRELEVANT, MODEL_IRRELEVANT),
        joined(hf.NOT_MODELLED, MODEL_NOT_MODELLED),
        {**hf.RENAMED, **RENAMED},
        own,
    )


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what a file of a TRL script says. Raises InputError with file and line."""
    name = CLASSES[kind]
    section = Section(file, (), file.data, table(kind), facts, UNKNOWN, numbers_in_text=True)
    facts.stack(f"trl {version('trl')}")
    facts.stack(f"transformers {version('transformers')}")
    facts.set("objective", kind.removeprefix("trl-"), file.name, explicit=False)
    model = section.text("model_name_or_path")
    if model is not None:
        section.fact("model", model, "model_name_or_path")
    _loading(section, name)
    hf.read_training_arguments(section, defaults("trl", name), name)
    if "gradient_checkpointing_use_reentrant" in section and facts.get("gradient_checkpointing") != "off":
        kind_of = "reentrant" if section.flag("gradient_checkpointing_use_reentrant") else "non-reentrant"
        facts.set("gradient_checkpointing", kind_of, section.source("gradient_checkpointing_use_reentrant"))
    _lengths(section, kind, name)
    _method(section, name)
    if kind == "trl-sft":
        loss = "liger" if section.text("loss_type", "nll") != "dft" else "eager"
        facts.set("loss", "trl" if loss == "liger" else loss, f"default of {name}", explicit=False)
        if "use_liger_kernel" in section and section.flag("use_liger_kernel"):
            facts.found.pop("loss")  # the trainer switches Liger's own loss off and keeps its fused head
            facts.set("loss", "trl", f"default of {name}", explicit=False)
        if section.flag("model_loss"):
            facts.set("loss", "eager", section.source("model_loss"))
    section.finish()


def _loading(section: Section, name: str) -> None:
    """In which dtype and with which attention the script loads the model; model_init_kwargs win over ModelConfig."""
    inner = section.mapping("model_init_kwargs") or {}
    below = Section(
        section.file, (*section.path, "model_init_kwargs"), inner,
        Table({"dtype": "", "attn_implementation": ""}, {}, {}, {"torch_dtype": "dtype"}), section.facts,
    )  # fmt: skip
    for place in (section, below):
        dtype = place.choice("dtype", DTYPES, "float32" if place is section else None)
        if dtype is not None:
            place.fact("load_dtype", DTYPES[dtype], "dtype", name)
        attention = place.text("attn_implementation")
        if attention is not None:
            note_attention(place, "attn_implementation", attention)
    for key in sorted(set(inner) - {"dtype", "torch_dtype", "attn_implementation", "revision", "trust_remote_code", "use_cache",
                                    "device_map", "low_cpu_mem_usage", "token"}):  # fmt: skip
        section.warn("model_init_kwargs", f"{key[:40]} is not modelled")
    section.facts.set("attention", "sdpa", "transformers' default", explicit=False)


def note_attention(section: Section, key: str, name: str) -> None:
    """The fact "attention" of transformers' name for an implementation."""
    short = name.lower()
    if short in ATTENTIONS:
        section.facts.set("attention", ATTENTIONS[short], section.source(key))
    elif "flash" in short:
        section.facts.set("attention", "flash", section.source(key))
    elif short in ("flex_attention", "paged_attention", "sage_attention", "xformers"):
        section.facts.set("attention", "flash", section.source(key))
        section.facts.warn(f"{section.source(key)}: {short} is not modelled; figures are those of FlashAttention")
    else:
        raise section.error(key, f"unknown attention. Known are {', '.join(ATTENTIONS)}, flex_attention.")


def _lengths(section: Section, kind: str, name: str) -> None:
    facts = section.facts
    if kind in ROLLOUTS:
        prompt = section.integer("max_prompt_length", 512)
        completion = section.integer("max_completion_length", 512)
        facts.objective_options.update(
            max_prompt_length=prompt, max_completion_length=completion,
            num_generations=section.integer("num_generations", 8 if kind == "trl-grpo" else 2),
            beta=section.number("beta", 0.0 if kind == "trl-grpo" else 0.05),
        )  # fmt: skip
        if "max_prompt_length" not in section:
            facts.warn(f"{name} does not limit prompts; {prompt} tokens are taken (--seq-len for prompt and completion)")
        facts.set(
            "seq_len",
            (prompt or 0) + (completion or 0),
            section.source("max_completion_length"),
            "max_completion_length" in section,
        )
        facts.set("padded", True, f"default of {name}", explicit=False)
        return
    section.fact("seq_len", section.integer("max_length", 1024, least=2), "max_length", name)
    if kind != "trl-sft":
        facts.objective_options.update(beta=section.number("beta", 0.1), loss_type=section.raw("loss_type"),
                                       precompute_ref_log_probs=section.flag("precompute_ref_log_probs"))  # fmt: skip
    packed = section.flag("packing")
    strategy = section.text("packing_strategy", "bfd")
    flat = section.flag("padding_free") or (packed and strategy != "wrapped")
    key = "packing" if packed else "padding_free"
    facts.set("padded", not (packed or flat), section.source(key) if packed or flat else f"default of {name}", packed or flat)
    facts.set("packing_strategy", strategy, section.source("packing_strategy"), "packing_strategy" in section)
    facts.set("packing", packed, section.source("packing") if packed else f"default of {name}", packed)
    if flat and facts.get("attention") != "flash":
        facts.warn(
            f"{section.source(key)}: packing without FlashAttention needs a mask of the whole batch, which is not modelled"
        )


def _method(section: Section, name: str) -> None:
    quantized: dict[str, Any] | None = None
    if section.flag("load_in_4bit"):
        quantized = {
            "quant_type": section.choice("bnb_4bit_quant_type", ("nf4", "fp4"), "nf4"),
            "double_quant": section.flag("use_bnb_nested_quant"),
            "prepare_kbit": section.flag("prepare_kbit"),
        }
    elif section.flag("load_in_8bit"):
        quantized = {"quant_type": "int8", "prepare_kbit": section.flag("prepare_kbit")}
    if quantized is not None:
        key = "load_in_4bit" if section.flag("load_in_4bit") else "load_in_8bit"
        section.facts.set("quantized", quantized, section.source(key))
    if not section.flag("use_peft"):
        section.facts.set("adapter", None, section.source("use_peft") if "use_peft" in section else f"default of {name}",
                          explicit="use_peft" in section)  # fmt: skip
        return
    adapter = Adapter(
        "lora",
        {
            "r": section.integer("lora_r", 16),
            "lora_alpha": section.number("lora_alpha", 32),
            "lora_dropout": section.number("lora_dropout", 0.05),
            "use_rslora": section.flag("use_rslora"),
            "use_dora": section.flag("use_dora"),
            "autocast_adapter_dtype": section.flag("autocast_adapter_dtype", quantized is None),
        },
        targets=read_targets(section, "lora_target_modules"),
        modules_to_save=section.names("lora_modules_to_save") or (),
    )
    note_adapter(section, adapter, "use_peft")

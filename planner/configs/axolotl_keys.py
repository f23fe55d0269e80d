"""Axolotl's keys: what each means for memory, time and cost (axolotl 0.19, utils/schemas/ and integrations/*/args.py)."""

from tuneplan.planner.configs.table import Table, words

_LOGGING = words(
    """use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch wandb_log_model use_mlflow
    mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace
    comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config use_trackio trackio_project_name
    trackio_run_name trackio_space_id use_otel_metrics otel_metrics_host otel_metrics_port gradio_title gradio_share
    gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature use_tensorboard profiler_steps
    profiler_steps_start include_tokens_per_second include_tkps logging_steps loss_watchdog_threshold loss_watchdog_patience
    generate_samples num_generation_samples generation_max_new_tokens generation_temperature generation_top_p generation_top_k
    generation_prompt_ratio generation_do_sample use_swanlab swanlab_project swanlab_experiment_name swanlab_description
    swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model swanlab_lark_webhook_url swanlab_lark_secret
    swanlab_web_host swanlab_api_host swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer"""
)
_DATA = words(
    """datasets test_datasets shuffle_merged_datasets shuffle_before_merging_datasets dataset_prepared_path dataset_shard_num
    dataset_shard_idx skip_prepare_dataset num_dataset_shards_to_save pretraining_dataset dataset_processes dataset_num_proc
    dataset_exact_deduplication dataset_keep_in_memory dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor
    dataloader_drop_last accelerator_config remove_unused_columns push_dataset_to_hub train_on_inputs group_by_length
    excess_length_strategy min_sample_len max_prompt_len sample_packing_group_size sample_packing_bin_size
    sample_packing_sequentially sample_packing_mp_start_method curriculum_sampling multipack_real_batches
    pretrain_multipack_buffer_size pretrain_multipack_attn pretraining_sample_concatenation streaming
    streaming_multipack_buffer_size chat_template chat_template_jinja chat_template_kwargs eot_tokens default_system_message
    fix_untrained_tokens is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens sample_packing_eff_est
    val_set_size seed special_tokens role_boundaries pose_split_on_token_ids pose_max_context_len pose_num_chunks
    image_size image_resize_algorithm bench_dataset bench_split"""
)
_LOADING = words(
    """base_model_config cls_model_config tokenizer_config tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common
    tokenizer_type processor_type processor_kwargs tokenizer_save_jinja_files trust_remote_code
    experimental_skip_move_to_device type_of_model model_type revision_of_model model_revision hf_use_auth_token
    is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model low_cpu_mem_usage
    mean_resizing_embeddings lora_on_cpu qlora_sharded_model_loading axolotl_config_path strict device device_map plugins"""
)
_SAVING = words(
    """output_dir hub_model_id hub_strategy hub_revision save_safetensors resume_from_checkpoint auto_resume_from_checkpoints
    save_steps saves_per_epoch save_strategy save_total_limit save_first_step early_stopping_patience load_best_model_at_end
    save_only_model metric_for_best_model greater_is_better dynamic_checkpoint merge_lora merge_method
    fsdp_final_state_dict_type"""
)
_SCHEDULE = words(
    """learning_rate embedding_lr embedding_lr_scale weight_decay lr_scheduler lr_scheduler_kwargs lr_quadratic_warmup
    cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_groups adam_epsilon adam_epsilon2 adam_beta1 adam_beta2
    adam_beta3 warmup_steps warmup_ratio loraplus_lr_ratio loraplus_lr_embedding jagged_restart_steps
    jagged_restart_warmup_steps jagged_restart_anneal_steps dion_lr dion_momentum"""
)
_EVALUATION = words(
    """eval_batch_size eval_sequence_len eval_sample_packing eval_steps evals_per_epoch eval_strategy evaluation_strategy
    eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval"""
)
_OBJECTIVE = words(
    """dpo_beta dpo_norm_loss rpo_alpha center_rewards_coefficient num_labels dpo_use_weighting dpo_label_smoothing
    dpo_loss_weights orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight rl_beta eaft_alpha eaft_k"""
)
_LAUNCH = words(
    """local_rank ddp ddp_timeout ddp_broadcast_buffers ddp_find_unused_parameters use_ray ray_run_name ray_num_workers
    resources_per_worker gc_steps gc_collect_steps lisa_layers_attribute"""
)

AXOLOTL = Table(
    {
        "base_model": "model",
        "adapter": "method",
        "load_in_8bit": "8-bit base",
        "load_in_4bit": "4-bit base",
        "lora_r": "LoRA's rank",
        "lora_alpha": "LoRA's scaling",
        "lora_dropout": "LoRA's dropout",
        "lora_target_modules": "LoRA's modules",
        "lora_target_linear": "LoRA's modules",
        "lora_modules_to_save": "modules that are trained whole",
        "peft_layers_to_transform": "LoRA's layers",
        "peft_use_dora": "DoRA",
        "peft_use_rslora": "LoRA's scaling",
        "peft_autocast_adapter_dtype": "dtype of adapters",
        "bnb_config_kwargs": "4-bit format",
        "lisa_n_layers": "LISA",
        "gradient_accumulation_steps": "micro-batches of an update",
        "micro_batch_size": "micro-batch size",
        "batch_size": "sequences of an update",
        "sequence_len": "tokens of a sequence",
        "sample_packing": "packed sequences",
        "pad_to_sequence_len": "padding",
        "optimizer": "optimizer",
        "max_grad_norm": "clipping of gradients",
        "num_epochs": "passes over the data",
        "max_steps": "updates",
        "bf16": "precision",
        "fp16": "precision",
        "bfloat16": "precision",
        "float16": "precision",
        "float32": "precision",
        "gradient_checkpointing": "gradient checkpointing",
        "gradient_checkpointing_kwargs": "kind of gradient checkpointing",
        "attn_implementation": "attention",
        "flash_attention": "attention",
        "sdp_attention": "attention",
        "eager_attention": "attention",
        "xformers_attention": "attention",
        "flex_attention": "attention",
        "sage_attention": "attention",
        "liger_fused_linear_cross_entropy": "Liger's fused loss",
        "cut_cross_entropy": "a fused loss",
        "chunked_cross_entropy": "the loss in chunks",
        "torch_empty_cache_steps": "how often the allocator's cache is emptied",
        "deepspeed": "what GPUs split",
        "fsdp": "what GPUs split",
        "fsdp_config": "what GPUs split",
        "fsdp_version": "FSDP 1 or 2",
        "world_size": "number of GPUs",
        "dp_shard_size": "number of GPUs that split",
        "dp_replicate_size": "number of groups of GPUs",
        "tensor_parallel_size": "tensor parallelism",
        "context_parallel_size": "context parallelism",
        "sequence_parallel_degree": "context parallelism",
        "rl": "objective",
        "reward_model": "objective",
    },
    {
        "logging": _LOGGING,
        "which data": _DATA,
        "how the model is loaded": _LOADING,
        "saving": _SAVING,
        "numbers of the update and its schedule": _SCHEDULE,
        "evaluation keeps no activations": _EVALUATION,
        "numbers of the objective": _OBJECTIVE,
        "how processes are started": _LAUNCH,
    },
    {
        "memory that is set apart": words("max_memory gpu_memory_limit"),
        "Liger's kernels for layers save more": words(
            """liger_rope liger_rms_norm liger_rms_norm_gated liger_glu_activation liger_swiglu liger_layer_norm
            liger_kernel_impl liger_use_token_scaling"""
        ),
        "Liger's cross-entropy of whole logits": words("liger_cross_entropy flash_attn_cross_entropy"),
        "fused kernels for LoRA keep less": words("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel"),
        "other kernels": words(
            """use_kernels flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum s2_attention gemma4_hybrid_attn_impl
            large_head_attention flash_attn_d512 sdpa_varlen fused_attn_kernel experts_implementation use_scattermoe
            use_sonicmoe llama4_linearized_experts flex_attn_compile_kwargs use_onebitllms"""
        ),
        "layers of the MLP in tiles": words("tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp"),
        "number of chunks of the loss": words("chunked_cross_entropy_num_chunks"),
        "another loss": words("use_eaft scaling_softmax scaling_softmax_factor scaling_softmax_bias"),
        "activations or layers that are moved to the host": words("activation_offloading layer_offloading ple_cpu_offload"),
        "checkpointing of chosen ops": words("selective_checkpointing"),
        "weights that are trained by their names": words(
            "unfrozen_parameters freeze_mm_modules reinit_weights spectrum_top_fraction"
        ),
        "an adapter that is continued": words("lora_model_dir"),
        "other options of PEFT": words(
            """lora_target_parameters lora_rank_pattern lora_alpha_pattern peft_layers_pattern peft peft_layer_replication
            peft_init_lora_weights peft_trainable_token_indices peft_ensure_weight_tying lora_fan_in_fan_out"""
        ),
        "ReLoRA": words("relora relora_prune_ratio relora_prune_method relora_cpu_offload"),
        "how often LISA draws layers": words("lisa_step_interval"),
        "GPTQ": words("gptq"),
        "other quantization": words(
            "model_quantization_config model_quantization_config_kwargs quantize_moe_experts qat quantization"
        ),
        "training in fp8": words("fp8 fp8_config fp8_enable_fsdp_float8_all_gather"),
        "TF32 products of fp32 tensors are faster": words("tf32"),
        "changes of the model's config": words(
            "overrides_of_model_config model_config overrides_of_model_kwargs model_kwargs rope_scaling"
        ),
        "a vocabulary that grows": words(
            "resize_token_embeddings_to_32x tokens added_tokens_overrides shrink_embeddings embeddings_skip_upcast"
        ),
        "norms in fp32": words("fp32_norms fp32_norm_classes"),
        "noise on the embeddings": words("neftune_noise_alpha noisy_embedding_alpha"),
        "positions that are skipped": words("use_pose"),
        "torch.compile fuses ops and keeps other tensors": words(
            "torch_compile torch_compile_backend torch_compile_mode torch_compile_options deepcompile"
        ),
        "numbers of other optimizers": words(
            """optim_args optim_target_modules torchdistx_path dion_rank_fraction dion_rank_multiple_of qgalore_rank
            qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits
            qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size"""
        ),
        "the batch is halved where memory runs out": words("auto_find_batch_size"),
        "DDP's bucket size; a bucket for all gradients is counted": words("ddp_bucket_cap_mb"),
        "padding of every batch to a multiple": words("pad_to_multiple_of"),
        "batches without padding": words("batch_flattening dpo_padding_free"),
        "an earlier kind of packing": words("max_packed_sequence_len"),
        "ring attention's options": words("heads_k_stride ring_attn_func"),
        "generation and rewards": words("trl vllm ebft process_reward_model"),
        "a reference model, and losses of preferences": words(
            """precompute_ref_log_probs dpo_use_liger_kernel dpo_loss_type dpo_use_logits_to_keep dpo_generate_during_eval"""
        ),
        "a trainer of your own": words("trainer_cls"),
    },
    {},
    {"tf32": "auto", "tiled_mlp_use_original_mlp": True},
)

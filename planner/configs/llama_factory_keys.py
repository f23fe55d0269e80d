"""LLaMA-Factory's own keys, beside the Trainer's: what each means for memory, time and cost (llamafactory 0.9.5, hparams/)."""

from tuneplan.planner.configs.table import Table, words

FACTORY = Table(
    {
        "model_name_or_path": "model",
        "stage": "objective",
        "finetuning_type": "method",
        "cutoff_len": "tokens of a sequence",
        "packing": "packed sequences",
        "neat_packing": "packed sequences with a mask",
        "lora_rank": "LoRA's rank",
        "lora_alpha": "LoRA's scaling",
        "lora_dropout": "LoRA's dropout",
        "lora_target": "LoRA's modules",
        "additional_target": "modules that are trained whole",
        "use_rslora": "LoRA's scaling",
        "use_dora": "DoRA",
        "oft_rank": "OFT's number of blocks",
        "oft_block_size": "OFT's size of a block",
        "oft_target": "OFT's modules",
        "freeze_trainable_layers": "layers that are trained",
        "freeze_trainable_modules": "modules that are trained",
        "quantization_bit": "bits of the base",
        "quantization_method": "format of the base",
        "quantization_type": "format of the base",
        "double_quantization": "double quantization",
        "pure_bf16": "trained weights in bf16",
        "flash_attn": "attention",
        "enable_liger_kernel": "Liger's fused loss",
        "disable_gradient_checkpointing": "gradient checkpointing",
        "use_reentrant_gc": "kind of gradient checkpointing",
        "use_galore": "GaLore",
        "galore_rank": "GaLore's rank",
    },
    {
        "overridden: disable_gradient_checkpointing decides": words(
            "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs"
        ),
        "which data": words(
            """template dataset eval_dataset dataset_dir media_dir train_on_prompt mask_history streaming buffer_size
            mix_strategy interleave_probs overwrite_cache preprocessing_batch_size preprocessing_num_workers max_samples
            eval_num_beams ignore_pad_token_for_loss val_size eval_on_each_dataset tool_format default_system enable_thinking
            preserve_thinking tokenized_path data_shared_file_system disable_shuffling image_dir"""
        ),
        "images, videos and sound, where there are any": words(
            """image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels
            video_fps video_maxlen use_audio_in_video audio_sampling_rate image_resolution video_resolution"""
        ),
        "inference": words(
            """do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty
            skip_special_tokens infer_backend infer_dtype use_kv_cache sglang_maxlen sglang_mem_fraction sglang_tp_size
            sglang_config sglang_lora_backend vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config"""
        ),
        "export": words(
            """export_dir export_size export_device export_quantization_bit export_quantization_dataset
            export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id"""
        ),
        "where the model comes from": words(
            """cache_dir model_revision trust_remote_code hf_hub_token ms_hub_token om_hub_token offload_folder adapter_folder
            use_fast_tokenizer split_special_tokens low_cpu_mem_usage device_map quantization_device_map train_from_scratch
            init_special_tokens print_param_status create_new_adapter model_max_length compute_dtype"""
        ),
        "logging": words(
            """use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir
            swanlab_lark_webhook_url swanlab_lark_secret plot_loss include_effective_tokens_per_second compute_accuracy
            enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps
            profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules
            early_stopping_steps"""
        ),
        "how processes are started": words(
            """ray_num_workers ray_init_kwargs master_addr master_port ray_run_name ray_storage_path
            ray_storage_filesystem resources_per_worker placement_strategy"""
        ),
        "numbers of the update": words("loraplus_lr_ratio loraplus_lr_embedding pissa_init pissa_iter pissa_convert"),
        "numbers of the objective": words(
            """pref_beta pref_bco_weight dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size
            ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ld_alpha eaft_alpha asft_alpha"""
        ),
        "GaLore's, APOLLO's and BAdam's numbers": words(
            """galore_target galore_update_interval galore_scale galore_proj_type apollo_target apollo_rank
            apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_scale_front
            badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose
            badam_mode"""
        ),
        "vision towers of multimodal models": words(
            "freeze_vision_tower freeze_multi_modal_projector freeze_language_model train_mm_proj_only"
        ),
    },
    {
        "an adapter that is merged or continued": words("adapter_name_or_path"),
        "a vocabulary that grows": words(
            "resize_vocab add_tokens add_special_tokens new_special_tokens_config new_special_tokens"
        ),
        "positions beyond the model's own": words("rope_scaling"),
        "shifted sparse attention": words("shift_attn"),
        "a block-diagonal mask": words("block_diag_attn"),
        "mixture of depths": words("mixture_of_depths"),
        "Unsloth's kernels": words("use_unsloth use_unsloth_gc"),
        "KTransformers": words(
            """use_kt kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num
            kt_lora_expert_intermediate_size"""
        ),
        "other kernels": words("use_v1_kernels"),
        "the auxiliary loss of mixtures of experts": words("moe_aux_loss_coef"),
        "norms in fp32": words("upcast_layernorm"),
        "logits in fp32 before the loss": words("upcast_lmhead_output"),
        "another optimizer": words("use_badam use_apollo apollo_layerwise galore_layerwise use_adam_mini use_muon"),
        "another loss": words("use_dft_loss use_asft_loss use_eaft_loss pref_loss pref_ftx"),
        "other models beside the trained one": words(
            """ref_model ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters
            reward_model_quantization_bit reward_model_type"""
        ),
        "blocks that are added": words("use_llama_pro"),
        "more modules that are trained": words("freeze_extra_modules"),
        "dropout of OFT's blocks": words("module_dropout"),
        "Megatron and other engines": words("use_mca use_hyper_parallel hyper_parallel_args"),
        "training in fp8": words("fp8 fp8_backend fp8_enable_fsdp_float8_all_gather"),
    },
)

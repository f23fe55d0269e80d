"""Compositions with a name of their own: what they are made of, where they come from, and what the composition leaves out.

A pattern is data: parts joined by `+`, as on the command line.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A named composition.

    Attributes:
        text: parts with options.
        family: of the survey's taxonomy.
        paper: authors, year and title.
        leaves_out: what the method does besides, or "".
    """

    text: str
    family: str
    paper: str
    leaves_out: str = ""


_QKVO = "target_modules=q_proj,k_proj,v_proj,o_proj"
_SCHEDULE = "its search: this is one candidate; plan methods search --space {0} walks the others"

PATTERNS: dict[str, Pattern] = {
    "qlora": Pattern("quantized_base+lora", "quantized", "Dettmers et al. 2023, QLoRA"),
    "rslora": Pattern("lora(use_rslora=true)", "reparameterized", "Kalajdzievski 2023, rsLoRA"),
    "dora": Pattern("lora(use_dora=true)", "reparameterized", "Liu et al. 2024, DoRA"),
    "lora_fa": Pattern("lora(freeze_a=true)", "memory-efficient", "Zhang et al. 2023, LoRA-FA, section 3"),
    "llm_int8": Pattern("quantized_base(quant_type=int8)+lora", "quantized", "Dettmers et al. 2022, LLM.int8()"),
    "gptq_lora": Pattern("quantized_base(quant_type=gptq,prepare_kbit=false)+lora", "quantized", "Frantar et al. 2023, GPTQ"),
    "awq_lora": Pattern("quantized_base(quant_type=awq,prepare_kbit=false)+lora", "quantized", "Lin et al. 2024, AWQ"),
    "lq_lora": Pattern(
        f"quantized_base+lora(r=64,{_QKVO})", "quantized", "Guo et al. 2024, LQ-LoRA", "bits that differ from matrix to matrix"
    ),
    "sora": Pattern(
        "lora(gate=true)", "reparameterized", "Ding et al. 2023, SoRA, equation 3", "ranks that are pruned while training"
    ),
    "o_lora": Pattern(
        f"lora(frozen_tasks=4,{_QKVO})", "reparameterized", "Wang et al. 2023, O-LoRA, section 3", "the orthogonality loss"
    ),
    "krona": Pattern("lokr(r=512)", "reparameterized", "Edalati et al. 2022, KronA, equation 4", "the residual of KronA_res"),
    "lora_plus": Pattern("lora", "reparameterized", "Hayou et al. 2024, LoRA+", "its two learning rates, which cost nothing"),
    "dylora": Pattern(
        "lora", "reparameterized", "Valipour et al. 2023, DyLoRA", "ranks below r that are drawn: r sets the memory"
    ),
    "bi_adapter": Pattern(
        "bottleneck_adapter(mh_adapter=false,reduction_factor=32)",
        "quantized",
        "Jie et al. 2023, Bi-Adapter",
        "the 1-bit checkpoint",
    ),
    "sparse_adapter": Pattern(
        "bottleneck_adapter(reduction_factor=8,sparsity=0.4)",
        "pruned",
        "He et al. 2022, SparseAdapter, section 2",
        "the pass that scores the weights before training; trained weights are counted dense, as the mask leaves gradients and "
        "states of what it keeps at zero; the checkpoint is sparse",
    ),
    "propetl": Pattern("propetl_adapter", "pruned", "Zeng, Zhang and Lu 2023, ProPETL, section 3"),
    "splora": Pattern(
        "pruned_base(ratio=0.5)+lora", "pruned", "Hedegaard et al. 2022, Structured Pruning Adapters, section 3.2 (SPLoRA)"
    ),
    "loraprune": Pattern("pruned_base(ratio=0.5)+lora", "pruned", "Zhang et al. 2024, LoRAPrune, algorithm 1"),
    "peft_plug_in": Pattern(
        "small_model+lora",
        "memory-efficient",
        "Jin, Zhang and Zong 2023, Parameter-Efficient Tuning without Calculating Gradients",
    ),
    "houlsby": Pattern(
        "bottleneck_adapter(mh_adapter=true,output_adapter=true,non_linearity=swish)", "additive", "Houlsby et al. 2019"
    ),
    "pfeiffer": Pattern("bottleneck_adapter(mh_adapter=false)", "additive", "Pfeiffer et al. 2021, AdapterFusion"),
    "parallel_adapter": Pattern(
        "bottleneck_adapter(is_parallel=true,mh_adapter=false,reduction_factor=2)", "additive", "He et al. 2022, table 1"
    ),
    "adapter_drop": Pattern(
        "bottleneck_adapter(mh_adapter=false,skip_layers=5)",
        "additive",
        "Rueckle et al. 2021, AdapterDrop",
        "drops that vary by step",
    ),
    "compacter_plus": Pattern("compacter(mh_adapter=false)", "reparameterized", "Karimi Mahabadi et al. 2021, Compacter++"),
    "meft": Pattern(
        "reversible+bottleneck_adapter(is_parallel=true,mh_adapter=false,reduction_factor=32)",
        "memory-efficient",
        "Liao, Tan and Monz 2023, MEFT, section 3.3 (MEFT1)",
    ),
    "qst": Pattern(
        "quantized_base(prepare_kbit=false)+lst(reduction_factor=16)",
        "memory-efficient",
        "Zhang et al. 2024, Quantized Side Tuning, section 3",
        "its cheaper down-projections and the quantized weights' compute dtype",
    ),
    "xprompt": Pattern(
        "prompt_tuning(num_virtual_tokens=50)",
        "additive",
        "Ma et al. 2022, XPrompt",
        "pruning of tokens and pieces, and the retraining",
    ),
    "cpt_prompts": Pattern(
        "prompt_tuning(num_virtual_tokens=100)",
        "additive",
        "Zhu et al. 2022, Continual Prompt Tuning",
        "prompts of earlier tasks on disk",
    ),
    "adapter_cl": Pattern(
        "bottleneck_adapter(mh_adapter=false,reduction_factor=32)",
        "additive",
        "Madotto et al. 2021, AdapterCL",
        "one adapter a task",
    ),
    "s_diff_pruning": Pattern("diff_pruning(structured=true)", "selective", "Guo, Rush and Kim 2021, section 3.2"),
    "fishmask": Pattern("shira(r=64)", "selective", "Sung et al. 2021, FISH Mask", "the pass over data that scores the weights"),
    "pafi": Pattern("shira(r=64)", "selective", "Liao et al. 2023, PaFi", "choosing the weights of least magnitude, done once"),
    "longlora": Pattern(
        f"lora({_QKVO})+trained_kinds(kinds=embedding,norm)+shifted_attention",
        "memory-efficient",
        "Chen et al. 2024, LongLoRA, sections 3.2 and 3.3",
        "position interpolation, which costs nothing",
    ),
    "longqlora": Pattern(
        f"quantized_base+lora(r=64,{_QKVO})+shifted_attention",
        "quantized",
        "Yang 2023, LongQLoRA",
        "position interpolation, which costs nothing",
    ),
    "mam": Pattern(
        "prefix_tuning(num_virtual_tokens=30,prefix_projection=true,encoder_hidden_size=800,past_key_values=false)"
        "+bottleneck_adapter(is_parallel=true,mh_adapter=false,reduction_factor=2)",
        "hybrid",
        "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, section 4.6",
    ),
    "unipelt": Pattern(
        "lora(target_modules=q_proj,v_proj,use_gating=true)"
        "+prefix_tuning(num_virtual_tokens=10,prefix_projection=true,encoder_hidden_size=512,past_key_values=false,use_gating=true)"
        "+bottleneck_adapter(mh_adapter=false,use_gating=true)",
        "hybrid",
        "Mao et al. 2022, UniPELT, section 3",
    ),
    "s4": Pattern(
        "lora(r=16,target_modules=q_proj,v_proj,layers=0/6-1/6,5/6-6/6)+bottleneck_adapter(mh_adapter=false,layers=0/6-5/6)"
        "+prefix_tuning(layers=1/6-6/6)+bitfit(layers=3/6-6/6)",
        "hybrid",
        "Chen et al. 2023, Parameter-Efficient Fine-Tuning Design Spaces, the S4-model",
        "one set of groups for all models. Held against the paper's abstract: groups as a spindle, all of them tuned, a set of "
        "strategies for each. Not held against its tables: the sizes, here 1:2:2:1, and the strategies of each group. Left out: "
        "equally many trained weights in each layer",
    ),
    "llm_adapters_series": Pattern(
        "bottleneck_adapter(mh_adapter=false,reduction_factor=16)", "hybrid", "Hu et al. 2023, LLM-Adapters, section 3"
    ),
    "llm_adapters_parallel": Pattern(
        "bottleneck_adapter(mh_adapter=false,is_parallel=true,reduction_factor=16)",
        "hybrid",
        "Hu et al. 2023, LLM-Adapters, section 3",
    ),
    "llm_adapters_lora": Pattern("lora(r=32)", "hybrid", "Hu et al. 2023, LLM-Adapters, section 3"),
    "autopeft": Pattern(
        "bottleneck_adapter(mh_adapter=false,reduction_factor=64)+parallel_bottleneck(reduction_factor=64)"
        "+prefix_tuning(num_virtual_tokens=8,past_key_values=false)",
        "hybrid",
        "Zhou et al. 2024, AutoPEFT",
        _SCHEDULE.format("autopeft"),
    ),
    "noah": Pattern(
        "lora(target_modules=q_proj,v_proj)+prompt_tuning+bottleneck_adapter(mh_adapter=false)",
        "hybrid",
        "Zhang et al. 2022, NOAH",
        _SCHEDULE.format("noah"),
    ),
    "s3pet": Pattern(
        "lora+ln_tuning", "hybrid", "Hu et al. 2022, Sparse Structure Search for Delta Tuning", _SCHEDULE.format("s3pet")
    ),
}

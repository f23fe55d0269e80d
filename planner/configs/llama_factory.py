"""LLaMA-Factory's training files: its own keys beside those of the Trainer.

Keys and defaults are those of llamafactory 0.9.5 (hparams/*.py); it refuses unknown keys too. What it does: model/adapter.py
(trained weights in fp32 unless pure_bf16), model/model_utils/checkpointing.py (on, reentrant), train/sft/workflow.py.
"""

from typing import Any

from tuneplan.planner.configs import training_arguments as hf
from tuneplan.planner.configs.adapter_keys import Adapter, note_adapter
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.llama_factory_keys import FACTORY
from tuneplan.planner.configs.section import Section
from tuneplan.planner.configs.table import Table, defaults, joined, version
from tuneplan.planner.yaml_file import YamlFile

STAGES = {"pt": "pretraining", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
ATTENTIONS = {"auto": "sdpa", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash", "fa3": "flash"}
NAME = "LLaMA-Factory"


def table() -> Table:
    """LLaMA-Factory's keys and the Trainer's."""
    groups = ("GeneratingArguments", "ModelArguments", "DataArguments", "FinetuningArguments", "TrainingArguments")
    own = {key: value for group in groups for key, value in defaults("llamafactory", group).items()}
    used = {key: what for key, what in hf.USED.items() if not key.startswith("gradient_checkpointing")}
    return Table(
        {**used, **FACTORY.used},
        joined(hf.IRRELEVANT, FACTORY.irrelevant),
        joined(hf.NOT_MODELLED, FACTORY.not_modelled),
        {**{old: new for old, new in hf.RENAMED.items() if not new.startswith("gradient_")}, **FACTORY.renamed},
        own,
    )


def read(file: YamlFile, facts: Facts, kind: str) -> None:
    """Note what the file says. Raises InputError with file and line."""
    section = Section(file, (), file.data, table(), facts, numbers_in_text=True)
    facts.stack(f"llamafactory {version('llamafactory')}")
    model = section.text("model_name_or_path")
    if model is not None:
        section.fact("model", model, "model_name_or_path")
    stage = section.choice("stage", STAGES, "sft") or "sft"
    section.fact("objective", STAGES[stage], "stage", NAME)
    hf.read_training_arguments(section, defaults("llamafactory", "TrainingArguments"), NAME)
    off = section.flag("disable_gradient_checkpointing")
    reentrant = section.flag("use_reentrant_gc", True)
    kind_of = "off" if off else "reentrant" if reentrant else "non-reentrant"
    section.fact("gradient_checkpointing", kind_of, "disable_gradient_checkpointing" if off else "use_reentrant_gc", NAME)
    section.fact("attention", ATTENTIONS[section.choice("flash_attn", ATTENTIONS, "auto") or "auto"], "flash_attn", NAME)
    if section.flag("enable_liger_kernel"):
        section.fact("loss", "liger", "enable_liger_kernel")
        section.warn("enable_liger_kernel", "of Liger's kernels the loss is counted; those of layers save more")
    _data(section)
    _method(section)
    section.finish()


def _data(section: Section) -> None:
    section.fact("seq_len", section.integer("cutoff_len", 2048, least=2), "cutoff_len", NAME)
    pretraining = section.facts.get("objective") == "pretraining"
    neat = section.flag("neat_packing")
    packed = section.flag("packing", pretraining) or neat
    section.facts.set(
        "packing", packed, section.source("packing") if "packing" in section else f"default of {NAME}", "packing" in section
    )
    masked = neat and section.facts.get("attention") != "flash"
    source = section.source("neat_packing" if neat else "packing") if packed else f"default of {NAME}"
    section.facts.set("padded", not packed or masked, source, explicit=packed)


def _method(section: Section) -> None:
    facts = section.facts
    kind = section.choice("finetuning_type", ("lora", "oft", "freeze", "full"), "lora") or "lora"
    bits = section.integer("quantization_bit")
    if bits is not None:
        facts.set("quantized", _quantized(section, bits), section.source("quantization_bit"))
    pure = section.flag("pure_bf16")
    mixed = facts.get("mixed_precision", "no")
    compute = "bf16" if pure or mixed == "bf16" else "fp16" if mixed == "fp16" else None
    trains_base = kind in ("full", "freeze")
    loaded = "fp32" if trains_base and not pure else compute or "auto"
    facts.set("load_dtype", loaded, section.source("pure_bf16") if pure else f"{NAME} keeps trained weights in fp32"
              if trains_base else f"{NAME} loads in the dtype it computes in", explicit=pure)  # fmt: skip
    if kind == "freeze" and not pure:
        section.warn("finetuning_type", "frozen layers are in 16 bits there; figures have all weights in fp32")
    key = "finetuning_type"
    if kind == "full":
        _full(section, key)
    elif kind == "freeze":
        top = section.integer("freeze_trainable_layers", 2, least=-10_000) or 0
        if top < 1 or section.names("freeze_trainable_modules") not in (None, ("all",)):
            section.warn("freeze_trainable_layers", "which layers and modules are trained is taken as the last ones, whole")
        note_adapter(section, Adapter("partial_layers", {"top": abs(top) or 2}), key)
    else:
        note_adapter(section, _adapter(section, kind), key)
    if "finetuning_type" not in section:
        found = facts.found["adapter"]
        facts.found["adapter"] = type(found)(found.value, f"default of {NAME}", False)


def _full(section: Section, key: str) -> None:
    if section.flag("use_galore"):
        section.facts.set(
            "adapter", Adapter("galore", {"rank": section.integer("galore_rank", 16)}), section.source("use_galore")
        )
        return
    section.facts.set("adapter", None, section.source(key))


def _adapter(section: Section, kind: str) -> Adapter:
    saved = section.names("additional_target") or ()
    if kind == "oft":
        names = section.names("oft_target") or ("all",)
        rank, size = section.integer("oft_rank", 0, least=0), section.integer("oft_block_size", 32, least=0)
        return Adapter("oft", {"r": rank, "oft_block_size": 0 if rank else size}, _targets(names), saved)
    options: dict[str, Any] = {
        "r": section.integer("lora_rank", 8),
        "lora_alpha": section.number("lora_alpha"),
        "lora_dropout": section.number("lora_dropout", 0.0),
        "use_rslora": section.flag("use_rslora"),
        "use_dora": section.flag("use_dora"),
    }
    return Adapter("lora", options, _targets(section.names("lora_target") or ("all",)), saved)


def _targets(names: tuple[str, ...]) -> tuple[str, ...]:
    return ("all-linear",) if names == ("all",) else tuple(sorted(names))


def _quantized(section: Section, bits: int) -> dict[str, Any]:
    method = section.choice("quantization_method", ("bnb", "gptq", "awq", "aqlm", "hqq", "eetq", "mxfp4", "fp8"), "bnb")
    if method != "bnb" or bits not in (4, 8):
        section.warn("quantization_bit", f"{bits} bits by {method} are not modelled; figures are those of bitsandbytes")
    if bits >= 8:
        return {"quant_type": "int8", "prepare_kbit": False}
    return {
        "quant_type": section.choice("quantization_type", ("nf4", "fp4"), "nf4"),
        "double_quant": section.flag("double_quantization", True),
        "prepare_kbit": False,
    }

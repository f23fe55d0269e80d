"""The training script of an exported TRL job, as text. It needs no tuneplan; where tuneplan is installed, it follows the peak."""

SCRIPT = '''"""Supervised fine-tuning with TRL. What is trained, and how, is in train.yaml:

    accelerate launch --config_file accelerate.yaml train.py --config train.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from peft import PeftConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, Trainer
from trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

HERE = Path(__file__).resolve().parent


@dataclass
class PlanConfig:
    """What the plan says beyond TRL's own options."""

    adapter_config: str | None = field(default=None, metadata={"help": "Folder with PEFT's adapter_config.json."})
    autocast_adapter_dtype: bool = field(default=True, metadata={"help": "Adapters in fp32, PEFT's default."})
    prepare_kbit: bool = field(default=False, metadata={"help": "PEFT's prepare_model_for_kbit_training."})
    model_loss: bool = field(default=False, metadata={"help": "The loss of transformers, with all logits, not TRL's."})
    attention_dropout: float | None = field(default=None, metadata={"help": "Instead of the model's own."})


class ModelLossTrainer(SFTTrainer):
    """SFTTrainer with the loss that the model computes, as transformers' Trainer has it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


def adapted(model, adapters, plan, training, quantized):
    """The model with its adapters, prepared as the plan says."""
    if quantized and plan.prepare_kbit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=training.gradient_checkpointing)
    return get_peft_model(model, adapters, autocast_adapter_dtype=plan.autocast_adapter_dtype)


def followers():
    """A callback that compares the first steps with the plan, where tuneplan is installed."""
    try:
        from tuneplan.profiling.callback import MemoryCallback
    except ImportError:
        return []
    plan = HERE / "plan.json"
    return [MemoryCallback(plan if plan.exists() else None, out=HERE / "measured.json")]


def main():
    script, training, model_args, plan = TrlParser(
        (ScriptArguments, SFTConfig, ModelConfig, PlanConfig)
    ).parse_args_and_config()
    quantization = get_quantization_config(model_args)
    options = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": PartialState().device}}
    if plan.attention_dropout is not None:
        options["attention_dropout"] = plan.attention_dropout
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, **options
    )
    adapters = get_peft_config(model_args)
    if plan.adapter_config is not None:
        adapters = PeftConfig.from_pretrained(str(HERE / plan.adapter_config))
        adapters.inference_mode = False
    if adapters is not None:
        model = adapted(model, adapters, plan, training, quantization is not None)
    name = script.dataset_name
    if Path(name).is_file():
        data = load_dataset("json", data_files=name, split="train")
    else:
        data = load_dataset(name, name=script.dataset_config, split=script.dataset_train_split)
    trainer_class = ModelLossTrainer if plan.model_loss else SFTTrainer
    trainer = trainer_class(model=model, args=training, train_dataset=data, callbacks=followers())
    if quantization is not None and adapters is not None and plan.autocast_adapter_dtype:
        for parameter in trainer.model.parameters():  # SFTTrainer casts the adapters of a quantized base to bf16
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
'''

"""LoRA fine-tuning of a small causal language model, as a script of one's own: model, adapters, loop.

`python train.py` runs it on the CPU with random tokens; `plan check` holds the memory of the same step against a baseline.
"""

from collections.abc import Iterator

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

CONFIG = LlamaConfig(
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=2048,
    use_cache=False,
)
BATCH_SIZE, LENGTH = 4, 256


def make_model() -> torch.nn.Module:
    """The model in bf16 with LoRA on every projection, layers recomputed in the backward."""
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapters)
    model.train()
    return model


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over the adapters."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def batches(steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random tokens, where a script of yours reads a data set."""
    for _ in range(steps):
        tokens = torch.randint(0, CONFIG.vocab_size, (BATCH_SIZE, LENGTH))
        yield {"input_ids": tokens, "labels": tokens}


def training_step(model: torch.nn.Module, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Forward, backward, update; gives the loss."""
    outputs = model(**batch)
    loss = outputs.loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def for_plan_check() -> dict[str, object]:
    """What `plan check` runs: the same functions as `main`."""
    model = make_model()
    return {"model": model, "batch": next(batches(1)), "optimizer": make_optimizer(model), "step": training_step}


def main(steps: int = 5) -> None:
    """Train."""
    model = make_model()
    optimizer = make_optimizer(model)
    for number, batch in enumerate(batches(steps), 1):
        print(f"step {number}: loss {training_step(model, batch, optimizer):.4f}")


if __name__ == "__main__":
    main()

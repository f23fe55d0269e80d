"""A real QLoRA training step, PEFT over bitsandbytes as it is and patched: seconds, peak memory, loss and gradients.

Weights are random, of Llama-2-7B's shapes (transformers' default of a Llama), in NF4 with nested scales, adapters on all linear
layers; the rest is what `prepare_model_for_kbit_training` makes of it; bf16 autocast; AdamW. The model is patched and unpatched
from round to round, so that both run on the same weights.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.clocks import free, wait
from tuneplan.kernels.bench.kernel import error_of
from tuneplan.kernels.bench.machine import Machine
from tuneplan.kernels.bench.rounds import AGAIN, Ratio, Summary, interleaved
from tuneplan.kernels.bench.rows import MEASURED, WRONG, Row, ratio_json, row, seconds_json
from tuneplan.kernels.bench.shapes import Shape
from tuneplan.kernels.bench.weights import bitsandbytes_state, packed_4bit

MODEL = "meta-llama/Llama-2-7b-hf"
OWN, PLAIN = "tuneplan", "bitsandbytes"
ROUNDS = 5
STEPS = 2
"""Of a round."""
RANK = 16
GRADIENTS_BOUND = 0.1
"""Relative gap of all gradients together: some 450 products in a row round to bf16 otherwise; a mistake is a gap of order 1."""
LOSS_BOUND = 0.01
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A training step.

    Args:
        micro_batch_size: sequences.
        seq_len: tokens of each.
        gradient_checkpointing: of every layer.
    """

    micro_batch_size: int
    seq_len: int
    gradient_checkpointing: bool

    @property
    def label(self) -> str:
        """In a few words."""
        kept = "checkpointing" if self.gradient_checkpointing else "no checkpointing"
        return f"QLoRA step rank {RANK}, {self.micro_batch_size} x {self.seq_len} tokens, {kept}"


def steps(machine: Machine) -> list[Step]:
    """The steps of a device."""
    if not machine.on_gpu:
        return [Step(2, 32, True), Step(2, 32, False)]
    return [Step(4, 1024, True), Step(2, 1024, False)]


def key_of(step: Step, name: str) -> str:
    """Of a row."""
    return f"{step.label} / {name}"


def build(machine: Machine) -> Any:
    """The model with its adapters, in training mode; tiny on a CPU. Raises ImportError where a library is missing."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**({} if machine.on_gpu else _TINY), use_cache=False)
    with machine.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    _quantize(model, machine.device)
    free(machine.device)
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return adapted.train()


def _quantize(model: nn.Module, device: torch.device) -> None:
    """Linear layers but the head to bitsandbytes' with random NF4 weights."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for number, (path, layer) in enumerate(list(model.named_modules())):
        if not isinstance(layer, nn.Linear) or path == "lm_head":
            continue
        packed = packed_4bit(Case("dequantize_4bit", Shape(layer.out_features, layer.in_features)), device, number)
        with torch.device("meta"):
            new = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        state = bitsandbytes_state(packed, "nf4")
        new.weight = Params4bit(
            packed.data, requires_grad=False, quant_state=state, quant_type="nf4", module=new, bnb_quantized=True
        )
        new.quant_state = state
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what transformers sets, and PEFT reads


@dataclass(slots=True)
class _Trainer:
    """The model with its optimizer and a batch."""

    model: Any
    machine: Machine
    batch: torch.Tensor
    optimizer: torch.optim.Optimizer
    patched: bool = False

    def use(self, patched: bool) -> None:
        from tuneplan.kernels.patch import patch, unpatch

        if patched != self.patched:
            (patch if patched else unpatch)(self.model)
            self.patched = patched

    def loss(self) -> torch.Tensor:
        with torch.autocast(self.machine.device.type, dtype=torch.bfloat16):
            loss: torch.Tensor = self.model(input_ids=self.batch, labels=self.batch).loss
        loss.backward()  # type: ignore[no-untyped-call]  # of torch, without annotations
        return loss.detach()

    def gradients(self, patched: bool) -> tuple[float, list[torch.Tensor]]:
        """Loss, and gradients of the adapters, without an update."""
        self.use(patched)
        loss = float(self.loss())
        found = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return loss, found

    def step(self) -> None:
        self.loss()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def round(self, patched: bool) -> float:
        """Median seconds of a round's steps."""
        self.use(patched)
        seconds = []
        for _ in range(STEPS):
            wait(self.machine.device)
            start = time.perf_counter()
            self.step()
            wait(self.machine.device)
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def peak(self, patched: bool) -> int | None:
        """Bytes allocated at the fullest of a step; None on a CPU."""
        device = self.machine.device
        if device.type != "cuda":
            return None
        self.use(patched)
        free(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.step()
        wait(device)
        return int(torch.cuda.max_memory_allocated(device))


def run_step(model: Any, step: Step, machine: Machine) -> list[Row]:
    """A row of the step as it is, and one of the step patched.

    Args:
        model: of `build`.
        step: which.
        machine: where.
    """
    if step.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    generator = torch.Generator(machine.device).manual_seed(1)
    size = (step.micro_batch_size, step.seq_len)
    batch = torch.randint(0, model.config.vocab_size, size, device=machine.device, generator=generator)
    trained = [p for p in model.parameters() if p.requires_grad]
    trainer = _Trainer(model, machine, batch, torch.optim.AdamW(trained, lr=1e-5, fused=machine.on_gpu))
    try:
        loss, gradients = trainer.gradients(patched=False)
        own_loss, own_gradients = trainer.gradients(patched=True)
        error = error_of(_flat(own_gradients), _flat(gradients))
        reason = _wrong(loss, own_loss, error)
        del gradients, own_gradients
        peaks = {name: trainer.peak(name == OWN) for name in (OWN, PLAIN)}
        contestants: dict[str, Callable[[], float]] = {
            OWN: lambda: trainer.round(patched=True),
            PLAIN: lambda: trainer.round(patched=False),
        }
        seconds = interleaved(contestants, ROUNDS)
    finally:
        trainer.use(patched=False)
    ratio = Ratio.of(seconds[PLAIN], seconds[OWN], seconds[OWN + AGAIN])
    tokens = step.micro_batch_size * step.seq_len
    rows = []
    for name, own in ((OWN, own_loss), (PLAIN, loss)):
        summary = Summary.of(seconds[name])
        rows.append(
            row(
                "step",
                key_of(step, name),
                machine.provenance,
                model=MODEL if machine.on_gpu else "tiny",
                step=asdict(step),
                rank=RANK,
                implementation=name,
                state=WRONG if reason else MEASURED,
                reason=reason,
                loss=own,
                gradients_error=error,
                step_seconds=seconds_json(summary),
                tokens_per_second=tokens / summary.median,
                peak_bytes=peaks[name],
                versus={"implementation": OWN, **(ratio_json(ratio) or {})} if name == PLAIN else None,
            )
        )
    return rows


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).float() for tensor in tensors])


def _wrong(loss: float, own: float, error: float) -> str | None:
    if not abs(own / loss - 1) <= LOSS_BOUND:
        return f"the loss is {own}, without the patch {loss}"
    return None if error <= GRADIENTS_BOUND else f"gradients differ by {error:.3g}, more than {GRADIENTS_BOUND}"

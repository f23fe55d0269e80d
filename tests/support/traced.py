"""Estimate and trace of one configuration side by side; used by the tests that hold the ledger against real code."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import reference  # noqa: E402

from tuneplan.planner.memory import StepMemory, step_memory  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.methods.method import Method  # noqa: E402
from tuneplan.planner.methods.part import Weight  # noqa: E402
from tuneplan.planner.methods.quantized_base import QuantizedBase  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.network import Network, build  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.training.optimizers import OPTIMIZERS  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import attention  # noqa: E402
from tuneplan.profiling.build import checkpoint_layers, make_optimizer, with_method  # noqa: E402
from tuneplan.profiling.step import StepTrace, meta_model, quantize_4bit, trace_step  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS = {"flash": attention.FLASH, "efficient": attention.EFFICIENT, "math": attention.MATH, "eager": "eager"}


@dataclass(frozen=True)
class Case:
    """One configuration, in the planner's words."""

    config: Mapping[str, Any]
    method: str = "full"
    settings: Settings = field(default_factory=Settings)
    optimizer: str = "adamw"
    loss: Callable[..., Any] | None = None


def estimated(case: Case) -> tuple[Network, StepMemory]:
    """The ledger's answer."""
    spec = read_spec("test", ConfigReader(dict(case.config), "test"))
    network = build(spec, parse(case.method), case.settings)
    return network, step_memory(network, case.settings, OPTIMIZERS[case.optimizer])


def traced(case: Case, kernel: str, device: str = "meta") -> tuple[Any, StepTrace]:
    """The real code's answer, with the attention kernel that the estimate says will run.

    `device`: "cpu" for code that asks for values.
    """
    settings = case.settings
    method = parse(case.method)
    implementation = attention.MASKED if kernel == "efficient" and (settings.padded or method.prefix_length) else KERNELS[kernel]
    model: Any = meta_model(case.config, implementation, DTYPES[settings.dtype], settings.use_cache, device)
    model = _quantized(model, method, settings)
    model = with_method(model, method)
    _freeze(model, method)
    reference.install(model, method)
    fused = any(part.fuses_update() for part in method.parts)
    if fused:
        reference.update_in_backward(model)
    checkpoint_layers(model, settings.gradient_checkpointing)
    trace = trace_step(
        model,
        make_optimizer(case.optimizer, [p for p in model.parameters() if p.requires_grad]),
        settings.micro_batch_size,
        settings.seq_len,
        accumulation=2 if settings.accumulating else 1,
        loss=case.loss,
        keep_outputs=settings.keep_outputs,
        device=device,
    )
    return model, trace


def _freeze(model: Any, method: Method) -> None:
    """Train what the method's parts train, where PEFT adds nothing to the model."""
    if any(getattr(part, "freeze_a", False) for part in method.parts):  # as peft.optimizers.create_lorafa_optimizer does
        for name, parameter in model.named_parameters():
            parameter.requires_grad &= "lora_A" not in name
    for module in model.modules():
        for name, indices in getattr(module, "shira_indices", {}).items():
            module.register_buffer(f"shira_indices_{name}", indices)  # PEFT keeps them in a plain dict
    if any(part.peft_config() is not None for part in method.parts):
        return
    kinds = (("bias", "bias"), ("norm", "norm"), ("embed", "embedding"), ("lm_head", "head"))
    for name, parameter in model.named_parameters():
        module = re.sub(r"^model\.layers\.\d+\.", "", name.rsplit(".", 1)[0])
        layer = re.search(r"layers\.(\d+)\.", name)
        kind = next((kind for part, kind in kinds if part in name), "linear")
        index = int(layer.group(1)) if layer else None
        parameter.requires_grad = method.trains(Weight(name, kind, module, index, model.config.num_hidden_layers))


def _quantized(model: Any, method: Method, settings: Settings) -> Any:
    base = next((part for part in method.parts if isinstance(part, QuantizedBase)), None)
    if base is None:
        return model
    if base.quant_type == "int8":
        from int8 import quantize_8bit

        quantize_8bit(model)
    else:
        quantize_4bit(model, DTYPES[settings.dtype], base.quant_type, base.double_quant)
    if base.prepare_kbit:
        use = settings.gradient_checkpointing != "off"
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=use)
    return model


def small(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config small enough to trace in a second, with the proportions of a real model."""
    return {
        "model_type": model_type,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        **changes,
    }


def with_settings(case: Case, **changes: Any) -> Case:
    """The case with other settings."""
    return replace(case, settings=replace(case.settings, **changes))

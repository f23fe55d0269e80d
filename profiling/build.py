"""What a training script builds: model, PEFT's adapters, gradient checkpointing, optimizer, batch; named as the planner does."""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.training.settings import LOOP, OURS
from tuneplan.profiling import attention
from tuneplan.profiling.expert_loop import answer_routing
from tuneplan.profiling.image_batches import READ_BOTH, image_places, image_text_batch
from tuneplan.profiling.methods import refuse_what_no_library_has, with_adapter, with_method
from tuneplan.profiling.optimizers import make_optimizer
from tuneplan.profiling.quantize import quantize
from tuneplan.profiling.subject import Subject

USUAL_EXPERTS = "grouped_mm"
"""What transformers runs unless it is told otherwise, and where a model has no experts."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
    "contrastive": "AutoModel",
}
_TASK_OF = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "masked-lm",
    "ForImageClassification": "image-classification",
}
_BY_TASK = ("MULTITASK_PROMPT_TUNING", "POLY")  # their forward takes the number of each sequence's task
_CONTRASTIVE = ("clip",)
_CAST_PIXELS = ("vit",)  # their code casts what a processor gives, which is fp32
_GENERATES = ("causal-lm", "image-text-to-text", "seq2seq-lm", "masked-lm")


@dataclass(slots=True)
class Built:
    """A model that is ready to be trained.

    Attributes:
        model: with the method applied, in training mode.
        optimizer: over its trained parameters.
        batch: keyword arguments of a forward pass, labels included.
        notes: what was built otherwise than asked for.
        places: see `StorageTracker`.
        base: parameters (by id) that the model had before the method's adapters.
    """

    model: Any
    optimizer: Any
    batch: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    base: frozenset[int] = frozenset()
    places: int = 0


def build(subject: Subject, implementation: str, device: str, adapt: Callable[[Any], None] | None = None) -> Built:
    """Everything of a subject on a device.

    Args:
        subject: what to build.
        implementation: of attention, a name that transformers knows.
        device: "meta" for no values at all; elsewhere weights are random.
        adapt: changes the model in place before it gets its optimizer, for a method that PEFT does not have.

    Raises:
        InputError: transformers refuses the config, or PEFT the method.
    """
    settings = subject.settings
    quantized = next((part for part in subject.method.parts if isinstance(part, QuantizedBase)), None)
    dtype = DTYPES[settings.dtype]
    if adapt is None:
        refuse_what_no_library_has(subject.method)
    start = "meta" if quantized is not None else device
    notes: tuple[str, ...] = ()
    task = task_of(subject)
    try:
        model = transformers_model(subject.config, task, implementation, dtype, start, settings.use_cache, settings.experts)
    except InputError as error:
        if settings.attention != "sdpa" or "does not support an attention implementation" not in str(error):
            raise
        model = transformers_model(
            subject.config, task, _eager_text(subject.config, implementation), dtype, start, settings.use_cache, settings.experts
        )
        notes = ("this architecture has no sdpa attention in transformers; eager attention was used, as transformers does",)
    if settings.experts == LOOP and device == "meta":
        answer_routing(model, settings.routing)
    if quantized is not None:
        quantize(model, quantized, DTYPES[settings.dtype], device)
        materialize(model, device)
        if quantized.prepare_kbit:
            from peft import prepare_model_for_kbit_training

            use = settings.gradient_checkpointing != "off"
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=use)
    base = frozenset(id(parameter) for parameter in model.parameters())
    model = with_method(model, subject.method, task)
    if subject.peft_config is not None:
        model = with_adapter(model, subject.peft_config)
    materialize(model, device)
    if adapt is not None:
        adapt(model)
    if settings.kernels == OURS:
        if settings.autocast and device != "cuda":
            raise InputError(
                "autocast is played for traces and CPUs, which patched layers do not see; leave --kernels tuneplan out, "
                "or use plan estimate"
            )
        from tuneplan.kernels.patch import patch

        notes += (str(patch(model)),)
    checkpoint_layers(model, settings.gradient_checkpointing)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError(f"{subject.method.name} trains nothing of {subject.id}; add a part such as lora")
    optimizer = make_optimizer(subject.optimizer.name, trained, settings.precision == "master-weights")
    batch = batch_of(subject, model, device)
    if task == "image-text-to-text" and "pixel_values" not in batch:
        notes += ("the batch is of text alone: what the model does with images is not in these figures",)
    return Built(model, optimizer, batch, notes, base, image_places(subject))


def _eager_text(config: Mapping[str, Any], implementation: str) -> Any:
    """What transformers runs where the whole model, or the language model alone, has no sdpa attention."""
    parts = [key for key in ("text_config", "vision_config") if key in config]
    return {"": implementation, "vision_config": implementation, "text_config": "eager"} if len(parts) == 2 else "eager"


def task_of(subject: Subject) -> str:
    """The task: as asked, or what the first of the config's `architectures` ends in, or the first that the architecture has."""
    if subject.task:
        return subject.task
    names = subject.config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    named = next((task for ending, task in _TASK_OF.items() if name.endswith(ending)), None)
    kind = subject.config.get("model_type")
    if kind in _CONTRASTIVE:
        return "contrastive"
    if named is not None or kind not in transformers.CONFIG_MAPPING:
        return named or "causal-lm"
    made = transformers.CONFIG_MAPPING[kind]
    generates = [task for task in _GENERATES if made in getattr(transformers, _AUTO[task])._model_mapping]
    if "seq2seq-lm" in generates and subject.config.get("is_encoder_decoder", made().is_encoder_decoder):
        return "seq2seq-lm"
    if "image-text-to-text" in generates and "vision_config" in subject.config:
        return "image-text-to-text"  # transformers knows some of them as models of text alone too
    return generates[0] if generates else "causal-lm"


def transformers_model(
    config: Mapping[str, Any],
    task: str,
    implementation: Any,
    dtype: torch.dtype,
    device: str,
    use_cache: bool = False,
    experts: str = USUAL_EXPERTS,
) -> Any:
    """The model of a config.json with random weights on a device, in training mode.

    Args:
        config: contents of a config.json; `model_type` names the architecture. Code that it points to is never run.
        task: a name of subject.TASKS.
        implementation: of attention, a name that transformers knows, or such names by part of the config.
        dtype: of all parameters.
        device: "meta" for no weights at all.
        use_cache: keep keys and values, as a model does unless a trainer turns it off.
        experts: the implementation of a mixture of experts, a name that transformers knows.

    Raises:
        InputError: transformers does not know the architecture, or refuses the config, or the model has no experts that could
            be run so.
    """
    dropped = ("architectures", "torch_dtype", "dtype", "auto_map", "quantization_config")
    rest = {k: v for k, v in copy.deepcopy(dict(config)).items() if k not in dropped}
    kind = rest.pop("model_type", None)
    if not isinstance(kind, str):
        raise InputError("the config has no model_type; transformers needs it to know the architecture")
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"transformers {transformers.__version__} cannot build {ascii(kind)[:80]} for {task}: it has no such model"
        )
    try:
        settings = AutoConfig.for_model(kind, **rest)
        _check_sizes(settings, rest, kind)
        literal = implementation == attention.SDPA and kind in attention.CALL_TORCH
        settings._attn_implementation = "sdpa" if literal else implementation
        settings.use_cache = use_cache
        for key in settings.sub_configs:  # as `from_pretrained` does
            part = getattr(settings, key)
            if part is not None:
                part.dtype = dtype
        if experts != USUAL_EXPERTS:
            settings._experts_implementation = experts
        auto = getattr(transformers, _AUTO[task])
        with torch.device(device):
            model = auto.from_config(settings, dtype=dtype)
    except Exception as error:  # whatever a config that makes no sense meets first
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError) and error.args == (implementation,):
            reason = "its code runs no attention but its own, which cannot be traced for this implementation; use sdpa or eager"
        raise InputError(f"transformers {transformers.__version__} cannot build {kind!r} for {task}: {reason}") from error
    if experts != USUAL_EXPERTS and not model._can_set_experts_implementation():
        raise InputError(
            f"{kind} of transformers {transformers.__version__} has no experts to run by {experts}; leave --experts out"
        )
    if literal:
        attention.intercept(model)
    if task == "contrastive":  # as a collator that asks for the loss does
        model.forward = partial(model.forward, return_loss=True)
    model.train()
    return model


def _check_sizes(settings: Any, given: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError for sizes that stand beside the section where transformers reads them, and are passed over."""
    if "text_config" not in settings.sub_configs or "text_config" in given:
        return
    text = settings.get_text_config()
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        built = getattr(text, key, None)
        if key in given and built != given[key]:
            raise ValueError(
                f"it reads sizes from text_config, which the config does not have, so that {key} {given[key]} would be {built}; "
                "use the config.json published with the model"
            )


def materialize(model: nn.Module, device: str) -> None:
    """Give every parameter that is still on the meta device random values on `device`, and move the buffers there."""
    if device == "meta":
        return
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                if id(parameter) not in made:  # tied weights stay tied
                    values = torch.empty_like(parameter, device=device).normal_(std=0.02)
                    made[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
                setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                module.register_buffer(name, torch.ones_like(buffer, device=device), persistent=False)


def checkpoint_layers(model: Any, checkpointing: str) -> None:
    """Turn gradient checkpointing on: "off", "non-reentrant" or "reentrant". Raises InputError for a model that has none."""
    if checkpointing == "off":
        return
    options = {"use_reentrant": checkpointing == "reentrant"}
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # its name before transformers 5.23
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise InputError(f"{' '.join(str(error).split())[:200]}; use --no-gradient-checkpointing") from error


def batch_of(subject: Subject, model: nn.Module, device: str) -> dict[str, torch.Tensor]:
    """Inputs and labels of one micro-batch, random where there are values."""
    s = subject.settings
    shape = (s.micro_batch_size, s.seq_len)
    highest = subject.vocabulary or 2
    task = task_of(subject)

    def integers(size: tuple[int, ...], top: int) -> torch.Tensor:
        return torch.randint(0, top, size, device=device)

    if task == "image-classification":
        side, channels = subject.config.get("image_size", 224), subject.config.get("num_channels", 3)
        size = side if isinstance(side, list) else (side, side)
        with torch.device(device) if device == "meta" else nullcontext():
            pixels = torch.zeros(s.micro_batch_size, channels, *size, device=device)
        if subject.config.get("model_type") not in _CAST_PIXELS:
            pixels = pixels.to(next(model.parameters()).dtype)
        return {"pixel_values": pixels, "labels": integers(shape[:1], 2)}
    if task == "image-text-to-text" and subject.config.get("model_type") in READ_BOTH:
        return image_text_batch(subject, device)
    if task == "contrastive":
        tower = {"image_size": 224, "num_channels": 3, **dict(subject.config.get("vision_config") or {})}
        side = tower["image_size"]
        pixels = torch.zeros(s.micro_batch_size, tower["num_channels"], side, side, device=device)
        return {"input_ids": integers(shape, highest), "pixel_values": pixels}
    batch = {"input_ids": integers(shape, highest)}
    if s.padded:
        batch["attention_mask"] = torch.ones(shape, dtype=torch.long, device=device)
    if subject.peft_config is not None and subject.peft_config.get("peft_type") in _BY_TASK:
        batch["task_ids"] = torch.zeros(s.micro_batch_size, dtype=torch.long, device=device)
    target = (s.micro_batch_size, s.target_length) if task == "seq2seq-lm" else shape
    highest = 2 if task == "token-classification" else highest
    batch["labels"] = integers(shape[:1], 2) if task == "sequence-classification" else integers(target, highest)
    return batch


Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]

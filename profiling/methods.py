"""Methods put into a real model: PEFT's adapters, and what only freezes weights."""

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import CLASSIFIER, Part, Weight

_REWRITES = (
    "linear",
    "normed",
    "keys_values",
    "submodule",
    "layer_exit",
    "loss",
    "embedded",
    "embedding_weight",
    "fuses_update",
    "state_shape",
    "storage",
)
"""What a part can change beyond choosing the weights that are trained."""
TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "image-text-to-text": "CAUSAL_LM",
}
"""PEFT's name of a task; the others have none."""
NEEDS = {
    "XLORA": ("adapters", "folders of trained LoRA adapters by name, which it mixes, and hidden_size of the model"),
    "CARTRIDGE": ("num_virtual_tokens", "how many keys and values each layer gets, such as 16"),
}
"""Keys without which PEFT fails later and says something else."""
_KINDS = (
    ("bias", "bias"),
    ("norm", "norm"),
    ("embed", "embedding"),
    ("lm_head", "head"),
    ("classifier", CLASSIFIER),
    ("score", CLASSIFIER),
)


def has_real_code(part: Part) -> bool:
    """Whether a library, or `requires_grad` alone, gives the part."""
    if part.label == "quantized_base":
        return getattr(part, "quant_type", "") in ("nf4", "fp4", "int8")
    if part.peft_config() is not None or part.label == "full":
        return True
    return all(getattr(type(part), name) is getattr(Part, name) for name in _REWRITES)


def refuse_what_no_library_has(method: Method) -> None:
    """Raise InputError for a part that neither PEFT nor bitsandbytes has."""
    for part in method.parts:
        if not has_real_code(part):
            raise InputError(f"{part.label} is in no library that could be run; plan estimate knows it from its paper")


def with_adapter(model: nn.Module, config: Mapping[str, Any], autocast_adapter_dtype: bool = True) -> nn.Module:
    """The model with an adapter of PEFT.

    Args:
        model: to be adapted in place.
        config: contents of an adapter_config.json; `peft_type` names the method.
        autocast_adapter_dtype: keep adapters of a 16-bit model in fp32, as PEFT does by default.

    Raises:
        InputError: PEFT does not know the type, an option of it, or cannot adapt this model.
    """
    import peft

    known = {kind.value: made for kind, made in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(config.get("peft_type"))
    if name not in known:
        raise InputError(f"peft_type {name!r} is not known to peft {peft.__version__}; it knows {', '.join(sorted(known))}")
    taken = inspect.signature(known[name]).parameters
    ignored = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"}
    given = {k: v for k, v in config.items() if k not in ignored}
    unknown = sorted(k for k in given if k not in taken)
    key, what = NEEDS.get(name, ("", ""))
    if key and not given.get(key):
        raise InputError(f"{name} needs {key} in the file: {what}")
    if unknown:
        raise InputError(f"{name} of peft {peft.__version__} has no option {', '.join(unknown)}; remove it or check its name")
    try:
        settings = known[name](**{**given, "inference_mode": False} if "inference_mode" in given else given)
        with warnings.catch_warnings():
            if not given.get("rank_pattern"):  # PEFT writes ranks of fused experts into it and then misses them among modules
                warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
            adapted: nn.Module = peft.get_peft_model(model, settings, autocast_adapter_dtype=autocast_adapter_dtype)
    except NotImplementedError:  # it asks a meta tensor for values
        raise
    except Exception as error:  # whatever an adapter that does not fit meets first
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"peft {peft.__version__} cannot apply {name} to this model: {reason}") from error
    return adapted


def with_method(model: nn.Module, method: Method, task: str = "causal-lm") -> nn.Module:
    """The model with the adapters of the method's parts, as PEFT adds them, and its weights frozen as the parts say.

    Storage of the base weights is left as it is. `task`: a name of subject.TASKS, which decides PEFT's own.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    method = method.for_depth(depth) if depth else method
    configs = [part.peft_config() for part in method.parts]
    for part, config in zip(method.parts, configs, strict=True):
        if config is not None:
            told = {**config, "task_type": TASK_TYPES.get(task)} if "task_type" in config else config
            if task == "image-classification" and "target_modules" in config and "modules_to_save" not in config:
                left_out = [*config.get("exclude_modules", ()), "classifier"]  # PEFT has no such task, so its user says so
                told = {**told, "modules_to_save": ["classifier"], "exclude_modules": left_out}
            model = with_adapter(model, told, getattr(part, "autocast_adapter_dtype", True))
        if getattr(part, "freeze_a", False):  # as `create_lorafa_optimizer` of peft does
            for name, parameter in model.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad_(False)
        if not getattr(part, "trains_ranknum", True):  # as peft before 0.21 does
            for name, parameter in model.named_parameters():
                if ".ranknum." in name:
                    parameter.requires_grad_(False)
    for module in list(model.modules()):
        for name, indices in getattr(module, "shira_indices", {}).items():
            module.register_buffer(f"shira_indices_{name}", indices)  # PEFT keeps them in a plain dict
    if all(config is None for config in configs):
        _select(model, method)
    else:
        others = tuple([part for part, config in zip(method.parts, configs, strict=True) if config is None])
        _select(model, Method(method.name, others), also=True)
    return model


def _select(model: Any, method: Method, also: bool = False) -> None:
    """Train the weights that the parts train, and no others; `also`: beside those that are trained already."""
    for path, parameter in model.named_parameters():
        name = path.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if not parameter.is_floating_point() or (also and (parameter.requires_grad or "original_module" in path)):
            continue
        module = re.sub(r"^model\.layers\.\d+\.", "", name.rpartition(".")[0])
        layer = re.search(r"layers\.(\d+)\.", name)
        kind = next((kind for piece, kind in _KINDS if piece in name), "linear")
        index = int(layer.group(1)) if layer else None
        layers = getattr(model.config, "num_hidden_layers", 0)
        parameter.requires_grad_(method.trains(Weight(name, kind, module, index, layers)))

"""Every part by its name on the command line, and the compositions that have a name of their own.

A part's file is imported when the part is asked for: most runs need two of them.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module

from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.patterns import PATTERNS

_CLASSES = {
    "full": "Full",
    "lora": "Lora",
    "quantized_base": "QuantizedBase",
    "adalora": "AdaLora",
    "ia3": "Ia3",
    "vera": "Vera",
    "ln_tuning": "LnTuning",
    "miss": "Miss",
    "loha": "LoHa",
    "lokr": "LoKr",
    "fourierft": "FourierFt",
    "oft": "Oft",
    "boft": "Boft",
    "adaption_prompt": "AdaptionPrompt",
    "bitfit": "BitFit",
    "shira": "Shira",
    "modules_to_save": "ModulesToSave",
    "trainable_tokens": "TrainableTokens",
    "bottleneck_adapter": "BottleneckAdapter",
    "parallel_bottleneck": "ParallelBottleneck",
    "compacter": "Compacter",
    "ssf": "Ssf",
    "lomo": "Lomo",
    "galore": "GaLore",
    "lisa": "Lisa",
    "bitdelta": "BitDelta",
    "intrinsic_said": "IntrinsicSaid",
    "xattn": "Xattn",
    "partial_layers": "PartialLayers",
    "trained_kinds": "TrainedKinds",
    "qa_lora": "QaLora",
    "peqa": "Peqa",
    "diff_pruning": "DiffPruning",
    "prompt_tuning": "PromptTuning",
    "p_tuning": "PTuning",
    "prefix_tuning": "PrefixTuning",
    "side_tuning": "SideTuning",
    "lst": "Lst",
    "res_tuning": "ResTuning",
    "reversible": "Reversible",
    "ipa": "Ipa",
    "hypertuning": "HyperTuning",
    "shifted_attention": "ShiftedAttention",
    "pruned_base": "PrunedBase",
    "offsite_tuning": "OffsiteTuning",
    "small_model": "SmallModel",
    "propetl_adapter": "ProPetlAdapter",
}


class _Parts(Mapping[str, type[Part]]):
    """The part of each name; its file has the same name."""

    def __getitem__(self, label: str) -> type[Part]:
        part: type[Part] = getattr(import_module(f"tuneplan.planner.methods.{label}"), _CLASSES[label])
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, label: object) -> bool:
        return label in _CLASSES


PARTS: Mapping[str, type[Part]] = _Parts()

PRESETS: dict[str, str] = {name: pattern.text for name, pattern in PATTERNS.items()}


def names() -> list[str]:
    """Every name that starts a method: parts and presets."""
    return sorted({*PARTS, *PRESETS})

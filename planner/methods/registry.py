"""Every part by its name on the command line, and the compositions that have a name of their own."""

from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase

PARTS: dict[str, type[Part]] = {"full": Full, "lora": Lora, "quantized_base": QuantizedBase}

PRESETS: dict[str, str] = {"qlora": "quantized_base+lora"}


def names() -> list[str]:
    """Every name that starts a method: parts and presets."""
    return sorted({*PARTS, *PRESETS})

"""A frozen base in 4 or 8 bits for every linear layer but the head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.part import Part, Weight

QUANT_TYPES = ("nf4", "fp4", "int8", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class QuantizedBase(Part):
    """The base of QLoRA.

    Attributes:
        quant_type: nf4 or fp4 (bitsandbytes Linear4bit), int8 (Linear8bitLt, Dettmers et al. 2022, LLM.int8), gptq (Frantar et
            al. 2023) or awq (Lin et al. 2024), both with groups of 128.
        double_quant: scales of nf4 and fp4 are quantized too.
        prepare_kbit: PEFT's `prepare_model_for_kbit_training` is called: every weight left in 16 bits becomes fp32, and with
            it the residual stream.
    """

    label: ClassVar[str] = "quantized_base"
    family: ClassVar[str] = "quantized"
    paper: ClassVar[str] = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs"
    source: ClassVar[str] = "section 3; bitsandbytes 0.50 nn/modules.py Linear4bit; peft 0.21 utils/other.py"
    not_modelled: ClassVar[str] = (
        "quantized storage other than uint8; a compute dtype other than the model's; LLM.int8's columns of outliers, which "
        "depend on values; kernels of gptq and awq that do not dequantize first"
    )
    merge_note: ClassVar[str] = "peft dequantizes, adds and quantizes again, which rounds"
    trains_nothing: ClassVar[bool] = True
    code_changes: ClassVar[str] = "nothing: quantization_config=BitsAndBytesConfig(load_in_4bit=True) when the model is loaded"
    clashes: ClassVar[Mapping[str, str | None]] = {"full": "quantized weights have no gradient"}

    quant_type: str = "nf4"
    double_quant: bool = True
    prepare_kbit: bool = True

    def check(self) -> None:
        """Raise InputError for an unknown quantization type."""
        if self.quant_type not in QUANT_TYPES:
            raise InputError(f"quant_type={self.quant_type!r} is not known; choose one of {', '.join(QUANT_TYPES)}")

    def storage(self, weight: Weight, dtype: str) -> str | None:
        """The format for linear layers; fp32 for the rest if the model is prepared for k-bit training.

        `Linear4bit.forward` brings its bias back to the compute dtype.
        """
        if weight.kind == "linear" and self.quant_type in ("gptq", "awq"):
            return f"{self.quant_type}-4bit"
        if weight.kind == "linear" and self.quant_type == "int8":
            return "int8"
        if weight.kind == "linear":
            return self.quant_type + ("-double" if self.double_quant else "")
        if weight.kind == "bias" and weight.owner == "linear" and self.quant_type in ("nf4", "fp4"):
            return None
        return "fp32" if self.prepare_kbit else None

    def at_inference(self) -> Part:
        """The same as it is loaded to answer: nothing is widened to fp32."""
        return replace(self, prepare_kbit=False)

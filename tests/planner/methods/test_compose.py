"""From words to methods and back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import describe, explicit, parse
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.quantized_base import QuantizedBase


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("full", (Full(),)),
        ("lora", (Lora(),)),
        (" LoRA ( r = 16 ) ", (Lora(r=16),)),
        ("qlora", (QuantizedBase(), Lora())),
        ("quantized-base+lora", (QuantizedBase(), Lora())),
        ("qlora(r=64,quant_type=fp4,double_quant=false)", (QuantizedBase("fp4", double_quant=False), Lora(r=64))),
        ("lora(target_modules=q_proj,v_proj,r=4)", (Lora(r=4, target_modules=("q_proj", "v_proj")),)),
        ("lora(target_modules=[q_proj|v_proj])", (Lora(target_modules=("q_proj", "v_proj")),)),
        ("lora(lora_alpha=32,lora_dropout=0.05)", (Lora(lora_alpha=32, lora_dropout=0.05),)),
        ("lora(use_rslora=yes,autocast_adapter_dtype=off)", (Lora(use_rslora=True, autocast_adapter_dtype=False),)),
    ],
)
def test_texts(text: str, parts: tuple[object, ...]) -> None:
    """Names, presets and options in PEFT's words give the parts they stand for."""
    assert parts == parse(text).parts


def test_short_forms() -> None:
    """--rank and --target-modules set the option of every part that has it."""
    assert (QuantizedBase(), Lora(r=32, target_modules=("q_proj", "k_proj"))) == parse(
        "qlora", {"r": 32, "target_modules": "q_proj,k_proj"}
    ).parts


def test_short_forms_are_not_dropped() -> None:
    """A short form that no part takes is an error."""
    with pytest.raises(InputError, match="full has no option r"):
        parse("full", {"r": 8})


@pytest.mark.parametrize("text", ["full+lora", "lora+full", "full+qlora"])
def test_clashing_parts_are_both_named(text: str) -> None:
    """Parts that contradict each other are an error that names both."""
    with pytest.raises(InputError, match=r"full and (lora|quantized_base) clash"):
        parse(text)


loras = st.builds(
    Lora,
    r=st.integers(1, 512),
    lora_alpha=st.integers(1, 64),
    target_modules=st.sampled_from([("all-linear",), ("q_proj",), ("q_proj", "v_proj")]),
    lora_dropout=st.sampled_from([0.0, 0.05, 0.5]),
    bias=st.sampled_from(["none", "all", "lora_only"]),
    use_rslora=st.booleans(),
    autocast_adapter_dtype=st.booleans(),
)
bases = st.builds(QuantizedBase, st.sampled_from(["nf4", "fp4"]), st.booleans(), st.booleans())


@given(st.one_of(loras.map(lambda part: [part]), st.tuples(bases, loras).map(list)))
def test_a_name_gives_its_method_back(parts: list[Lora | QuantizedBase]) -> None:
    """The short text and the text in full both parse to the parts they describe."""
    method = parse(describe(list(parts)))
    assert tuple(parts) == method.parts
    assert tuple(parts) == parse(explicit(method)).parts


@given(st.text(max_size=40))
def test_any_text_is_a_method_or_wrong_input(text: str) -> None:
    """No text ends in anything but a method or an InputError."""
    with suppress(InputError):
        assert parse(text).parts

"""LoRA: adapter parameters exactly, targets, and what 16-bit adapters change."""

import pytest

from tuneplan.planner.device_memory import checkpoint_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings


def network(model: str, method: str, **run: object) -> Network:
    """A catalog model under a method."""
    return build(read_spec(*load(model)), parse(method), Settings(seq_len=16, **run))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        ("70b", "lora(r=8)", 103_546_880),
        ("70b", "lora(r=16)", 2 * 103_546_880),
        ("70b", "qlora(r=8)", 103_546_880),
        ("7b", "lora(r=8)", 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))),
        ("7b", "lora(r=8,target_modules=q_proj,v_proj)", 32 * 8 * 2 * 2 * 4096),
        ("70b", "lora(r=8,target_modules=q_proj,v_proj)", 80 * 8 * (2 * 8192 + 8192 + 1024)),
        ("7b", "lora(r=64,target_modules=self_attn.o_proj)", 32 * 64 * 2 * 4096),
    ],
)
def test_adapter_parameters(model: str, method: str, expected: int) -> None:
    """R (in + out) for every adapted module of every layer."""
    assert expected == network(model, method).trainable_parameters


@pytest.mark.parametrize(("model", "expected"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)])
def test_base_parameters(model: str, expected: int) -> None:
    """Full fine-tuning trains every parameter of Llama 2; adapters come on top."""
    full, lora = network(model, "full"), network(model, "lora")
    assert expected == full.total_parameters == full.trainable_parameters
    assert expected + lora.trainable_parameters == lora.total_parameters


def test_all_linear_is_all_but_the_head() -> None:
    """PEFT's all-linear adapts the seven projections of a Llama layer and not lm_head."""
    adapted = {p.name.rsplit(".", 2)[0] for p in network("7b", "lora").parameters if p.adapter}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == {
        n.rsplit(".", 1)[-1] for n in adapted
    }


def test_adapters_are_fp32_unless_asked_otherwise() -> None:
    """`autocast_adapter_dtype` is on by default: four bytes a parameter; off, the model's two."""
    wide, narrow = network("7b", "lora"), network("7b", "lora(autocast_adapter_dtype=false)")
    assert 4 * wide.trainable_parameters == checkpoint_bytes(wide)
    assert 2 * narrow.trainable_parameters == checkpoint_bytes(narrow)


def test_a_model_in_fp32_has_no_other_adapters() -> None:
    """In fp32 the option changes nothing."""
    wide, narrow = (network("7b", f"lora(autocast_adapter_dtype={v})", dtype="fp32") for v in ("true", "false"))
    assert [p.stored_bytes for p in wide.parameters] == [p.stored_bytes for p in narrow.parameters]


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("all", 2 * 512), ("lora_only", 512)])
def test_biases(bias: str, expected: int) -> None:
    """`bias` trains none, all, or those of the adapted modules (Qwen2's q, k and v have biases)."""
    method = f"lora(r=8,target_modules=k_proj,bias={bias})"
    net = network("Qwen/Qwen2.5-7B", method)
    trained = [p for p in net.parameters if p.trainable and not p.adapter]
    per_layer = {p.name.split(".")[-2]: p.shape[0] for p in trained}
    assert expected == sum(size for module, size in per_layer.items() if module in ("k_proj", "v_proj"))


@pytest.mark.parametrize(
    "part", [Lora(r=0), Lora(lora_dropout=1.0), Lora(lora_dropout=-0.1), Lora(bias="some"), Lora(target_modules=())]
)
def test_impossible_options(part: Lora) -> None:
    """Ranks, probabilities, biases and targets are checked."""
    with pytest.raises(InputError):
        part.check()


@pytest.mark.parametrize(
    ("targets", "module", "expected"),
    [
        (("q_proj",), "self_attn.q_proj", True),
        (("self_attn.q_proj",), "self_attn.q_proj", True),
        (("proj",), "self_attn.q_proj", False),
        (("_proj",), "self_attn.q_proj", False),
        (("all-linear",), "mlp.up_proj", True),
        (("v_proj", "q_proj"), "self_attn.q_proj", True),
    ],
)
def test_targets_match_whole_names_at_the_end(targets: tuple[str, ...], module: str, expected: bool) -> None:
    """A target is a module's name or the end of its path, from a dot on, as in PEFT."""
    assert expected == Lora(target_modules=targets).targets(module)


def test_a_rank_above_a_narrow_matrix_is_allowed() -> None:
    """PEFT builds adapters of rank 256 beside the 128-wide key projections of Qwen2.5-0.5B without a word."""
    assert network("Qwen/Qwen2.5-0.5B", "lora(r=256)").trainable_parameters > 0

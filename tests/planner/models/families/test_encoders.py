"""What is particular to encoders: the other kernels, heads, methods that PEFT does not run, and configs that are refused."""

from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models import tasks
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import checkpointing_kinds, has_checkpointing, read_spec, suited
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models

OFF = Settings(seq_len=64, gradient_checkpointing="off")


def built(name: str, method: str = "full", task: str = "", settings: Settings = OFF, **changes: Any) -> Network:
    """The network of a small model with other keys."""
    spec = read_spec(name, ConfigReader(small_models.config(name, **changes), name), task)
    return build(spec, parse(method), settings)


@pytest.mark.traced
@pytest.mark.parametrize("name", ["distilbert", "modernbert", "albert"])
def test_other_kernels(name: str) -> None:
    """Eager attention and FlashAttention."""
    families.check_kernels(name)


@pytest.mark.parametrize("name", ["distilbert", "albert", "modernbert", "deberta-v2"])
def test_token_classification(name: str) -> None:
    """Every token has logits, and what pools the first one is not there."""
    whole, tokens = built(name), built(name, task=tasks.TOKEN_CLS)
    assert {key for key in whole.shapes() if "pool" in key or "pre_" in key} == set(whole.shapes()) - set(tokens.shapes())


def test_all_linear_for_token_classification() -> None:
    """PEFT adapts no module that it copies too, so the estimate says what it left out."""
    assert "exclude_modules=classifier" in built("bert", "lora", tasks.TOKEN_CLS).notes["assumed"]
    with pytest.raises(InputError, match="virtual tokens logits but no labels"):
        built("bert", "prompt_tuning", tasks.TOKEN_CLS)
    assert "assumed" not in built("bert", "lora(exclude_modules=classifier)", tasks.TOKEN_CLS).notes


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("distilbert", "lora", "peft trains a copy of pre_classifier, as its name"),
        ("distilbert", "prompt_tuning", "does not find the width of a DistilBERT"),
        ("albert", "prompt_tuning", "embeds tokens in 96 numbers"),
        ("modernbert", "prefix_tuning", "past_key_values, which modernbert models do not take"),
        ("deberta-v2", "prefix_tuning", "past_key_values, which deberta-v2 models do not take"),
    ],
)
def test_methods_that_peft_does_not_run(name: str, method: str, message: str) -> None:
    """The reason, and what to do."""
    with pytest.raises(InputError, match=message):
        built(name, method)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("distilbert", {"n_heads": 7}, "dim=256 is not a multiple of n_heads=7"),
        ("albert", {"num_hidden_groups": 4}, "num_hidden_groups=4 are more sets of weights than the num_hidden_layers=3"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling 'max' is not known; use cls or mean"),
        ("modernbert", {"num_attention_heads": 256}, "heads of 1 columns cannot be rotated"),
        ("modernbert", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 2"),
        ("modernbert", {"hidden_activation": "snake"}, "an activation that tuneplan does not know"),
        ("deberta-v2", {"pos_att_type": "p2p"}, "'pos_att_type' must name c2p, p2c or both"),
        ("deberta-v2", {"pos_att_type": [1]}, "'pos_att_type' must name c2p, p2c or both"),
        ("deberta-v2", {"conv_kernel_size": 3}, "the convolution after the first layer"),
        ("deberta-v2", {"attention_head_size": 32}, "attention_head_size and pooler_hidden_size must fit"),
    ],
)
def test_refused_configs(name: str, changes: dict[str, Any], message: str) -> None:
    """What the code cannot be, or what is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        read_spec(name, ConfigReader(small_models.config(name, **changes), name))


def test_layers_that_share_their_weights_have_them_once() -> None:
    """Twice as deep an ALBERT has as many weights, and LoRA trains as many."""
    for method in ("full", "lora"):
        shallow, deep = built("albert", method), built("albert", method, num_hidden_layers=6)
        assert shallow.trainable_parameters == deep.trainable_parameters
        assert shallow.total_parameters == deep.total_parameters


def test_the_targets_of_a_search() -> None:
    """LoRA without targets of its own gets those that PEFT runs with."""
    spec = read_spec("distilbert", ConfigReader(small_models.config("distilbert"), "distilbert"))
    names = suited(spec, ["full", "lora"])
    assert ["full", "lora(target_modules=q_lin,k_lin,v_lin,out_lin,lin1,lin2)"] == names
    assert built("distilbert", names[1]).trainable_parameters > 0


def test_models_without_checkpointing() -> None:
    """The search leaves it out, and a request for it is an error."""
    spec = read_spec("albert", ConfigReader(small_models.config("albert"), "albert"))
    assert not has_checkpointing(spec)
    assert ("off",) == checkpointing_kinds(spec)
    with pytest.raises(InputError, match="use --no-gradient-checkpointing"):
        built("albert", settings=Settings(seq_len=64, gradient_checkpointing="non-reentrant"))


def test_the_mean_over_tokens() -> None:
    """`classifier_pooling: mean` keeps the hidden states of all tokens, and trains the same weights."""
    assert built("modernbert").shapes() == built("modernbert", classifier_pooling="mean").shapes()

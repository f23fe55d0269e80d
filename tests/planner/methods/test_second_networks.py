"""Methods with another network than the model that is asked for: beside it, in its place, or a part of it."""

from dataclasses import replace

import pytest

from tuneplan.planner.device_memory import checkpoint_bytes
from tuneplan.planner.errors import InputError
from tuneplan.planner.memory import step_memory, walk
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.inference import inference
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.serving.offsite import offsite
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings

SPEC = read_spec(*load("Qwen/Qwen2.5-0.5B"))
SETTINGS = Settings(seq_len=64, gradient_checkpointing="off")
SIDES = ("side_tuning", "lst", "res_tuning", "ipa")


def network(method: str, **changes: object) -> Network:
    """The model under a method."""
    return build(SPEC, parse(method), Settings(seq_len=64, **{"gradient_checkpointing": "off", **changes}))  # type: ignore[arg-type]


def peak(method: str) -> int:
    """Most live bytes of a step."""
    return step_memory(network(method), SETTINGS, OPTIMIZERS["adamw"]).peak.peak_bytes


@pytest.mark.parametrize("method", SIDES)
def test_nothing_of_the_frozen_model_is_trained(method: str) -> None:
    """Every trained weight was brought by the method, and no op of the model's own layers makes a gradient."""
    net = network(method)
    assert all(p.adapter for p in net.parameters if p.trainable)
    names = {g.of.name for run in net.runs for op in run.block.ops for g in op.gradients if g.of.name}
    assert names == {p.name for p in net.parameters if p.trainable}


@pytest.mark.parametrize("method", SIDES)
def test_a_side_network_costs_inference_and_does_not_merge(method: str) -> None:
    """It runs for every token, so its FLOPs come on top."""
    found = inference(SPEC, parse(method))
    assert found.merged is None
    assert found.flops > 0


@pytest.mark.parametrize("method", [*SIDES, "reversible", "meft"])
def test_checkpointing_has_nothing_to_save(method: str) -> None:
    """The reason is said, and a search leaves such plans out."""
    with pytest.raises(InputError, match="nothing to"):
        network(method, gradient_checkpointing="non-reentrant")
    assert not parse(method).allows(Settings(gradient_checkpointing="non-reentrant"))


@pytest.mark.parametrize("method", ["lst+lora", "side_tuning+lst", "lora+res_tuning", "reversible+prefix_tuning"])
def test_what_would_need_gradients_inside_clashes(method: str) -> None:
    """A frozen walk of the model trains nothing inside it."""
    with pytest.raises(InputError, match="clash"):
        parse(method)


def test_the_base_beside_a_side_network_can_be_quantized() -> None:
    """Quantized side tuning: the same trained weights over a base of a quarter."""
    assert network("lst").trainable_parameters == network("quantized_base(prepare_kbit=false)+lst").trainable_parameters
    assert peak("quantized_base(prepare_kbit=false)+lst") < peak("lst")


def test_reversible_layers_keep_no_more_with_more_layers() -> None:
    """What the forward leaves does not grow with the layers, as that of the same adapters does without."""

    def kept(method: str, layers: int) -> int:
        net = build(replace(SPEC, num_hidden_layers=layers), parse(method), SETTINGS)
        return sum(sum(piece.segment.delta) * piece.count for piece in walk(net, SETTINGS).forward)

    assert kept("meft", 4) == kept("meft", 12)
    assert kept("parallel_adapter", 4) < kept("parallel_adapter", 12)


@pytest.mark.parametrize(("method", "words"), [
    ("lst(reduction_factor=3)", "do not divide"),
    ("lst(reduction_factor=0)", "no ratio"),
    ("res_tuning(bottleneck=0)", "no width"),
    ("reversible(bottleneck=0)", "no width"),
    ("reversible(f_arch=mlp)", "not known"),
    ("pruned_base(ratio=1)+lora", "share below 1"),
    ("pruned_base(moment=later)+lora", "not known"),
    ("offsite_tuning(emulator_layers=22)", "do not fit"),
    ("small_model(reduction_factor=3)+lora", "does not divide"),
    ("hypertuning(example_tokens=4)", "must be from"),
    ("shifted_attention(groups=0)+lora", "no number of groups"),
    ("shifted_attention(groups=3)+lora", "no multiple"),
])  # fmt: skip
def test_impossible_options(method: str, words: str) -> None:
    """What does not fit the model is said with what to do."""
    with pytest.raises(InputError, match=words):
        network(method)


def test_pruned_heads_and_channels() -> None:
    """Half of both: half of the layers' matrices, the embedding as it was; the start of the run is dense."""
    whole, half = network("full"), network("pruned_base(moment=end)+lora")
    count = {
        key: sum(p.numel for p in net.parameters if not p.adapter and p.name.endswith("_proj.weight"))
        for key, net in (("whole", whole), ("half", half))
    }
    assert 0.5 == pytest.approx(count["half"] / count["whole"], rel=0.02)
    assert network("pruned_base+lora").total_parameters == network("lora").total_parameters
    assert inference(SPEC, parse("splora")).weight_bytes < inference(SPEC, parse("lora")).weight_bytes


def test_offsite_tuning_is_the_owner_of_the_datas_part() -> None:
    """The weights that are there and those that are trained agree with what is sent."""
    net = network("offsite_tuning(emulator_layers=8)")
    sent = offsite(network("full"), SPEC.num_hidden_layers, 8)
    assert sent.sent_bytes == 2 * net.total_parameters
    assert sent.adapter_bytes == checkpoint_bytes(net)


def test_a_small_model_trains_in_place_of_the_large_one() -> None:
    """A quarter of the widths: less memory; the large model answers."""
    assert peak("peft_plug_in") < peak("lora") / 2
    assert inference(SPEC, parse("peft_plug_in")).base.flops == inference(SPEC, parse("lora")).base.flops


def test_a_hypermodel_is_a_second_model() -> None:
    """Its weights are those of the model without head, and a head that writes every layer's prefix."""
    whole = network("full")
    width = 2 * SPEC.num_hidden_layers * SPEC.num_key_value_heads * SPEC.head_dim
    body = whole.total_parameters
    head = width * (SPEC.hidden_size + 1)
    assert body + head == network("hypertuning").trainable_parameters
    assert network("hypertuning(hyper_layers=2)").trainable_parameters < network("hypertuning").trainable_parameters


def test_sparse_checkpoints() -> None:
    """SparseAdapter: 60 % of the values and a bit for each place; ProPETL: one prototype, and a bit for each layer's entries."""
    dense, sparse = (checkpoint_bytes(network(f"pfeiffer(sparsity={s})")) for s in (0.0, 0.4))
    assert 0.6 + 1 / 16 == pytest.approx(sparse / dense, rel=0.01)
    assert checkpoint_bytes(network("propetl")) < dense / 8


def test_shifted_attention_divides_the_scores() -> None:
    """Four groups: a quarter of the attention's FLOPs; the model answers with all of it."""
    flops = {
        method: sum(op.flops for run in network(method).runs for op in run.block.ops if op.name.endswith("_attention"))
        for method in ("lora", "lora+shifted_attention")
    }
    assert flops["lora"] == 4 * flops["lora+shifted_attention"]
    assert inference(SPEC, parse("lora+shifted_attention")).flops == inference(SPEC, parse("lora")).flops

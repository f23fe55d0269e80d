"""Tensor, sequence, context, expert and pipeline parallelism: what a rank has, and which layouts cannot be."""

from typing import Any

import pytest

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.graph.tensor import ACTIVATIONS
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.parallel.layout import RankMemory, rank_memory, rank_parts
from tuneplan.planner.parallel.rank_network import in_flight, layers_of_stages, local_network, stage_network
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding
from tuneplan.profiling import small_models

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
}
MIXTURE = {**CONFIG, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
RUN = Settings(seq_len=128, micro_batch_size=2, gradient_checkpointing="off")


def whole(config: dict[str, Any] = CONFIG, method: str = "full", run: Settings = RUN) -> Network:
    """The network on one GPU."""
    return build(read_spec("tiny", ConfigReader(dict(config), "tiny")), parse(method), run)


def ranked(sharding: Sharding, config: dict[str, Any] = CONFIG, method: str = "full", micro_batches: int = 8) -> RankMemory:
    """Memory of the fullest rank."""
    spec = read_spec("tiny", ConfigReader(dict(config), "tiny"))
    return rank_memory(
        spec, parse(method), RUN, OPTIMIZERS["adamw_fused"], sharding, whole(config, method), micro_batches=micro_batches
    )


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_tensor_parallel_ranks_share_the_matrices(ranks: int) -> None:
    """All matrices are split over the ranks; norms, and key/value heads beyond their number, stand on each."""
    network = whole()
    local = local_network(
        read_spec("tiny", ConfigReader(dict(CONFIG), "tiny")), parse("full"), RUN, Sharding(tensor_parallel=ranks), network
    )
    mine = {p.name: p for p in local.parameters}
    copies = max(1, ranks // 4)
    for p in network.parameters:
        split = 1 if "norm" in p.name else ranks
        split = ranks // copies if "k_proj" in p.name or "v_proj" in p.name else split
        assert p.numel == mine[p.name].numel * split, p.name


def test_sequence_parallel_ranks_keep_fewer_activations() -> None:
    """Norms and residuals of a part of the tokens; weights as before."""
    plain, parts = (ranked(Sharding(tensor_parallel=4, sequence_parallel=on)).memory.phases["forward"] for on in (False, True))
    assert plain.levels[0] == parts.levels[0]
    assert parts.levels[ACTIVATIONS] < 0.75 * plain.levels[ACTIVATIONS]


def test_context_parallel_ranks_keep_a_part_of_the_sequence() -> None:
    """A quarter of the tokens is a quarter of the activations; keys and values that pass by come on top of them."""
    alone, part = (ranked(Sharding(context_parallel=n)).memory.phases["forward"] for n in (1, 4))
    assert alone.levels[ACTIVATIONS] / 4 == pytest.approx(part.levels[ACTIVATIONS], rel=0.02)


def test_expert_parallel_ranks_share_the_experts() -> None:
    """Two ranks have two of four experts each, and all the rest."""
    network, part = whole(MIXTURE), ranked(Sharding(2, expert_parallel=2), MIXTURE).network
    sizes = {p.name: p.numel for p in part.parameters}
    for p in network.parameters:
        assert p.numel == sizes[p.name] * (2 if "experts" in p.name.split(".") else 1), p.name


@pytest.mark.parametrize("stages", [2, 3, 4, 6])
def test_stages_have_each_layer_once(stages: int) -> None:
    """Embedding on the first stage, norm and head on the last, every layer on one; nothing twice."""
    network = whole()
    parts = [stage_network(network, stages, index) for index in range(stages)]
    assert network.total_parameters == sum(part.total_parameters for part in parts)
    assert ["model.embed_tokens.weight" in {p.name for p in part.parameters} for part in parts] == [i == 0 for i in range(stages)]
    assert ["lm_head.weight" in {p.name for p in part.parameters} for part in parts] == [i == stages - 1 for i in range(stages)]


def test_a_tied_embedding_is_on_both_ends() -> None:
    """The last stage needs the matrix for the head."""
    network = whole({**CONFIG, "tie_word_embeddings": True})
    last = stage_network(network, 3, 2)
    assert "model.embed_tokens.weight" in {p.name for p in last.parameters}


def test_one_stage_is_the_whole() -> None:
    """No split at all is the plain step."""
    network = whole()
    assert step_memory(network, RUN, OPTIMIZERS["adamw_fused"]) == ranked(Sharding()).memory
    assert network is stage_network(network, 1, 0)


def test_micro_batches_in_flight() -> None:
    """1F1B holds as many as stages follow, an interleaved pipeline more, GPipe all (Narayanan et al. 2021, section 2.2)."""
    assert [4, 3, 2, 1] == [in_flight(Sharding(pipeline_parallel=4), index, 8) for index in range(4)]
    assert [2, 2, 2, 1] == [in_flight(Sharding(pipeline_parallel=4), index, 2) for index in range(4)]
    parts = Sharding(pipeline_parallel=4, pipeline_schedule="interleaved", virtual_stages=2)
    assert [5.5, 4.5, 3.5, 2.5] == [in_flight(parts, index, 8) for index in range(4)]
    assert 1 + 3 / 8 == in_flight(parts, 0, 8) / 4  # 1 + (p - 1) / (p v) of the whole model, their section 2.2.2
    assert 8 == in_flight(Sharding(pipeline_parallel=4, pipeline_schedule="gpipe"), 3, 8)


def test_the_first_stage_holds_most_activations() -> None:
    """Stage 0 of 3 has three micro-batches of two layers: as many as one micro-batch of the whole."""
    found = ranked(Sharding(pipeline_parallel=3))
    assert found.stage_peaks[0] > found.stage_peaks[1]
    alone = step_memory(whole(), RUN, OPTIMIZERS["adamw_fused"]).phases["forward"].levels[ACTIVATIONS]
    assert alone == pytest.approx(found.memory.phases["forward"].levels[ACTIVATIONS], rel=0.05)


def test_stages_of_other_layers_are_not_alike() -> None:
    """As many layers make stages alike only if they are the same layers: here one with a window, the other without."""
    spec = read_spec("x", ConfigReader(small_models.config("gemma3_text"), "x"))
    network = build(spec, parse("full"), RUN)
    kinds = [id(run.block) for run in network.runs if run.layered for _ in range(run.count)]
    parts = rank_parts(spec, parse("full"), RUN, Sharding(pipeline_parallel=len(kinds)), network)
    assert kinds[1] != kinds[2]
    assert parts[1] is not parts[2]


def test_layers_are_spread_evenly() -> None:
    """The first stages take what is left over."""
    assert [3, 3, 2] == layers_of_stages(8, 3)


def test_offloaded_activations_leave_the_device() -> None:
    """What layers save is in host memory at the end of the forward, and the peak is lower."""
    here, there = (
        step_memory(whole(), RUN, OPTIMIZERS["adamw_fused"], Sharding(offload=kinds)) for kinds in ((), ("activations",))
    )
    assert there.host.activations > 0.8 * (here.phases["forward"].end_bytes - there.phases["forward"].end_bytes)
    assert there.phases["forward"].end_bytes < here.phases["forward"].end_bytes - 0.8 * there.host.activations
    assert there.phases["backward"].end_bytes == here.phases["backward"].end_bytes


def test_fsdp_s_offload_leaves_only_units() -> None:
    """`CPUOffloadPolicy`: nothing stands on the device between steps, and the update takes place elsewhere."""
    found = step_memory(whole(), RUN, OPTIMIZERS["adamw"], Sharding(4, 3, offload=("parameters", "optimizer")))
    assert 0 == found.phases["optimizer_step"].peak_bytes
    kept = step_memory(whole(), RUN, OPTIMIZERS["adamw"], Sharding(4, 3)).phases["optimizer_step"].end_bytes
    assert kept == pytest.approx(found.host.total, rel=0.01)


@pytest.mark.parametrize(
    ("sharding", "words"),
    [
        (Sharding(tensor_parallel=3), "8 attention heads"),
        (Sharding(tensor_parallel=16), "attention heads"),
        (Sharding(pipeline_parallel=7), "more than the 6 layers"),
        (Sharding(2, expert_parallel=2), "no experts"),
    ],
)
def test_layouts_that_do_not_fit_the_model(sharding: Sharding, words: str) -> None:
    """Heads, layers and experts must be there to be split."""
    sharding.check()
    with pytest.raises(InputError, match=words):
        ranked(sharding)


@pytest.mark.parametrize(
    ("sharding", "words"),
    [
        (Sharding(tensor_parallel=0), "tensor-parallel 0"),
        (Sharding(2**9, tensor_parallel=2**9), "GPUs"),
        (Sharding(sequence_parallel=True), "sequence-parallel"),
        (Sharding(pipeline_parallel=2, virtual_stages=2), "virtual-stages"),
        (Sharding(pipeline_parallel=2, pipeline_schedule="interleaved"), "virtual-stages 2"),
        (Sharding(3, expert_parallel=2), "does not divide data-parallel 3"),
        (Sharding(8, 3, shard_group=3), "shard-group 3"),
        (Sharding(8, 0, shard_group=4), "hybrid"),
        (Sharding(8, 1, engine="fsdp"), "no stage"),
        (Sharding(8, 0, engine="fsdp"), "zero-stage 0"),
        (Sharding(8, 2, engine="ddp"), "ddp"),
        (Sharding(8, 3, engine="deepspeed", pipeline_parallel=2), "pipelines"),
        (Sharding(offload=("optimizer",)), "single"),
        (Sharding(8, 3, offload=("optimizer",)), "together"),
        (Sharding(8, 2, engine="deepspeed", offload=("parameters",)), "stage 3"),
    ],
)
def test_layouts_that_contradict_themselves(sharding: Sharding, words: str) -> None:
    """Refused whatever the model is."""
    with pytest.raises(InputError, match=words):
        sharding.check()


@pytest.mark.parametrize(
    "sharding",
    [
        Sharding(engine="megatron"),
        Sharding(offload=("disk",)),
        Sharding(pipeline_schedule="zb"),
        Sharding(2, 3, reduce_dtype="int8"),
    ],
)
def test_unknown_names(sharding: Sharding) -> None:
    """Names that are not known."""
    with pytest.raises(UnknownNameError):
        sharding.check()

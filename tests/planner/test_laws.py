"""Laws of the ledger: what must hold for every model, method and setting, whatever the numbers are."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.planner.estimate import estimate
from tuneplan.planner.memory import Phase, StepMemory, step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.replicated import bucket_bytes
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import ATTENTIONS, CHECKPOINTING, Settings
from tuneplan.planner.training.sharding import Buckets, Sharding

ONE_GPU = Sharding()
LAW = settings(max_examples=25, deadline=None, derandomize=True)
METHODS = ("full", "lora", "qlora", "lora(r=4,target_modules=q_proj,v_proj,lora_dropout=0.1,autocast_adapter_dtype=false)")
LOSSES = ("eager", "chunked", "liger")

methods = st.sampled_from(METHODS)
runs = st.builds(
    Settings,
    micro_batch_size=st.integers(1, 8),
    seq_len=st.integers(2, 300),
    dtype=st.sampled_from(["bf16", "fp32"]),
    attention=st.sampled_from(ATTENTIONS),
    loss=st.sampled_from(LOSSES),
    gradient_checkpointing=st.sampled_from(CHECKPOINTING),
    accumulating=st.booleans(),
    padded=st.booleans(),
    compute_capability=st.sampled_from([(7, 5), (8, 0), (9, 0)]),
)


@st.composite
def configs(draw: st.DrawFn, least_layers: int = 1) -> dict[str, Any]:
    """A small config of the Llama shape."""
    groups = draw(st.sampled_from([1, 2, 4]))
    key_heads = draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    return {
        "model_type": draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "granite"])),
        "hidden_size": groups * key_heads * head_dim,
        "num_attention_heads": groups * key_heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "intermediate_size": draw(st.integers(16, 200)),
        "num_hidden_layers": draw(st.integers(least_layers, least_layers + 4)),
        "vocab_size": draw(st.integers(10, 500)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def spec_of(config: dict[str, Any], id: str = "test") -> ModelSpec:
    """The spec of a config."""
    return read_spec(id, ConfigReader(config, id))


def memory_of(
    config: dict[str, Any], method: str, run: Settings, optimizer: str = "adamw", sharding: Sharding = ONE_GPU
) -> StepMemory:
    """The memory of one step."""
    network = build(spec_of(config), parse(method), run)
    return step_memory(network, run, OPTIMIZERS[optimizer], sharding)


def peak_of(config: dict[str, Any], method: str, run: Settings, *rest: Any) -> int:
    """Allocated bytes at the peak."""
    return memory_of(config, method, run, *rest).peak.peak_bytes


def network_of(config: dict[str, Any], method: str) -> Network:
    """The model under a method, with ordinary settings."""
    return build(spec_of(config), parse(method), Settings(seq_len=16))


DEEP = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@LAW
@given(config=configs(), method=methods, run=runs, optimizer=st.sampled_from(sorted(OPTIMIZERS)))
def test_levels_sum_to_peaks(config: dict[str, Any], method: str, run: Settings, optimizer: str) -> None:
    """In every phase the components are a partition of the peak: none is negative, and together they are it."""
    memory = memory_of(config, method, run, optimizer)
    for name, phase in memory.phases.items():
        assert phase.peak_bytes == sum(phase.levels), name
        assert all(level >= 0 for level in phase.levels), name
        assert 0 <= phase.end_bytes <= phase.peak_bytes, name
    assert memory.peak.peak_bytes == max(phase.peak_bytes for phase in memory.phases.values())


@LAW
@given(config=configs(least_layers=3), method=methods, run=runs)
def test_a_step_ends_where_the_next_begins(config: dict[str, Any], method: str, run: Settings) -> None:
    """After the backward there are weights, states and gradients, and nothing of the activations is left."""
    check_end(config, method, run)


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        *[(method, 1) for method in METHODS],
        ("full", 2),
        *[(method, 2) for method in METHODS[1:]],
    ],
)
def test_shallow_models_end_alike(method: str, layers: int) -> None:
    """The same for one and two layers, where the first layer of a frozen model is a block of its own."""
    check_end({**DEEP, "num_hidden_layers": layers}, method, Settings(seq_len=16, gradient_checkpointing="off"))


def check_end(config: dict[str, Any], method: str, run: Settings) -> None:
    """Backward and optimizer step end at weights + states + gradients."""
    memory = memory_of(config, method, run)
    network = build(spec_of(config), parse(method), run)
    gradients = sum(p.stored_bytes * p.count for p in network.parameters if p.trainable)
    start = memory.phases["load"].end_bytes + memory.phases["optimizer_step"].levels[2]
    assert start + gradients == memory.phases["backward"].end_bytes == memory.phases["optimizer_step"].end_bytes


@LAW
@given(config=configs(), method=methods, run=runs, more=st.integers(1, 8))
def test_bytes_grow_with_the_batch(config: dict[str, Any], method: str, run: Settings, more: int) -> None:
    """A larger micro-batch never takes less memory, in any phase."""
    grow(config, method, run, replace(run, micro_batch_size=run.micro_batch_size + more))


@LAW
@given(config=configs(), method=methods, run=runs, more=st.integers(1, 300))
def test_bytes_grow_with_the_length(config: dict[str, Any], method: str, run: Settings, more: int) -> None:
    """Longer sequences never take less memory."""
    grow(config, method, run, replace(run, seq_len=run.seq_len + more))


def grow(config: dict[str, Any], method: str, small: Settings, large: Settings) -> None:
    """Every phase of the larger run is at least as large."""
    less, more = memory_of(config, method, small), memory_of(config, method, large)
    for name, phase in less.phases.items():
        assert phase.peak_bytes <= more.phases[name].peak_bytes, name


@LAW
@given(config=configs(), rank=st.integers(1, 7), base=st.sampled_from(["lora", "qlora"]), run=runs)
def test_bytes_grow_with_the_rank(config: dict[str, Any], rank: int, base: str, run: Settings) -> None:
    """A higher rank never takes less memory, and always has more parameters."""
    less, more = f"{base}(r={rank})", f"{base}(r={rank + 1})"
    assert peak_of(config, less, run) <= peak_of(config, more, run)
    assert network_of(config, less).trainable_parameters < network_of(config, more).trainable_parameters


@LAW
@given(config=configs(), method=methods, run=runs)
def test_bytes_grow_with_the_layers(config: dict[str, Any], method: str, run: Settings) -> None:
    """Another layer takes more memory: its weights at least."""
    deeper = {**config, "num_hidden_layers": config["num_hidden_layers"] + 1}
    assert peak_of(config, method, run) < peak_of(deeper, method, run)


@LAW
@given(config=configs(), run=runs)
def test_more_target_modules_cost_more(config: dict[str, Any], run: Settings) -> None:
    """LoRA on a module more has more parameters and takes no less memory; the last of the chain is all-linear."""
    modules = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    previous = (0, 0)
    for count in range(1, len(modules) + 1):
        method = f"lora(r=4,target_modules={','.join(modules[:count])})"
        found = (network_of(config, method).trainable_parameters, peak_of(config, method, run))
        assert previous[0] < found[0]
        assert previous[1] <= found[1]
        previous = found
    everything = network_of(config, "lora(r=4)").trainable_parameters, peak_of(config, "lora(r=4)", run)
    assert everything == previous


@LAW
@given(
    method=methods,
    run=runs,
    layers=st.integers(24, 40),
    ranks=st.sampled_from([2, 4, 8, 64]),
    optimizer=st.sampled_from(["adamw", "adamw_fused", "adamw_8bit", "sgd_momentum"]),
)
def test_each_stage_shards_more(method: str, run: Settings, layers: int, ranks: int, optimizer: str) -> None:
    """A rank of a higher stage holds no more than one of a lower: ZeRO-3, 2 and 1 of DeepSpeed, and FSDP's stages 3 and 2.

    DeepSpeed's buckets are left out: their sizes are fixed, so that a small model under ZeRO-1 holds more than under DDP.
    """
    config = {**DEEP, "num_hidden_layers": layers, "vocab_size": 16}
    if method.startswith("qlora"):
        run = replace(run, accumulating=False)
    run = replace(run, precision="master-weights" if run.precision == "pure" and run.dtype != "fp32" else run.precision)
    small = Buckets(0, 0, 0, 0)
    peaks = [
        peak_of(config, method, run, optimizer, Sharding(ranks, stage, engine="deepspeed", buckets=small)) for stage in (3, 2, 1)
    ]
    # parts are rounded up one by one, what is flat once; stage 2 has its flat gradients before stage 1 has made so many
    part = network_of(config, method).trainable_parameters * 4 // ranks
    assert all(more <= less * 1.002 + part for more, less in pairwise(peaks))
    units = [peak_of(config, method, run, optimizer, Sharding(ranks, stage, engine="fsdp")) for stage in (3, 2)]
    assert units[0] <= units[1] * 1.002


@LAW
@given(config=configs(), method=methods, run=runs, stage=st.integers(0, 3))
def test_one_rank_shards_nothing(config: dict[str, Any], method: str, run: Settings, stage: int) -> None:
    """Any stage on one GPU is the single GPU."""
    assert memory_of(config, method, run) == memory_of(config, method, run, "adamw", Sharding(1, stage))


@LAW
@given(config=configs(), method=methods, run=runs, ranks=st.integers(2, 16))
def test_ddp_adds_buckets_alone(config: dict[str, Any], method: str, run: Settings, ranks: int) -> None:
    """A rank of DDP holds the single GPU's memory and a second copy of the gradients."""
    gradients = bucket_bytes(build(spec_of(config), parse(method), run).parameters)
    single, rank = memory_of(config, method, run), memory_of(config, method, run, "adamw", Sharding(ranks, 0))
    for name in ("forward", "backward", "optimizer_step"):
        assert single.phases[name].peak_bytes + gradients == rank.phases[name].peak_bytes


@LAW
@given(run=runs, method=methods, kind=st.sampled_from(["non-reentrant", "reentrant"]))
def test_checkpointing_never_raises_the_peak_of_a_deep_model(run: Settings, method: str, kind: str) -> None:
    """With many layers, recomputing one of them takes no more than keeping all of them."""
    off = replace(run, gradient_checkpointing="off")
    assert peak_of(DEEP, method, replace(run, gradient_checkpointing=kind)) <= peak_of(DEEP, method, off)


@LAW
@given(config=configs(), method=methods, run=runs)
def test_a_lighter_loss_never_raises_the_peak(config: dict[str, Any], method: str, run: Settings) -> None:
    """The chunked loss holds no more than the eager one where the vocabulary is larger than everything else."""
    wide = {**config, "vocab_size": 20_000}
    run = replace(run, micro_batch_size=4, seq_len=256, dtype="bf16")
    assert peak_of(wide, method, replace(run, loss="chunked")) <= peak_of(wide, method, replace(run, loss="eager"))


@LAW
@given(config=configs(), run=runs)
def test_frozen_weights_save_their_gradients_and_states(config: dict[str, Any], run: Settings) -> None:
    """LoRA holds less optimizer state and fewer gradients than full fine-tuning; QLoRA holds fewer weights than LoRA."""
    wide = {**config, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 16}
    run = replace(run, dtype="bf16")
    full, lora, qlora = (memory_of(wide, f, run).phases["optimizer_step"].levels for f in ("full", "lora(r=2)", "qlora(r=2)"))
    assert lora[1] < full[1]
    assert lora[2] < full[2]
    assert qlora[0] < lora[0]


@LAW
@given(config=configs(), method=methods, run=runs)
def test_no_size_depends_on_a_name(config: dict[str, Any], method: str, run: Settings) -> None:
    """One config under two ids has the same bytes, parameters and phases."""
    found = []
    for id in ("meta-llama/Llama-2-7b-hf", "a/b.json"):
        network = build(spec_of(config, id), parse(method), run)
        sizes = [(p.name, p.shape, p.storage, p.stored_bytes, p.count) for p in network.parameters]
        found.append((sizes, step_memory(network, run, OPTIMIZERS["adamw"])))
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_memory_depends_on_the_card_only_through_the_attention_kernel(method: str) -> None:
    """Allocated bytes are the same on every card from Ampere on; before it sdpa's kernel changes, and with it the memory."""
    spec = spec_of({**DEEP, "num_hidden_layers": 3})
    run = Settings(micro_batch_size=1, seq_len=512, gradient_checkpointing="off")
    found: dict[bool, dict[str, dict[str, Phase]]] = {True: {}, False: {}}
    for gpu in load_gpus().values():
        request = Request(spec, parse(method), run, OPTIMIZERS["adamw"], gpu=gpu)
        recent = gpu.compute_capability is None or gpu.compute_capability >= (8, 0)
        found[recent][gpu.id] = estimate(request, advice=False).memory.phases
    assert {"a100-80g", "h200", "rtx-4090"} <= set(found[True])
    assert {"t4", "v100-32g"} <= set(found[False])
    for group in found.values():
        assert 1 == len({repr(phases) for phases in group.values()})
    differs = found[True]["a100-80g"] != found[False]["t4"]
    assert differs == (method != "qlora")  # queries of a base prepared for k-bit training are fp32, which flash never takes


@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_memory_depends_on_no_card_where_the_kernel_is_given(attention: str) -> None:
    """With eager or flash attention the allocated bytes are the same on all cards."""
    spec = spec_of({**DEEP, "num_hidden_layers": 3})
    run = Settings(micro_batch_size=1, seq_len=128, attention=attention)
    requests = [Request(spec, parse("lora"), run, OPTIMIZERS["adamw"], gpu=gpu) for gpu in load_gpus().values()]
    assert 1 == len({estimate(request, advice=False).allocated_bytes for request in requests})


BATCHES = [1, 2, 4, 8, 1, 3]
LENGTHS = [256, 128, 64, 512, 2, 77]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("layers", [1, 6])
def test_arrays_give_what_ints_give_one_by_one(method: str, checkpointing: str, attention: str, loss: str, layers: int) -> None:
    """One walk with numpy arrays of batches and lengths is exactly as many walks with ints: peaks, ends and levels."""
    config = {**DEEP, "hidden_size": 256, "num_hidden_layers": layers, "vocab_size": 2000}
    run = Settings(gradient_checkpointing=checkpointing, attention=attention, loss=loss)
    many: Any = replace(run, micro_batch_size=np.array(BATCHES), seq_len=np.array(LENGTHS))  # type: ignore[arg-type]
    together = memory_of(config, method, many)
    for index, (batch, length) in enumerate(zip(BATCHES, LENGTHS, strict=True)):
        alone = memory_of(config, method, replace(run, micro_batch_size=batch, seq_len=length))
        at = at_index(index)
        for name, phase in alone.phases.items():
            found = together.phases[name]
            assert phase.peak_bytes == at(found.peak_bytes), (name, batch, length)
            assert phase.end_bytes == at(found.end_bytes), (name, batch, length)
            assert phase.levels == [at(level) for level in found.levels], (name, batch, length)


def at_index(index: int) -> Callable[[Any], int]:
    """Take one configuration out of a size, which is one number where it does not vary."""
    return lambda size: int(np.broadcast_to(size, (len(BATCHES),))[index])


@LAW
@given(config=configs(), method=methods, run=runs, batches=st.lists(st.integers(1, 16), min_size=2, max_size=4))
def test_arrays_agree_for_random_models(config: dict[str, Any], method: str, run: Settings, batches: list[int]) -> None:
    """The same for random models, dtypes, accumulation, padding and cards: the peak over all phases is exact."""
    many: Any = replace(run, micro_batch_size=np.array(batches))  # type: ignore[arg-type]
    together = memory_of(config, method, many).phases
    for index, batch in enumerate(batches):
        alone = memory_of(config, method, replace(run, micro_batch_size=batch)).phases
        for name, phase in alone.items():
            assert phase.peak_bytes == int(np.broadcast_to(together[name].peak_bytes, (len(batches),))[index])


def test_arrays_of_both_axes_broadcast() -> None:
    """A column of batches against a row of lengths is the table of both."""
    run = Settings(gradient_checkpointing="off")
    axes: Any = replace(run, micro_batch_size=np.array([[1], [2]]), seq_len=np.array([[8, 16, 32]]))  # type: ignore[arg-type]
    table = memory_of(DEEP, "lora", axes).phases["backward"].peak_bytes
    expected = [
        [memory_of(DEEP, "lora", replace(run, micro_batch_size=b, seq_len=n)).phases["backward"].peak_bytes for n in (8, 16, 32)]
        for b in (1, 2)
    ]
    assert expected == np.asarray(table).tolist()

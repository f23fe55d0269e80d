"""Host memory of a node, and disk: loading, offloading, gathering and saving."""

import pytest

from tuneplan.planner.device_memory import LOADING_SHARD_BYTES
from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.host_memory import RNG_BYTES, Checkpoints, HostMemory, host_memory
from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.network import build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding

PARAMETERS = 6_738_415_616
ONLY_MODEL = Checkpoints(only_model=True)


def of(
    method: str = "full",
    sharding: Sharding = SINGLE,
    checkpoints: Checkpoints = ONLY_MODEL,
    model: str = "7b",
    optimizer: str = "adamw",
    precision: str = "pure",
) -> HostMemory:
    """The host memory of a node of eight."""
    settings = sharding.settings(Settings(seq_len=64, precision=precision))
    network = build(read_spec(*load(model)), parse(method), settings)
    memory = step_memory(network, settings, OPTIMIZERS[optimizer], sharding)
    return host_memory(network, memory, OPTIMIZERS[optimizer], sharding, precision == "master-weights", checkpoints, 8)


def test_full_fine_tuning_is_the_saved_state_dict() -> None:
    """Saving gathers the whole model, more than one file of 5 GB that loading maps."""
    assert 2 * PARAMETERS == of().peak_bytes


def test_lora_is_one_file_of_the_checkpoint() -> None:
    """The adapter is small, so loading decides; a model below 5 GB is one file."""
    assert LOADING_SHARD_BYTES == of("lora").peak_bytes
    assert 2 * 494_032_768 == of("lora", model="qwen2.5-0.5b").peak_bytes


def test_paged_states_are_host_memory() -> None:
    """Two fp32 states of every large weight live there, whatever else is, and they are saved too."""
    paged, kept = (of(optimizer="paged_adamw_32bit", checkpoints=Checkpoints(only_model=only)) for only in (True, False))
    assert 8 * PARAMETERS == pytest.approx(paged.training_bytes, rel=1e-3)
    assert paged.training_bytes + 2 * PARAMETERS == paged.peak_bytes
    assert kept.saved_bytes > paged.saved_bytes + paged.training_bytes


def test_ways_to_load() -> None:
    """Eight ranks: a file each, the whole model once, or eight times; FSDP has it once unless it is told otherwise."""
    eight = Sharding(8, 3)
    loaded = {name: of(sharding=eight, checkpoints=Checkpoints(loading=name)).loading_bytes for name in ("by-file", "rank0")}
    every = of(sharding=eight, checkpoints=Checkpoints(loading="every-rank")).loading_bytes
    assert {"by-file": 8 * LOADING_SHARD_BYTES, "rank0": 2 * PARAMETERS} == loaded
    assert (8 * 2 * PARAMETERS, loaded["rank0"]) == (every, of(sharding=eight).loading_bytes)
    assert 8 * LOADING_SHARD_BYTES == of(sharding=Sharding(8)).loading_bytes


def test_states_of_all_ranks_are_saved() -> None:
    """A checkpoint with AdamW is three times the weights however they are split, 16 bytes less 4 a weight under FSDP's fp32."""
    alone = of(checkpoints=Checkpoints())
    split = of(sharding=Sharding(8, 3), checkpoints=Checkpoints())
    wide = of(sharding=Sharding(8, 3), checkpoints=Checkpoints(), precision="master-weights")
    assert 6 * PARAMETERS == pytest.approx(alone.saved_bytes, rel=1e-3)
    assert alone.saved_bytes == pytest.approx(split.saved_bytes, rel=1e-3)
    assert 12 * PARAMETERS == pytest.approx(wide.saved_bytes, rel=1e-3)


def test_sharded_checkpoints_spread_over_nodes() -> None:
    """Each of two nodes stages half of a sharded checkpoint; the first gathers a full one whole."""
    full, sharded = (of(sharding=Sharding(16, 3), checkpoints=Checkpoints(state_dict=name)) for name in ("full", "sharded"))
    assert full.saving_bytes == pytest.approx(2 * sharded.saving_bytes, rel=1e-6)
    assert full.saved_bytes == sharded.saved_bytes


def test_offloaded_states_and_weights() -> None:
    """ZeRO-Offload keeps 16 bytes a trained weight on the hosts (fp32 weight, gradient, two states), FSDP all model states."""
    zero = of(sharding=Sharding(8, 2, engine="deepspeed", offload=("optimizer",)))
    fsdp = of(sharding=Sharding(8, 3, offload=("parameters", "optimizer")), precision="master-weights")
    assert 16 * PARAMETERS == pytest.approx(zero.training_bytes, rel=1e-3)
    assert 16 * PARAMETERS == pytest.approx(fsdp.training_bytes, rel=1e-3)


def test_kept_checkpoints() -> None:
    """One more than the limit is on disk while it is written, with the random states of every rank."""
    saved = of(sharding=Sharding(8, 3), checkpoints=Checkpoints(total_limit=3))
    assert 4 * saved.saved_bytes == saved.kept_bytes
    assert 8 * RNG_BYTES == saved.saved_bytes - saved.saving_bytes


@pytest.mark.parametrize("checkpoints", [Checkpoints("torrent"), Checkpoints(state_dict="half"), Checkpoints(total_limit=0)])
def test_what_does_not_exist(checkpoints: Checkpoints) -> None:
    """Unknown ways and no checkpoint at all are refused."""
    with pytest.raises((InputError, UnknownNameError)):
        checkpoints.check()

"""Traffic of clipping and the update, counted by hand for one weight of a known size."""

import pytest

from tuneplan.planner.graph.tensor import WEIGHTS, Storage, Tensor
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.timing.optimizer_step import TRAFFIC, update_bytes
from tuneplan.planner.training.optimizers import OPTIMIZERS, find

COUNT = 2**20


def parameter(storage: str = "bf16", trainable: bool = True) -> Parameter:
    """Two weights of 1024 x 512."""
    shape = (1024, 512)
    tensor = Tensor(Storage(0, WEIGHTS), shape, storage, trainable, "w")
    return Parameter("w", shape, storage, trainable, False, 0, 2, tensor)


def moved(name: str, storage: str = "bf16", master: bool = False, clip: bool = False, shards: int = 1) -> float:
    """Bytes moved for each weight."""
    return update_bytes(find(name), [parameter(storage)], master, clip, shards).moved / COUNT


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw", 40), ("adamw_fused", 14), ("adamw_8bit", 10), ("sgd", 6), ("sgd_momentum", 16), ("lion", 14)],
)
def test_bytes_for_each_bf16_weight(name: str, expected: int) -> None:
    """Foreach AdamW streams 20 tensors, fused 7; 8-bit states are a byte each way; 32-bit Lion's are four."""
    assert expected == moved(name)


def test_fp32_doubles_bf16() -> None:
    """Without states of their own dtype everything is as wide as the weight."""
    assert 2 * moved("adamw", "bf16") == moved("adamw", "fp32")


def test_clipping_reads_gradients_twice_and_writes_them_once() -> None:
    """Three passes over 2-byte gradients."""
    assert moved("adamw") + 6 == moved("adamw", clip=True)


def test_master_weights_update_in_fp32_and_convert() -> None:
    """20 passes of 4 bytes, and 2 + 4 bytes each for widening the gradient and narrowing the weight."""
    assert moved("adamw", master=True) == 20 * 4 + 12


def test_shards_divide_the_update() -> None:
    """ZeRO: each of four ranks updates a quarter."""
    assert moved("adamw", shards=4) == 10


def test_frozen_weights_cost_nothing() -> None:
    """Only trained weights are updated."""
    update = update_bytes(find("adamw"), [parameter(trainable=False)], False, True)
    assert (update.moved, update.paged, update.launches) == (0, 0, 0)


def test_paged_states_cross_the_bus() -> None:
    """Two bytes of 8-bit state a weight live in host memory; other optimizers page nothing."""
    assert update_bytes(find("paged_adamw_8bit"), [parameter()], False, False).paged == 2 * COUNT
    assert update_bytes(find("adamw"), [parameter()], False, False).paged == 0


def test_traffic_names_optimizers_of_the_registry() -> None:
    """No entry for an optimizer that does not exist."""
    assert set(TRAFFIC) <= set(OPTIMIZERS)

"""Weights as deployed: exact bytes of small matrices, and whole models."""

import pytest

from tuneplan.planner.errors import InputError, UnknownNameError
from tuneplan.planner.models.lookup import find, load
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.serving.weight_formats import FORMATS, find_format, network_of, served_weights, sized_weights


def network(name: str) -> Network:
    """A catalog model's parameters."""
    return network_of(read_spec(*load(name)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", 2 * 256 * 512),
        ("fp16", 2 * 256 * 512),
        ("fp8", 256 * 512 + 4 * 256),
        ("int8", 256 * 512 + 4 * 256),
        ("gptq", 256 * 512 // 2 + 256 * 4 * 2 + 256 * 4 // 2 + 4 * 512),
        ("awq", 256 * 512 // 2 + 256 * 4 * 2 + 256 * 4 // 2),
        ("nf4", 256 * 512 // 2 + 4 * 2048 + 512),
    ],
)
def test_bytes_of_a_matrix(name: str, expected: int) -> None:
    """256 outputs x 512 inputs: packed weights, scales, zeros, and GPTQ's index of groups."""
    assert expected == FORMATS[name].matrix_bytes(256, 512)


def test_a_whole_model_in_16_bits_is_two_bytes_a_parameter() -> None:
    """The catalog's checked count, twice."""
    weights = served_weights(network("7b"), FORMATS["bf16"])
    assert (find("7b").parameters, 2 * find("7b").parameters) == (weights.parameters, weights.total_bytes)


def test_embeddings_are_not_read_but_tied_ones_are() -> None:
    """A step reads a row of the embedding table; a tied table is the head, and is read whole."""
    untied = served_weights(network("7b"), FORMATS["bf16"])
    assert 2 * 32000 * 4096 == untied.total_bytes - untied.read_bytes
    tied = served_weights(network("qwen2.5-0.5b"), FORMATS["bf16"])
    assert tied.total_bytes == tied.read_bytes


@pytest.mark.parametrize("name", list(FORMATS))
def test_tensor_parallelism_splits_all_but_norms(name: str) -> None:
    """Eight shares are the whole, but for norms on each and rounding."""
    one, eight = (served_weights(network("7b"), FORMATS[name], ways) for ways in (1, 8))
    norms = 2 * 4096 * 65
    assert one.total_bytes + 7 * norms == pytest.approx(8 * eight.gpu_bytes, rel=1e-5)


def test_formats_are_ordered_by_size() -> None:
    """Fewer bits, fewer bytes; double quantization less than plain NF4."""
    sizes = [served_weights(network("8b"), FORMATS[n]).total_bytes for n in ("bf16", "fp8", "nf4", "gptq", "awq", "nf4-double")]
    assert sorted(sizes, reverse=True) == sizes


def test_a_checkpoint_of_a_given_size() -> None:
    """Split evenly, all of it read."""
    weights = sized_weights(1001, 2, 16)
    assert (1001, 501, 501, 0) == (weights.total_bytes, weights.gpu_bytes, weights.read_bytes, weights.parameters)


def test_refusals() -> None:
    """Unknown formats and no GPUs."""
    with pytest.raises(UnknownNameError, match="awq"):
        find_format("awk")
    with pytest.raises(InputError, match="tensor-parallel 0"):
        served_weights(network("7b"), FORMATS["bf16"], 0)

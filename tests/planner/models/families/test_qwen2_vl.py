"""What is particular to Qwen2-VL and Qwen2.5-VL: windows, flat configs, images of any size, and configs that are refused."""

from dataclasses import replace
from typing import Any

import families
import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.families.qwen2_vl import Qwen2VlSpec, _cut
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import family_matrix, small_models

OFF = Settings(micro_batch_size=2, seq_len=200, gradient_checkpointing="off", image_size=(96, 112))


def built(
    name: str, method: str = "full", settings: Settings = OFF, vision: dict[str, Any] | None = None, **keys: Any
) -> Network:
    """The network of a small model with other keys, `vision` those of its tower."""
    config = small_models.config(name, **keys)
    config["vision_config"] |= vision or {}
    return build(read_spec(name, ConfigReader(config, name)), parse(method), settings)


@pytest.mark.traced
def test_other_kernels() -> None:
    """Eager attention, FlashAttention, and a cache, within windows."""
    families.check_kernels("qwen2_5_vl")


@pytest.mark.traced
@pytest.mark.parametrize(
    ("name", "method", "changes"),
    [
        ("qwen2_5_vl", "lora", {"images": 2, "image_size": (48, 96)}),
        ("qwen2_5_vl", "full(frozen=visual)", {}),
        ("qwen2_vl", "full", {"images": 0}),
    ],
)
def test_steps(name: str, method: str, changes: dict[str, Any]) -> None:
    """Two images; a frozen tower; text alone."""
    settings = replace(OFF, **changes)
    trained, peak = family_matrix.traced(small_models.load(name), method, settings)
    network, memory = family_matrix.estimated(small_models.load(name), method, settings)
    assert trained == network.trainable_parameters
    assert peak == pytest.approx(max(memory.phases[p].peak_bytes for p in family_matrix.STEP_PHASES), rel=0.001)


@pytest.mark.parametrize(("side", "pieces"), [(8, [(4, 2)]), (9, [(4, 2), (1, 1)]), (3, [(3, 1)]), (4, [(4, 1)])])
def test_windows_of_a_side(side: int, pieces: list[tuple[int, int]]) -> None:
    """As many whole ones as there are, and what is left."""
    assert pieces == _cut(side, 4)


@pytest.mark.traced
@pytest.mark.parametrize("size", [(96, 112), (64, 64), (16, 144)])
def test_windows_are_those_of_transformers(size: tuple[int, int]) -> None:
    """Their lengths, and how many of each."""
    torch = pytest.importorskip("torch")
    vision_utils = pytest.importorskip("transformers.vision_utils")
    from tuneplan.planner.models.assembly import Assembly
    from tuneplan.planner.models.families.qwen2_vl import _parts

    spec = read_spec("x", ConfigReader(small_models.config("qwen2_5_vl"), "x")).sized(size)
    assert isinstance(spec, Qwen2VlSpec)
    grid = torch.tensor([[1, *spec.tower.grid]])
    _, ends = vision_utils.get_vision_window_index(grid, spec.tower.merge, 64, spec.tower.patch_size)
    theirs = sorted((ends[1:] - ends[:-1]).tolist())
    parts = _parts(Assembly(parse("full"), replace(OFF, micro_batch_size=1), spec), spec, 0)
    assert theirs == sorted(length for count, length in parts for _ in range(count))


def test_a_flat_config_is_that_with_a_section() -> None:
    """On the hub the language model's keys stand beside the tower's section."""
    flat = small_models.config("qwen2_5_vl")
    apart = ("vision_config", "model_type", "image_token_id", "video_token_id")
    text = {key: value for key, value in flat.items() if key not in apart}
    sectioned = {**{key: flat[key] for key in apart}, "text_config": {**text, "model_type": "qwen2_5_vl_text"}}
    specs = [read_spec("x", ConfigReader(config, "x")) for config in (flat, sectioned)]
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2_5_vl", {"vision": {"fullatt_block_indexes": 3}}, "'fullatt_block_indexes' must be a list"),
        ("qwen2_5_vl", {"vision": {"window_size": 8}}, "window_size is smaller than a token of 16 pixels"),
        ("qwen2_5_vl", {"vision": {"out_hidden_size": 100}}, "the tower gives 100 values a token"),
        ("qwen2_5_vl", {"use_sliding_window": True}, "use_sliding_window gives windows to some layers"),
        ("qwen2_vl", {"vision": {"mlp_ratio": 0}}, "'mlp_ratio' is 0, but must be"),
        ("qwen2_vl", {"vision": {"embed_dim": 100}}, "embed_dim=100 does not give heads of a multiple of 4"),
        ("qwen2_vl", {"text_config": {"model_type": "bert"}}, "model_type 'bert' is a part of Qwen2-VL"),
    ],
)
def test_refused_configs(name: str, changes: dict[str, Any], message: str) -> None:
    """What cannot be, or is not planned, is said with its reason."""
    with pytest.raises(InputError, match=message):
        built(name, **changes)

"""Batches of text and images as the processors of transformers make them, by model type."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.vision_utils import get_vision_cu_seqlens

from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.packed_tower import TAPS
from tuneplan.planner.models.registry import read_spec
from tuneplan.profiling.subject import Subject

Batch = dict[str, torch.Tensor]


def image_text_batch(subject: Subject, device: str) -> Batch:
    """Token ids of which the first are those of images, labels, and what stands for the images; text alone without images.

    Raises InputError for a config that cannot be read, or images of a size that the model does not take.
    """
    s = subject.settings
    spec = _spec_of(subject)
    key, default, make = _KINDS[str(subject.config["model_type"])]
    token = int(subject.config.get(key, default))
    shape = (s.micro_batch_size, s.seq_len)
    ids = torch.randint(0, min(token, spec.vocab_size), shape, device=device)
    masks = {"attention_mask": torch.ones(shape, dtype=torch.long, device=device)} if s.padded else {}
    if not s.images:
        return {"input_ids": ids, "labels": ids.clone(), **masks}
    for number in range(s.images):  # text stands between them
        first = number * (s.seq_len // s.images)
        ids[:, first : first + spec.image_tokens] = token
    batch = {"input_ids": ids, "labels": ids.clone(), **masks}
    return {**batch, **make(spec, ids, token, s.micro_batch_size * s.images, device, s.padded)}


def _llava(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    tower = spec.tower
    return {"pixel_values": torch.zeros(images, tower.num_channels, *tower.image_size, device=device)}


def _gemma(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    """Pixels, and which tokens are of an image (1), or for PaliGemma of the answer."""
    return {**_llava(spec, ids, token, images, device, padded), "token_type_ids": (ids == token).long()}


def _qwen_vl(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    """Patches of all images behind each other, their grids, and which tokens are of an image (1).

    The model's code reads values of the last two and makes tables of positions of them: on the meta device they lie on the host,
    and the tables are given.
    """
    tower = spec.tower
    host = "cpu" if device == "meta" else device
    count = images * tower.patches
    kinds = torch.zeros(ids.shape, dtype=torch.long, device=host)
    each = images // len(ids)
    for number in range(each):
        first = number * (ids.shape[1] // each)
        kinds[:, first : first + spec.image_tokens] = 1
    grids = torch.tensor([[1, *tower.grid]] * images, device=host)
    batch = {
        "mm_token_type_ids": kinds,
        "pixel_values": torch.zeros(count, math.prod(tower.patch_values), device=device),
        "image_grid_thw": grids,
    }
    if device == "meta":
        if padded:  # of tokens that a mask leaves, the code makes positions by value
            batch["position_ids"] = torch.zeros(3, *ids.shape, dtype=torch.long, device=device)
        batch["image_cu_seqlens"] = get_vision_cu_seqlens(grids)
        batch["image_position_ids"] = torch.zeros(count, 2, dtype=torch.long, device=device)
        if tower.positions:
            batch["image_interp_indices"] = torch.zeros(count, TAPS, dtype=torch.long, device=device)
            batch["image_interp_weights"] = torch.zeros(count, TAPS, device=device)
    return batch


def _idefics3(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    """Tiles of each sequence, and which of their pixels are of an image (1)."""
    rows, tower = len(ids), spec.tower
    tiles = images // rows * spec.tiles
    return {
        "pixel_values": torch.ones(rows, tiles, tower.num_channels, *tower.image_size, device=device),
        "pixel_attention_mask": torch.ones(rows, tiles, *tower.image_size, dtype=torch.long, device=device),
    }


def _mllama(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    """Tiles of each image, their layout (that with id 1), and which of them each token attends to."""
    rows, tower = len(ids), spec.tower
    each = images // rows
    tiles = torch.ones(rows, each, spec.tiles, dtype=torch.long, device=device)
    return {
        "pixel_values": torch.zeros(rows, each, spec.tiles, tower.num_channels, *tower.image_size, device=device),
        "aspect_ratio_ids": torch.ones(rows, each, dtype=torch.long, device=device),
        "aspect_ratio_mask": tiles,
        "cross_attention_mask": torch.ones(*ids.shape, each, spec.tiles, dtype=torch.long, device=device),
    }


def _mistral3(spec: Any, ids: torch.Tensor, token: int, images: int, device: str, padded: bool) -> Batch:
    """Pixels, and the size of each image, which the code reads by value: it lies on the host beside the meta device."""
    sizes = torch.tensor([spec.tower.image_size] * images, device="cpu" if device == "meta" else device)
    return {**_llava(spec, ids, token, images, device, padded), "image_sizes": sizes}


def image_places(subject: Subject) -> int:
    """What a mask has that the code counts or takes by value: tokens of images, or tiles; 0 for a model without images."""
    kind, settings = str(subject.config.get("model_type")), subject.settings
    if kind not in _KINDS:
        return 0
    spec: Any = _spec_of(subject)
    each: int = spec.tiles if kind in ("idefics3", "smolvlm") else spec.image_tokens
    return settings.micro_batch_size * settings.images * each


def _spec_of(subject: Subject) -> Any:
    """The model with images of the size that is asked for."""
    spec = read_spec(subject.id, ConfigReader(subject.config, subject.id))
    size = subject.settings.image_size
    return spec if size is None else spec.sized(size)


_KINDS: dict[str, tuple[str, int, Callable[[Any, torch.Tensor, int, int, str, bool], Batch]]] = {
    "llava": ("image_token_index", 32000, _llava),
    "gemma3": ("image_token_index", 262144, _gemma),
    "paligemma": ("image_token_index", 256000, _gemma),
    "idefics3": ("image_token_id", 128257, _idefics3),
    "mistral3": ("image_token_index", 10, _mistral3),
    "mllama": ("image_token_index", 128256, _mllama),
    "smolvlm": ("image_token_id", 128257, _idefics3),
    "qwen2_vl": ("image_token_id", 151655, _qwen_vl),
    "qwen2_5_vl": ("image_token_id", 151655, _qwen_vl),
    "qwen3_vl": ("image_token_id", 151655, _qwen_vl),
    "qwen3_vl_moe": ("image_token_id", 151655, _qwen_vl),
}
"""By model type: where the config has the token that stands for an image, its default, and what is made of images."""
GIVEN = ("image_cu_seqlens", "image_position_ids", "image_interp_indices", "image_interp_weights")
"""What a batch on the meta device has beside what a processor makes."""
READ_BOTH = tuple(_KINDS)

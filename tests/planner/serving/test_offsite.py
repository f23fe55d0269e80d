"""Sizes of offsite-tuning."""

import pytest

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.lookup import load
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.serving.offsite import offsite
from tuneplan.planner.serving.weight_formats import network_of

NETWORK = network_of(read_spec(*load("7b")))


def test_parts_are_layers() -> None:
    """Two layers at each end, 18 of the 28 between, and the rest make up what is sent; all layers make the model."""
    sizes = offsite(NETWORK, 32, 18)
    layer = sizes.adapter_bytes // 4
    assert (18 * layer, 2 * 6738415616) == (sizes.emulator_bytes, sizes.full_bytes)
    assert sizes.sent_bytes == sizes.full_bytes - 10 * layer
    assert sizes.full_bytes == offsite(NETWORK, 32, 28).sent_bytes


@pytest.mark.parametrize(("kept", "ends"), [(29, 2), (-1, 2), (1, 0), (0, 17)])
def test_more_layers_than_there_are(kept: int, ends: int) -> None:
    """Nothing is kept that is not there."""
    with pytest.raises(InputError, match="do not fit 32 layers"):
        offsite(NETWORK, 32, kept, ends)

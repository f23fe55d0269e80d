"""What a plan may run on: cards, instances, any, bare memory."""

import pytest

from tuneplan.hardware_profiles.loader import UnknownHardwareError, load_gpus, load_instances
from tuneplan.planner.errors import InputError
from tuneplan.planner.target import NODE_COUNTS, of_gpu, of_memory, targets
from tuneplan.planner.units import GIB


def test_a_card_is_considered_in_several_numbers() -> None:
    """A card by name comes in ones, twos, fours and eights, with its driver's memory and all offers that have it."""
    [target] = targets(["a100-80g"], None)
    assert (NODE_COUNTS, load_gpus()["a100-80g"].memory_bytes) == (target.counts, target.memory_bytes)
    assert {"a100-80g"} == {offer.instance.gpu for offer in target.offers}
    assert target.instance is None


def test_an_instance_is_rented_whole() -> None:
    """An instance has the cards it has, and its own prices alone."""
    [target] = targets(["P4DE.24xlarge"], None)
    assert ((8,), "a100-80g", "p4de.24xlarge") == (target.counts, target.gpu.id if target.gpu else None, target.label)
    assert {"p4de.24xlarge"} == {offer.instance.id for offer in target.offers}


def test_every_instance_is_a_target() -> None:
    """Each bundled instance can be named and has as many cards as its file says."""
    for instance in load_instances().values():
        [target] = targets([instance.id], None)
        assert (instance.gpu_count,) == target.counts
        assert target.gpu is load_gpus()[instance.gpu]


def test_counts_that_an_instance_does_not_have() -> None:
    """Fewer cards than the instance has may be used, more may not."""
    assert (2,) == targets(["p4de.24xlarge"], (2,))[0].counts
    with pytest.raises(InputError, match=r"p4de\.24xlarge has 8 GPUs, not 9"):
        targets(["p4de.24xlarge"], (9,))


def test_any_is_every_card_with_a_price() -> None:
    """`any` leaves out cards that nobody rents out."""
    found = targets(["any"], (1,))
    assert len(found) > 10
    assert all(target.offers for target in found)
    assert len({target.label for target in found}) == len(found)


def test_unknown_names() -> None:
    """A name that is neither a card nor an instance is an error, never a default."""
    with pytest.raises(UnknownHardwareError, match="a100-80g"):
        targets(["a100-80"], None)


def test_bare_memory() -> None:
    """Memory alone: no card, no price, one GPU unless more are asked for."""
    target = of_memory(24 * GIB, None)
    assert (None, 24 * GIB, (1,), ()) == (target.gpu, target.memory_bytes, target.counts, target.offers)
    assert (4,) == of_memory(GIB, (4,)).counts
    with pytest.raises(InputError, match="too little for a GPU"):
        of_memory(GIB - 1, None)


def test_own_card_has_only_own_prices() -> None:
    """A card of the user's own file gets no bundled price, even under a bundled id."""
    target = of_gpu(load_gpus()["a100-80g"], None)
    assert () == target.offers

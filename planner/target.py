"""What the run is planned for: a card, a rented instance, this machine's cards, or just an amount of memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneplan.hardware_profiles.loader import Gpu, Instance, Offer, load_gpus, offers, resolve
from tuneplan.planner.errors import InputError
from tuneplan.planner.units import GIB

NODE_COUNTS = (1, 2, 4, 8)
ANY = "any"
LOCAL = "local"
WHOLE_CARD_BYTES = GIB


@dataclass(frozen=True, slots=True)
class Target:
    """GPUs of one kind that a plan may use.

    Attributes:
        label: as the report names it.
        gpu: the card; None for a bare amount of memory.
        memory_bytes: device memory that a program can reach.
        counts: how many GPUs to consider.
        instance: the instance, where one was named; it is rented whole.
        offers: what renting costs; empty where nothing is known.
    """

    label: str
    gpu: Gpu | None
    memory_bytes: int
    counts: tuple[int, ...]
    instance: Instance | None = None
    offers: tuple[Offer, ...] = ()


def targets(names: Sequence[str], counts: tuple[int, ...] | None, extra_offers: Sequence[Offer] = ()) -> list[Target]:
    """Targets of the names on the command line.

    Args:
        names: GPU ids, instance types, `any` (every card that has an offer) or `local`.
        counts: numbers of GPUs asked for; None considers 1, 2, 4 and 8, and for an instance what it has.
        extra_offers: the user's own prices.

    Raises:
        UnknownHardwareError: a name that is neither a GPU nor an instance.
        InputError: more GPUs than an instance has; no driver for `local`.
    """
    result: list[Target] = []
    for name in names:
        if name.lower() == ANY:
            rented = {offer.instance.gpu for offer in [*offers(), *extra_offers]}
            result += [_of_gpu(gpu, counts, extra_offers) for gpu in load_gpus().values() if gpu.id in rented]
        elif name.lower() == LOCAL:
            result += _local(counts)
        else:
            result.append(_named(name, counts, extra_offers))
    return result


def of_memory(memory_bytes: int, counts: tuple[int, ...] | None) -> Target:
    """A card that is not known, by its memory alone: no time, no price. Raises InputError below 1 GiB."""
    if memory_bytes < WHOLE_CARD_BYTES:
        raise InputError(f"{memory_bytes} bytes are too little for a GPU; write an amount such as 24GiB")
    return Target("unknown card", None, memory_bytes, counts or (1,))


def of_gpu(gpu: Gpu, counts: tuple[int, ...] | None, own_offers: Sequence[Offer] = ()) -> Target:
    """A card described by the user's own file."""
    return Target(gpu.id, gpu, gpu.memory_bytes, counts or NODE_COUNTS, None, tuple(own_offers))


def _named(name: str, counts: tuple[int, ...] | None, extra: Sequence[Offer]) -> Target:
    own = [o for o in extra if o.instance.id.lower() == name.strip().lower()]
    found = own[0].instance if own else resolve(name)
    if isinstance(found, Gpu):
        return _of_gpu(found, counts, extra)
    gpu = load_gpus()[found.gpu]
    if counts is not None and max(counts) > found.gpu_count:
        raise InputError(f"{found.id} has {found.gpu_count} GPUs, not {max(counts)}; ask for at most that many")
    known = (*offers(instance_id=found.id), *own) if not own else tuple(own)
    return Target(found.id, gpu, gpu.memory_bytes, counts or (found.gpu_count,), found, known)


def _of_gpu(gpu: Gpu, counts: tuple[int, ...] | None, extra: Sequence[Offer]) -> Target:
    own = [o for o in extra if o.instance.gpu == gpu.id]
    return Target(gpu.id, gpu, gpu.memory_bytes, counts or NODE_COUNTS, None, (*offers(gpu.id), *own))


def _local(counts: tuple[int, ...] | None) -> list[Target]:
    """This machine's cards with the memory that is free now, read through NVML."""
    try:
        import pynvml
    except ImportError:
        raise InputError("--gpu local needs NVML's Python module; install the extra: pip install 'tuneplan[profile]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise InputError(
            f"--gpu local found no NVIDIA driver here ({error}); name a card such as --gpu a100-80g, or --gpu-memory 24GiB"
        ) from None
    found: dict[str, list[int]] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        text = name.decode() if isinstance(name, bytes) else name
        found.setdefault(text, []).append(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free))
    pynvml.nvmlShutdown()
    if not found:
        raise InputError("--gpu local found a driver but no GPU; name a card such as --gpu a100-80g")
    return [_local_target(name, free, counts) for name, free in found.items()]


def _local_target(name: str, free: list[int], counts: tuple[int, ...] | None) -> Target:
    """Cards of one name; the profile is the one whose name matches, if any."""
    wanted = name.lower().removeprefix("nvidia ").strip()
    gpu = next((g for g in load_gpus().values() if g.name.lower().removeprefix("nvidia ") == wanted), None)
    available = tuple(c for c in (counts or NODE_COUNTS) if c <= len(free)) or (1,)
    return Target(f"{name} (this machine)", gpu, min(free), available)

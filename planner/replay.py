"""Reserved memory: the births and deaths of a run, replayed through the caching allocator.

The ledger says how many bytes are live; the allocator also holds what is free between them. Loading, the method's
preparation and two training steps (from the second on optimizer states exist and nothing changes) are played block by
block, and the highest reservation is read off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneplan.planner.allocator import SMALL_SIZE, Block, CachingAllocator
from tuneplan.planner.device_memory import workspace_bytes
from tuneplan.planner.graph.ledger import Shared, Walk
from tuneplan.planner.graph.meter import Meter
from tuneplan.planner.graph.tensor import GRADIENTS, Storage
from tuneplan.planner.lifetimes import gradient_uses, lifetimes
from tuneplan.planner.memory import stands_alone, step_memory
from tuneplan.planner.models.network import Network
from tuneplan.planner.replay_weights import USUAL, Program, load, update
from tuneplan.planner.training.optimizers import Optimizer
from tuneplan.planner.training.settings import Settings

ENOUGH_LAYERS = 1
"""Layers at each end of a run whose backward is played whole; see `replay`."""

_BIRTH, _DEATH, _SCRATCH, _RENAME, _PRODUCT = range(5)
_Event = tuple[int, int, int]  # kind, bytes, category (of _RENAME: the one it had; it becomes GRADIENTS)


@dataclass(frozen=True, slots=True)
class Replay:
    """What the allocator held.

    Attributes:
        reserved_bytes: highest reservation of loading and steps, as `torch.cuda.max_memory_reserved`.
        allocated_bytes: most bytes in blocks, as `torch.cuda.max_memory_allocated`.
        requested_bytes: the same without what was too small to be split off; the ledger's peak and cuBLAS's workspaces.
        fragmentation_bytes: reserved minus the ledger's peak: workspaces, what was not split off, free blocks between.
        layers_replayed: layers whose backward was played whole.
    """

    reserved_bytes: int
    allocated_bytes: int
    requested_bytes: int
    fragmentation_bytes: int
    layers_replayed: int


class _Recorder(Meter):
    """A meter that writes down what it is told, a list for each segment; whoever subclasses it sets `sink`."""

    __slots__ = ("events",)
    sink: list[list[_Event]]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[_Event] = []
        self.sink.append(self.events)

    def add(self, size_bytes: int, category: int) -> None:
        """A birth; of a gradient right after the death of as many bytes: the same block under another name."""
        events = self.events
        if category == GRADIENTS and events and events[-1][:2] == (_DEATH, size_bytes):
            events[-1] = (_RENAME, size_bytes, events[-1][2])
            return
        if "linear" in self.op or "bmm" in self.op:
            events.append((_PRODUCT, 0, 0))
        events.append((_BIRTH, size_bytes, category))

    def touch(self, size_bytes: int) -> None:
        """Scratch memory of one op; none where what it frees first is larger."""
        if size_bytes > 0:
            self.events.append((_SCRATCH, size_bytes, 0))

    def drop(self, size_bytes: int, category: int) -> None:
        """A death; gradients that wait for others of their node have no bytes of their own."""
        if size_bytes:
            self.events.append((_DEATH, size_bytes, category))


class _Stage:
    """The allocator and the live blocks of the step, found by size and category."""

    def __init__(self, expandable_segments: bool, settings: Settings) -> None:
        self.allocator = CachingAllocator(expandable_segments)
        self._live: dict[tuple[int, int], list[Block]] = {}
        self._workspace = workspace_bytes(settings.compute_capability)
        self._threads: set[str] = set()
        self._short: dict[int, Sequence[_Event]] = {}

    def play(
        self, events: Sequence[_Event], thread: str, times: int = 1, whole: int | None = None, before: int = 0, total: int = 0
    ) -> None:
        """Play a recorded segment; a death frees the youngest live block of its size and category.

        Args:
            events: the segment.
            thread: has a cuBLAS handle of its own, whose workspace is born with its first product.
            times: how often in a row.
            whole: of the repetitions but the first and the last so many only what outlives them is played, unless that
                lands in the large pool.
            before: repetitions that came earlier, with others between.
            total: of all repetitions, with those that come later.
        """
        malloc, free, live = self.allocator.malloc, self.allocator.free, self._live
        full = short = [(kind, size, live.setdefault((size, category), [])) for kind, size, category in events]
        total = max(total, times)
        edge = total if whole is None else whole
        if 2 * edge < total:
            short = [(kind, size, live.setdefault((size, category), [])) for kind, size, category in self._lasting(events)]
        for index in range(before, before + times):
            for kind, size, blocks in short if edge <= index < total - edge else full:
                if kind == _BIRTH:
                    blocks.append(malloc(size))
                elif kind == _DEATH:
                    for block in [blocks.pop()] if blocks else self._together(size, blocks):
                        free(block)
                elif kind == _SCRATCH:
                    free(malloc(size))
                elif kind == _RENAME:
                    live.setdefault((size, GRADIENTS), []).append(blocks.pop())
                elif thread not in self._threads:
                    self._threads.add(thread)
                    malloc(self._workspace)

    def _lasting(self, events: Sequence[_Event]) -> Sequence[_Event]:
        """What outlives a segment, if that is small, or else all of it."""
        if id(events) not in self._short:
            lasting = _lasting(events)
            large = any(kind == _BIRTH and size > SMALL_SIZE for kind, size, _ in lasting)
            self._short[id(events)] = events if large else lasting
        return self._short[id(events)]

    def _together(self, size: int, blocks: list[Block]) -> list[Block]:
        """Equal live blocks of the same category that make up a size: what layers left one by one and is let go at once."""
        category = next(category for (_, category), known in self._live.items() if known is blocks)
        for (part, kind), live in self._live.items():
            count = size // part if part and size % part == 0 else 0
            if kind == category and 1 < count <= len(live):
                return [live.pop() for _ in range(count)]
        raise IndexError(f"no live blocks of category {category} make up {size} bytes")

    def zero_grad(self) -> None:
        """Free all gradients, in the order of birth within a size (`set_to_none=True`)."""
        for (_, category), blocks in self._live.items():
            if category == GRADIENTS:
                for block in blocks:
                    self.allocator.free(block)
                blocks.clear()

    def drop_oldest(self, network: Network) -> None:
        """Free the outputs that the loop kept from the forward before this one."""
        for run in network.runs:
            for storage in run.block.outputs:
                for _ in range(run.count):
                    self.allocator.free(self._live[storage.nbytes, storage.category].pop(0))


def replay(
    network: Network,
    settings: Settings,
    optimizer: Optimizer,
    *,
    layers: int | None = None,
    expandable_segments: bool = False,
    program: Program = USUAL,
    batches: Sequence[Network] = (),
    empty_cache_steps: int = 0,
) -> Replay:
    """Load, prepare and train on one card; see `Replay` for what is measured.

    Args:
        network: the model under its method.
        settings: the step.
        optimizer: the update.
        layers: of layers alike, play the backward of only the first and the last so many whole (see `_Stage.play`), whatever
            stands between them; None plays all. The forward is always whole: it decides where the activations lie. Over 19
            cases (Llama 2 and 3.1, Qwen 2.5; full, LoRA, QLoRA) `layers=1` was within 0.1 % of the whole replay.
        expandable_segments: the allocator's setting of that name.
        program: habits of the training program.
        batches: the model at the length of one batch after the other, where lengths vary; by default `network` twice.
        empty_cache_steps: the cache is emptied before the backward of every so many steps, from the first on; 0 for never.
    """
    if network.recorded is not None:
        return network.recorded.replay(network, settings, optimizer, expandable_segments, empty_cache_steps)
    stage = _Stage(expandable_segments, settings)
    load(stage.allocator, network, settings, program)
    peak = step_memory(network, settings, optimizer).peak.peak_bytes
    recorded: dict[int, _Recorded] = {}
    before: Network | None = None
    for step, net in enumerate(batches or (network, network)):
        if id(net) not in recorded:
            recorded[id(net)] = _Recorded.of(net, settings)
        empties = empty_cache_steps > 0 and step % empty_cache_steps == 0
        for backward in recorded[id(net)].backwards:
            recorded[id(net)].play(stage, backward, before, layers, empties)
            before = net if settings.keep_outputs else None
        if not net.fused_update:
            update(stage.allocator, net, optimizer, settings, first=step == 0)
        stage.zero_grad()
        for _ in recorded[id(net)].backwards:
            stage.play(_deaths([storage for run in net.runs for storage in run.block.stays]), "forward")
    a = stage.allocator
    return Replay(
        a.peak_reserved_bytes,
        a.peak_allocated_bytes,
        a.peak_requested_bytes,
        a.peak_reserved_bytes - peak,
        sum(count if layers is None else min(count, 2 * layers) for count in _alike(network).values()),
    )


def _alike(network: Network) -> dict[int, int]:
    """How many layers there are of each block (by id)."""
    counts: dict[int, int] = {}
    for run in network.runs:
        if run.layered:
            counts[id(run.block)] = counts.get(id(run.block), 0) + run.count
    return counts


def _record(network: Network, settings: Settings) -> list[list[list[_Event]]]:
    """Events of every run: forward; outputs let go; backward, in reverse order; that of later micro-batches if accumulating.

    Layers that are the same wherever they stand are walked once.
    """
    first: dict[tuple[int, bool, bool], int] = {}
    twins = []
    for index, run in enumerate(network.runs):
        key = (id(run.block), run.checkpointed, run.reversible)
        twins.append(first.setdefault(key, index) if stands_alone(run) else index)
    recorded: list[list[list[_Event]]] = [[], []]
    for accumulating in (False, True) if settings.accumulating else (False,):
        sink: list[list[_Event]] = []
        meter = type("Recorder", (_Recorder,), {"sink": sink, "__slots__": ()})
        walks = [Walk(run.block, meter) for run in network.runs]
        for index, (run, walk) in enumerate(zip(network.runs, walks, strict=True)):
            if twins[index] == index:
                walk.forward(keep=not run.checkpointed, rebuilt=run.reversible)
            else:
                sink.append(sink[twins[index]])
        recorded[0] = sink.copy()
        sink.clear()
        held = lifetimes(network).held
        for index, walk in enumerate(walks):
            if twins[index] == index:
                walk.release(settings.keep_outputs, held)
            else:
                sink.append(sink[twins[index]])
        recorded[1] = sink.copy()
        sink.clear()
        shared = Shared(accumulating, gradient_uses(network), fused_update=network.fused_update)
        done: dict[int, list[_Event]] = {}
        for run, twin in zip(reversed(network.runs), reversed(twins), strict=True):
            if twin in done:
                sink.append(done[twin])
                continue
            if run.checkpointed:
                Walk(run.block, meter).backward(shared, run.recomputation(settings))
            else:
                walks[twin].backward(shared)
            done[twin] = sink[-1]
        recorded.append(sink)
    return recorded


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step's events: of each run forward, outputs let go, backward (one list a kind of micro-batch), and what is shared."""

    network: Network
    forwards: list[list[_Event]]
    releases: list[list[_Event]]
    backwards: list[list[list[_Event]]]
    ended: dict[int, list[_Event]]
    reborn: dict[int, list[_Event]]
    released: list[_Event]
    spent: dict[int, list[_Event]]

    @classmethod
    def of(cls, network: Network, settings: Settings) -> "_Recorded":
        """Walk a network once and write down what happens."""
        forwards, releases, *backwards = _record(network, settings)
        lives = lifetimes(network)
        ended = {index: _deaths(storages) for index, storages in lives.ended.items()}
        reborn = {index: [(_BIRTH, s.nbytes, s.category) for s in storages] for index, storages in lives.reborn.items()}
        spent = {index: _deaths(storages) for index, storages in lives.spent.items()}
        return cls(network, forwards, releases, backwards, ended, reborn, _deaths(lives.released), spent)

    def play(
        self, stage: _Stage, backward: list[list[_Event]], before: Network | None, layers: int | None, empties: bool
    ) -> None:
        """One micro-batch; `before` is the one whose outputs the loop still keeps."""
        runs = self.network.runs
        for index, (run, events) in enumerate(zip(runs, self.forwards, strict=True)):
            stage.play(self.ended.get(index, ()), "forward")
            again = self.reborn.get(index, ())
            if again:
                stage.play(events, "forward")
                stage.play(again, "forward")
            stage.play(events, "forward", run.count - bool(again))
        stage.play(self.released, "forward")
        for run, events in zip(runs, self.releases, strict=True):
            stage.play(events, "forward", run.count)
        if before is not None:
            stage.drop_oldest(before)
        if empties:
            stage.allocator.empty_cache()
        total, before_it = _alike(self.network), dict.fromkeys((id(run.block) for run in runs), 0)
        for index, events in zip(reversed(range(len(runs))), backward, strict=True):
            key, count = id(runs[index].block), runs[index].count
            stage.play(events, "backward", count, layers, before_it[key], total.get(key, count))
            before_it[key] += count
            stage.play(self.spent[index], "backward")


def _deaths(storages: Sequence[Storage]) -> list[_Event]:
    return [(_DEATH, s.nbytes, s.category) for s in storages]


def _lasting(events: Sequence[_Event]) -> list[_Event]:
    """The births that outlive a segment and the deaths of what is older than it."""
    kept: dict[int, _Event] = {}
    born: dict[tuple[int, int], list[int]] = {}
    for index, (kind, size, category) in enumerate(events):
        own = born.setdefault((size, category), [])
        if kind == _BIRTH:
            own.append(index)
            kept[index] = (kind, size, category)
        elif kind == _DEATH and own:
            del kept[own.pop()]
        elif kind == _RENAME and own:
            birth = own.pop()
            kept[birth] = (_BIRTH, size, GRADIENTS)
            born.setdefault((size, GRADIENTS), []).append(birth)
        elif kind in (_DEATH, _RENAME):
            kept[index] = (kind, size, category)
    return [kept[index] for index in sorted(kept)]

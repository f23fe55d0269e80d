"""How a serving load runs on a machine: cards of a replica, requests a second that one takes, and what limits it.

Little 1961 for the requests in flight; their number is taken as Poisson, so that the batch must hold mean + 1.645
standard deviations. The time to the first token waits for the prompts before it as in an M/M/1 queue (Kleinrock 1975,
Queueing Systems, volume 1, section 3.2), which overstates the wait, since prompts of like length are closer to M/D/1.
"""

import math
from dataclasses import dataclass, replace

from tuneplan.planner.capacity.machines import MachineType
from tuneplan.planner.capacity.schema import Serving
from tuneplan.planner.models.lookup import load
from tuneplan.planner.serving.adapters import Adapter, AdapterLoad, adapter_of
from tuneplan.planner.serving.engine import engine_of
from tuneplan.planner.serving.kv_cache import find_cache_format
from tuneplan.planner.serving.request import ServedModel, served_model
from tuneplan.planner.serving.server_memory import Server, concurrent_requests, server_memory
from tuneplan.planner.serving.token_time import Engine, decode_seconds, prefill_seconds
from tuneplan.planner.serving.weight_formats import find_format
from tuneplan.planner.units import format_gib, format_seconds

NINETY_FIFTH = 1.645
"""Standard deviations of the 95th percentile of a normal distribution."""
LATE = 0.05
"""Share of requests that may take longer than a 95th percentile."""
HALVINGS = 40
SEQUENCES = "sequences of a step"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a server.

    Attributes:
        gpus: cards of tensor parallelism.
        batch: sequences that it decodes together.
        requests_per_second: that it takes within all limits.
        binding: what limits it.
        concurrent: requests of the 95th percentile's length that its cache holds.
    """

    gpus: int
    batch: int
    requests_per_second: float
    binding: str
    concurrent: int


class ServingFits:
    """Answers for many loads; those with the same model, formats, lengths and limits share them."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self._adapters: dict[tuple[str, str], Adapter] = {}
        self._replicas: dict[tuple[object, ...], tuple[tuple[Replica, ...], str]] = {}

    def replicas(self, load_: Serving, machine: MachineType) -> tuple[tuple[Replica, ...], str]:
        """A replica for every number of cards that works, and why the largest does not. Raises InputError for unknown models."""
        key = (
            *(
                load_.model,
                load_.weights,
                load_.kv_dtype,
                load_.adapter,
                load_.adapters,
                load_.prompt_tokens,
                load_.output_tokens,
            ),
            *(load_.first_token_p95, load_.token_p95, machine.key),
        )
        if key not in self._replicas:
            self._replicas[key] = self._all(load_, machine)
        return self._replicas[key]

    def _all(self, load_: Serving, machine: MachineType) -> tuple[tuple[Replica, ...], str]:
        replicas: list[Replica] = []
        reasons: list[str] = []
        for exponent in range(machine.gpu_count.bit_length()):
            found = self._sized(load_, machine, 2**exponent)
            if isinstance(found, str):
                reasons.append(found)
            else:
                replicas.append(found)
        return tuple(replicas), reasons[-1] if reasons else ""

    def _model(self, name: str) -> ServedModel:
        if name not in self._models:
            self._models[name] = served_model(*load(name))
        return self._models[name]

    def _sized(self, load_: Serving, machine: MachineType, ways: int) -> Replica | str:
        """A replica on so many cards, or what is in the way."""
        model = self._model(load_.model)
        kv = max((layer.heads for layer, _ in model.cache.groups), default=1)
        if max(kv, ways) % min(kv, ways):
            return f"{kv} key/value heads cannot be split over {ways} GPUs"
        format, cache, server = find_format(load_.weights), find_cache_format(load_.kv_dtype), Server(tensor_parallel=ways)
        engine, reason = engine_of(model, format, cache, machine.gpu, ways, machine.interconnect)
        if engine is None:
            return reason
        adapter = self._adapter(load_, model)
        beside = load_.adapters * -(-adapter.nbytes // ways) if adapter else 0
        memory = server_memory(machine.gpu, machine.gpu.memory_bytes, engine.weights, model.shape, server, beside)
        longest = load_.prompt_tokens.p95 + load_.output_tokens.p95
        held = concurrent_requests(memory, model.cache, cache, server, longest)
        if not held:
            needed = model.cache.sequence_bytes(longest, cache, ways) - memory.kv_cache
            return f"GPU memory: one request of {longest:,} tokens on {ways} GPUs is short by {format_gib(needed)}"
        extra = AdapterLoad(adapter, load_.adapters) if adapter else None
        return _loaded(load_, engine, extra, held, server.max_sequences)

    def _adapter(self, load_: Serving, model: ServedModel) -> Adapter | None:
        if load_.adapter is None or model.spec is None:
            return None
        key = (load_.model, load_.adapter)
        if key not in self._adapters:
            self._adapters[key] = adapter_of(model.spec, load_.adapter)
        return self._adapters[key]


def _loaded(load_: Serving, engine: Engine, extra: AdapterLoad | None, held: int, most: int) -> Replica | str:
    """The batch with the highest rate within the limits."""
    prompt, output = load_.prompt_tokens, load_.output_tokens
    read = prefill_seconds(engine, prompt.mean, extra)
    slowest = prefill_seconds(engine, prompt.p95, extra)
    limit = min(held, most)
    batches = sorted({min(2**i, limit) for i in range(limit.bit_length() + 1)})
    best: Replica | None = None
    failure = ""
    for batch in batches:
        step = decode_seconds(engine, batch, prompt.mean + output.mean // 2, extra)
        if load_.token_p95 is not None and step > load_.token_p95:
            failure = (
                failure
                or f"token latency: a step takes {format_seconds(step)}, {format_seconds(step - load_.token_p95)} too long"
            )
            break
        flying = _in_flight(batch)
        rate, binding = flying / (output.mean * step + flying * read), "GPU memory" if batch == held else SEQUENCES
        if load_.token_p95 is not None:
            bound = (1 - step / load_.token_p95) / read
            rate, binding = min((rate, binding), (bound, "token latency"))
        if load_.first_token_p95 is not None:
            bound = _first_token_rate(load_.first_token_p95, slowest + step, read)
            if bound <= 0:
                late = slowest + step - load_.first_token_p95
                failure = f"first-token latency: it takes {format_seconds(slowest + step)}, {format_seconds(late)} too long"
                continue
            rate, binding = min((rate, binding), (bound, "first-token latency"))
        if rate > 0 and (best is None or rate > best.requests_per_second):
            best = Replica(engine.tensor_parallel, batch, rate, binding, held)
    if best is not None and best.batch < limit and best.binding in ("GPU memory", SEQUENCES):
        # a larger batch would serve more, but too slowly
        best = replace(best, binding="token latency" if load_.token_p95 is not None else "first-token latency")
    return best if best is not None else failure or "no batch serves a request in time"


def _in_flight(batch: int) -> float:
    """Mean number of requests whose 95th percentile, as a Poisson number, fills the batch; at least half a request."""
    root = (-NINETY_FIFTH + math.sqrt(NINETY_FIFTH**2 + 4 * batch)) / 2
    return max(0.5, root * root)


def _first_token_rate(limit: float, alone: float, read: float) -> float:
    """Requests a second at which 95 % get their first token in time; 0 where even an idle server is too slow.

    P(wait > t) = r exp(-(1 - r) t / read) with r = rate x read.
    """
    spare = limit - alone
    if spare <= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        late = middle * math.exp(-(1 - middle) * spare / read)
        low, high = (middle, high) if late <= LATE else (low, middle)
    return low / read

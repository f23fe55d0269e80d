"""From a question about a server to its memory, its requests, its speed, its cost, and the choices beside it."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from tuneplan.planner.cost import Price, cheapest, usd_per_million
from tuneplan.planner.serving.adapters import (
    Adapter,
    AdapterLoad,
    Merging,
    Storage,
    Tenancy,
    adapter_of,
    merging,
    storage,
    tenancy,
)
from tuneplan.planner.serving.engine import engine_of
from tuneplan.planner.serving.kv_cache import KvCache
from tuneplan.planner.serving.offsite import Offsite, offsite
from tuneplan.planner.serving.request import ServedModel, ServeRequest
from tuneplan.planner.serving.server_memory import ServerMemory, capacity_tokens, concurrent_requests, server_memory
from tuneplan.planner.serving.token_time import Engine, Throughput, throughput
from tuneplan.planner.serving.weight_formats import FORMATS, ServedWeights
from tuneplan.planner.units import format_gib

CHOICES = ("bf16", "fp8", "int8", "nf4-double", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Length:
    """Requests of one length.

    Attributes:
        prompt: tokens.
        output: tokens.
        concurrent: requests that the cache holds.
        batch: of them, what the server's limit of sequences lets run.
        loaded: speed at that batch; None where nothing can be timed.
        usd_per_million: output tokens at full load; None without price or time.
    """

    prompt: int
    output: int
    concurrent: int
    batch: int
    loaded: Throughput | None
    usd_per_million: Decimal | None


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to deploy, for the decision between merged and separate, and between 16 bits and a quantized base."""

    weights: str
    adapters: str
    kv_tokens: int
    length: Length


@dataclass(frozen=True, slots=True)
class AdapterAnswer:
    """Everything about the adapters of a request; `added_token_seconds` is what a step takes longer with them separate."""

    adapter: Adapter
    resident: int
    added_token_seconds: float | None
    merging: Merging
    tenancy: Tenancy
    storage: Storage


@dataclass(frozen=True, slots=True)
class ServeAnswer:
    """The answer to a `ServeRequest`."""

    request: ServeRequest
    weights: ServedWeights
    memory: ServerMemory
    kv_tokens: int
    kv_bytes_per_token: int
    lengths: tuple[Length, ...]
    adapters: AdapterAnswer | None
    choices: tuple[Choice, ...]
    price: Price | None
    warnings: tuple[str, ...]
    offsite: Offsite | None

    @property
    def fits(self) -> bool:
        """Whether at least one request of the first length can run."""
        return self.lengths[0].concurrent > 0

    @property
    def cache(self) -> KvCache:
        """The model's cache."""
        return self.request.model.cache


def answer(request: ServeRequest, today: date) -> ServeAnswer:
    """Answer a request. Raises InputError as `ServeRequest.check`."""
    request.check()
    adapter = adapter_of(request.model.spec, request.adapter) if request.adapter and request.model.spec else None
    price = cheapest(request.target.offers, request.server.tensor_parallel, request.purchase, today)
    resident = 0 if request.merged else request.adapters
    engine, reason = _engine(request)
    memory = _memory(request, adapter, resident)
    lengths = tuple(_length(request, memory, engine, adapter, resident, prompt, price) for prompt in request.prompts)
    return ServeAnswer(
        request,
        request.model.weights(request.weights, request.server.tensor_parallel),
        memory,
        capacity_tokens(memory, request.model.cache, request.cache, request.server),
        _token(request),
        lengths,
        _adapters(request, memory, adapter, resident, engine, lengths[0].batch),
        _choices(request, adapter, price),
        price,
        tuple(_warnings(request, memory, reason, price)),
        _offsite(request),
    )


def _token(request: ServeRequest) -> int:
    server = request.server
    return request.model.cache.bytes_per_token(request.cache, server.tensor_parallel, server.alignment)


def _memory(request: ServeRequest, adapter: Adapter | None, resident: int) -> ServerMemory:
    ways = request.server.tensor_parallel
    beside = resident * -(-adapter.nbytes // ways) if adapter else 0
    weights = request.model.weights(request.weights, ways)
    target = request.target
    return server_memory(target.gpu, target.memory_bytes, weights, request.model.shape, request.server, beside)


def _engine(request: ServeRequest) -> tuple[Engine | None, str]:
    """The engine, or why it cannot be timed."""
    target = request.target
    interconnect = target.instance.interconnect if target.instance else None
    return engine_of(request.model, request.weights, request.cache, target.gpu, request.server.tensor_parallel, interconnect)


def _length(
    request: ServeRequest,
    memory: ServerMemory,
    engine: Engine | None,
    adapter: Adapter | None,
    distinct: int,
    prompt: int,
    price: Price | None,
) -> Length:
    output, ways = request.output_tokens, request.server.tensor_parallel
    held = concurrent_requests(memory, request.model.cache, request.cache, request.server, prompt + output)
    batch = min(held, request.server.max_sequences)
    load = AdapterLoad(adapter, distinct) if adapter and distinct else None
    loaded = throughput(engine, batch, prompt, output, load) if engine and batch else None
    cost = usd_per_million(price, ways, loaded.tokens_per_second) if loaded and price else None
    return Length(prompt, output, held, batch, loaded, cost)


def _adapters(
    request: ServeRequest, memory: ServerMemory, adapter: Adapter | None, resident: int, engine: Engine | None, batch: int
) -> AdapterAnswer | None:
    if adapter is None:
        return None
    server, model = request.server, request.model
    load = AdapterLoad(adapter, max(1, request.adapters))
    weights = model.weights(request.weights, server.tensor_parallel)
    one = model.cache.sequence_bytes(
        request.prompts[0] + request.output_tokens, request.cache, server.tensor_parallel, server.block, server.alignment
    )
    spare = memory.kv_cache + memory.adapters - one
    return AdapterAnswer(
        adapter,
        resident,
        load.decode_seconds(engine.rates, engine.dtype, max(1, batch), engine.tensor_parallel) if engine else None,
        merging(adapter, weights, request.weights),
        tenancy(adapter, spare, request.host_bytes, request.target.gpu, server.tensor_parallel),
        storage(_full_bytes(request.against or model), weights.total_bytes, adapter.nbytes, request.copies),
    )


def _full_bytes(model: ServedModel) -> int:
    """A full checkpoint in 16 bits."""
    return model.weights(FORMATS["bf16"], 1).total_bytes


def _offsite(request: ServeRequest) -> Offsite | None:
    model = request.model
    if request.emulator_layers is None or model.network is None:
        return None
    return offsite(model.network, model.layers, request.emulator_layers)


def _choices(request: ServeRequest, adapter: Adapter | None, price: Price | None) -> tuple[Choice, ...]:
    """Every weight format, with the adapters separate and merged; formats that leave no cache are there with no request."""
    if request.model.spec is None:
        return ()
    found = []
    plain = request.weights.name if request.weights.name in ("fp16", "bf16") else "bf16"
    for name in (plain, *CHOICES[1:]):
        asked = request.with_weights(FORMATS[name])
        engine, _ = _engine(asked)
        ways = [("none", 0)] if adapter is None else [("merged", 0), ("separate", max(1, request.adapters))]
        for label, distinct in ways:
            memory = _memory(asked, adapter, distinct)
            length = _length(asked, memory, engine, adapter, distinct, request.prompts[0], price)
            tokens = capacity_tokens(memory, request.model.cache, request.cache, request.server)
            found.append(Choice(name, label, tokens, length))
    return tuple(found)


def _warnings(request: ServeRequest, memory: ServerMemory, reason: str, price: Price | None) -> list[str]:
    found = list(request.model.cache.notes)
    if reason:
        found.append(f"no time: {reason}")
    elif price is None:
        found.append("no cost: no price is known for this card or instance")
    over = memory.device_bytes - memory.card
    if over > 0 and memory.kv_cache > 0:
        found.append(
            f"context and CUDA graphs lie outside the server's share and are {format_gib(over)} more than it leaves on the card; "
            "lower --utilisation or use --no-cuda-graphs"
        )
    if request.model.cache.windowed:
        found.append(
            "kv_tokens counts every layer as keeping every token; requests are counted with windows that free what lies behind "
            "them, which needs a server that does so (vLLM's hybrid KV cache manager)"
        )
    if request.weights.name == "fp8" and request.target.gpu is not None:
        capability = request.target.gpu.compute_capability
        if capability is not None and capability < (8, 9):
            found.append(f"{request.target.gpu.name} has no fp8 arithmetic: weights are unpacked to 16 bits for each product")
    return found

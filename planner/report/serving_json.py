"""A server as the JSON document of `plan serve-memory --json`."""

from typing import Any

from tuneplan.planner.serving.answer import AdapterAnswer, Choice, Length, ServeAnswer
from tuneplan.planner.serving.offsite import Offsite
from tuneplan.planner.serving.request import ServeRequest
from tuneplan.planner.serving.server_memory import GRAPH_BYTES, OUTSIDE_BYTES, SAMPLER_BYTES
from tuneplan.planner.serving.weight_formats import READ_SHARE_SOURCE


def serve_json(answer: ServeAnswer) -> dict[str, Any]:
    """The whole answer; sizes in bytes on one GPU, times in seconds, money in US dollars."""
    memory = answer.memory
    return {
        "request": _request(answer.request),
        "kv_bytes_per_token": answer.kv_bytes_per_token,
        "kv_cache_bytes": max(0, memory.kv_cache),
        "kv_tokens": answer.kv_tokens,
        "concurrent_requests": answer.lengths[0].concurrent,
        "components": memory.components(),
        "peak": {
            "device_bytes": memory.device_bytes,
            "budget_bytes": memory.budget,
            "card_bytes": memory.card,
            "short_by_bytes": max(0, -memory.kv_cache),
        },
        "fits": answer.fits,
        "parameters": answer.weights.parameters or None,
        "layers": answer.cache.summary(),
        "state_bytes_per_sequence": answer.cache.state_bytes,
        "lengths": [_length(length) for length in answer.lengths],
        "adapters": _adapters(answer.adapters) if answer.adapters else None,
        "offsite": _offsite(answer.offsite) if answer.offsite else None,
        "choices": [_choice(choice) for choice in answer.choices],
        "price": answer.price.to_json() if answer.price else None,
        "basis": {
            "weights": "counted",
            "kv_cache": "counted from what is left",
            "activations": SAMPLER_BYTES.source,
            "runtime": OUTSIDE_BYTES.source,
            "cuda_graphs": GRAPH_BYTES.source,
            "time": f"modelled; {READ_SHARE_SOURCE}",
        },
        "warnings": list(answer.warnings),
    }


def _request(request: ServeRequest) -> dict[str, Any]:
    server = request.server
    return {
        "model": request.model.id,
        "gpu": request.target.gpu.id if request.target.gpu else request.target.label,
        "instance": request.target.instance.id if request.target.instance else None,
        "weights": request.weights.name,
        "kv_dtype": request.cache.name,
        "utilisation": server.utilisation,
        "tensor_parallel": server.tensor_parallel,
        "block_size": server.block,
        "max_num_seqs": server.max_sequences,
        "max_batched_tokens": server.max_batched_tokens,
        "kv_alignment": server.alignment,
        "cuda_graphs": server.cuda_graphs,
        "prompt_tokens": list(request.prompts),
        "output_tokens": request.output_tokens,
        "adapter": request.adapter,
        "adapters": request.adapters,
        "merged": request.merged,
        "host_memory_bytes": request.host_bytes,
        "purchase": request.purchase,
        "against": request.against.id if request.against else request.model.id,
        "full_copies": request.copies,
        "emulator_layers": request.emulator_layers,
    }


def _length(length: Length) -> dict[str, Any]:
    loaded = length.loaded
    return {
        "prompt_tokens": length.prompt,
        "output_tokens": length.output,
        "concurrent_requests": length.concurrent,
        "batch": length.batch,
        "first_token_seconds": loaded.first_token_seconds if loaded else None,
        "token_seconds": loaded.token_seconds if loaded else None,
        "requests_per_second": loaded.requests_per_second if loaded else None,
        "tokens_per_second": loaded.tokens_per_second if loaded else None,
        "usd_per_million_output_tokens": None if length.usd_per_million is None else float(length.usd_per_million),
    }


def _offsite(sizes: Offsite) -> dict[str, Any]:
    return {
        "adapter_bytes": sizes.adapter_bytes,
        "emulator_bytes": sizes.emulator_bytes,
        "rest_bytes": sizes.rest_bytes,
        "sent_bytes": sizes.sent_bytes,
        "full_bytes": sizes.full_bytes,
        "kept_layers": sizes.kept_layers,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {"weights": choice.weights, "adapters": choice.adapters, "kv_tokens": choice.kv_tokens, **_length(choice.length)}


def _adapters(answer: AdapterAnswer) -> dict[str, Any]:
    tenancy, storage, merging = answer.tenancy, answer.storage, answer.merging
    return {
        "method": answer.adapter.method,
        "parameters": answer.adapter.parameters,
        "bytes_each": answer.adapter.nbytes,
        "flops_per_token": answer.adapter.flops_per_token,
        "resident": answer.resident,
        "added_token_seconds": answer.added_token_seconds,
        "device_adapters": tenancy.device_adapters,
        "host_adapters": tenancy.host_adapters,
        "tenants": tenancy.tenants,
        "load_seconds": tenancy.load_seconds,
        "merging": {
            "possible": merging.possible,
            "exact": merging.exact,
            "needs_bytes": merging.needs_bytes,
            "result_bytes": merging.result_bytes,
            "note": merging.note,
        },
        "storage": {
            "models": storage.models,
            "full_bytes": storage.full_bytes,
            "base_and_adapters_bytes": storage.base_and_adapters_bytes,
            "adapters_in_the_same_space": storage.adapters_in_the_same_space,
        },
    }

"""The network of one rank under tensor, sequence, context, expert and pipeline parallelism, from that of the whole model.

Heads, columns and the vocabulary split as Megatron-LM does (Shoeybi et al. 2019, section 3), norms replicated or on a part of the
tokens (Korthikanti et al. 2022, section 4.2.2) as torch's `SequenceParallel` keeps them: held against torch's own. Modelled
are ring attention (Liu et al. 2023), experts over ranks (expert_ranks.py), and stages of whole
layers (Narayanan et al. 2021, section 2.2).
"""

from dataclasses import fields, replace
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Size, round_block
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.network import Network, Run, build
from tuneplan.planner.models.parameter import Parameter
from tuneplan.planner.models.router_logits import LOSS
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.parallel.expert_ranks import EXPERTS, split_experts
from tuneplan.planner.training.settings import LOOP, Settings
from tuneplan.planner.training.sharding import Sharding

_SPLIT = ("intermediate_size", "moe_intermediate_size", "shared_intermediate_size", "num_attention_heads")
_ROUTERS = ("gate", "router", "shared_expert_gate")


def local_settings(settings: Settings, sharding: Sharding) -> Settings:
    """The settings of a rank: under context parallelism it has a part of each sequence, rounded up."""
    ranks = sharding.context_parallel
    return settings if ranks == 1 else replace(settings, seq_len=-(-settings.seq_len // ranks))


def local_network(spec: ModelSpec, method: Method, settings: Settings, sharding: Sharding, whole: Network) -> Network:
    """The network that one rank computes, all pipeline stages of it.

    Args:
        spec: the model.
        method: the method.
        settings: of the whole run.
        sharding: the layout.
        whole: the network on one GPU.

    Raises:
        InputError: the model cannot be split so.
    """
    check_model(spec, settings, sharding, whole)
    if sharding.tensor_parallel == sharding.context_parallel == sharding.expert_parallel == 1:
        return whole
    network = build(_local_spec(spec, sharding), method, local_settings(settings, sharding))
    if sharding.tensor_parallel > 1:
        _split_tensors(network, whole, spec, sharding)
    if sharding.context_parallel > 1:
        _ring(network, sharding.context_parallel)
    if sharding.expert_parallel > 1:
        split_experts(network, spec, local_settings(settings, sharding), sharding.expert_parallel)
    return network


def check_model(spec: ModelSpec, settings: Settings, sharding: Sharding, whole: Network) -> None:
    """Raise InputError where a model cannot be split over so many ranks."""
    heads, ranks = spec.num_attention_heads, sharding.tensor_parallel
    if heads % ranks:
        raise InputError(f"tensor-parallel {ranks} does not divide the {heads} attention heads of {spec.id}; use a divisor")
    if spec.num_key_value_heads % ranks and ranks % spec.num_key_value_heads:
        raise InputError(
            f"tensor-parallel {ranks} and the {spec.num_key_value_heads} key/value heads of {spec.id} do not divide each other; "
            "use a divisor or a multiple"
        )
    for name in _SPLIT[:3]:
        width = getattr(spec, name, 0) or 0
        if width % ranks:
            raise InputError(f"tensor-parallel {ranks} does not divide {name}={width} of {spec.id}; use a divisor")
    stages = sharding.pipeline_parallel * sharding.virtual_stages
    if stages > 1 and spec.router_logits == LOSS:
        raise InputError(
            f"{spec.id}: output_router_logits adds a loss of the routers of all layers, which no pipeline stage has; set it to "
            "false in the config, or leave --pipeline-parallel at 1"
        )
    if stages > spec.num_hidden_layers:
        raise InputError(f"{stages} pipeline stages are more than the {spec.num_hidden_layers} layers of {spec.id}; use fewer")
    if sharding.context_parallel > 1 and settings.attention == "eager":
        raise InputError("context parallelism runs ring attention, which eager attention is not; use attention sdpa or flash")
    if sharding.context_parallel > 1 and settings.padded:
        raise InputError("ring attention takes no mask for padding; pack the sequences, or use context-parallel 1")
    experts = [p for p in whole.parameters if EXPERTS in p.name.split(".")]
    if sharding.expert_parallel > 1 and not experts:
        raise InputError(f"expert-parallel {sharding.expert_parallel}: {spec.id} has no experts to split; leave it at 1")
    if sharding.expert_parallel > 1 and settings.experts == LOOP:
        raise InputError(
            f"expert-parallel {sharding.expert_parallel} with experts eager is not modelled: a rank would loop over its "
            "own experts; use experts grouped_mm"
        )
    for p in experts if sharding.expert_parallel > 1 else ():
        if p.shape[0] % sharding.expert_parallel:
            raise InputError(
                f"expert-parallel {sharding.expert_parallel} does not divide the {p.shape[0]} experts of {spec.id}; use a divisor"
            )


def _local_spec(spec: ModelSpec, sharding: Sharding) -> ModelSpec:
    ranks = sharding.tensor_parallel
    if ranks == 1:
        return spec
    known = {f.name for f in fields(spec)}
    changes: dict[str, Any] = {name: getattr(spec, name) // ranks for name in _SPLIT if name in known and getattr(spec, name)}
    changes["num_key_value_heads"] = max(1, spec.num_key_value_heads // ranks)
    changes["vocab_size"] = -(-spec.vocab_size // ranks)
    return replace(spec, **changes)


def _split_tensors(network: Network, whole: Network, spec: ModelSpec, sharding: Sharding) -> None:
    """Find which linears were split by columns and by rows, and give their collectives the memory that they need."""
    sizes = {p.name: p for p in whole.parameters}
    columns: set[str] = set()
    rows: set[str] = set()
    for p in network.parameters:
        before = sizes[p.name].shape if p.name in sizes else p.shape
        if p.adapter or len(p.shape) != 2 or "*" not in p.name:
            continue
        module = p.name.partition("*.")[2].rpartition(".")[0]
        if module.rpartition(".")[2] in _ROUTERS:
            continue
        if p.shape == before:
            raise InputError(
                f"tensor parallelism is not modelled for {spec.model_type}: {module} would stay whole on every rank; "
                "split by zero-stage or pipeline-parallel instead"
            )
        (columns if p.shape[0] != before[0] else rows).add(module)
    wide = spec.hidden_size
    for block in {id(run.block): run.block for run in network.runs}.values():
        if sharding.sequence_parallel:
            _split_sequence(block, columns, wide, sharding.tensor_parallel)
        for op in block.ops:
            module, _, kind = op.name.rpartition(".")
            if not kind.startswith("linear") or op.output is None:
                continue
            if module in rows and op.output.shape[-1] == wide:
                op.scratch = _bytes(op.scratch) + round_block(op.output.nbytes)  # the sum over ranks is a new tensor
            if module in columns and op.gradients:
                op.workspace = _bytes(op.workspace) + round_block(op.gradients[0].of.nbytes)


def _split_sequence(block: Block, columns: set[str], wide: int, ranks: int) -> None:
    """Between the split linears each rank keeps a part of the tokens; what a column-split linear reads is gathered and kept."""
    gathered = {id(s) for op in block.ops if op.name.rpartition(".")[0] in columns or "head" in op.name for s in op.reads}
    split: set[int] = set()
    for op in block.ops:
        out = op.output
        if out is None or op.allocates is None or len(out.shape) != 3 or out.shape[-1] not in (wide, 1):
            continue
        if id(op.allocates) in gathered or id(op.allocates) in split:
            continue
        op.allocates.nbytes = round_block(op.allocates.nbytes // ranks)
        op.moved = op.moved // ranks
        split.add(id(op.allocates))
    for op in block.ops:
        for gradient in op.gradients:
            if id(gradient.of.storage) in split and gradient.nbytes is not None:
                gradient.nbytes = round_block(gradient.nbytes // ranks)
                gradient.scratch = None if gradient.scratch is None else round_block(gradient.scratch // ranks)


def _ring(network: Network, ranks: int) -> None:
    """Ring attention: keys and values of the next rank arrive while those of this one are used; so do their gradients.

    Two buffers of keys and values in the forward, two more of fp32 gradients in the backward; queries meet all keys.
    """
    for block in {id(run.block): run.block for run in network.runs}.values():
        for op in block.ops:
            if not op.name.endswith("_attention") or len(op.reads) < 3:
                continue
            near = sum(storage.nbytes for storage in op.reads[1:3])
            op.scratch = _bytes(op.scratch) + 2 * near
            op.workspace = _bytes(op.workspace) + 6 * near
            op.flops = op.flops * ranks
            for gradient in op.gradients:
                gradient.flops = gradient.flops * ranks


def _bytes(size: Size | None) -> Size:
    return 0 if size is None else size


def layers_of_stages(layers: int, stages: int) -> list[int]:
    """Layers of each stage: as even as can be, the first stages the larger ones."""
    return [layers // stages + (index < layers % stages) for index in range(stages)]


def stage_network(network: Network, stages: int, index: int) -> Network:
    """The part of a network that one pipeline stage has; what it does not have of embedding and head costs nothing there."""
    if stages == 1:
        return network
    middle = network.runs[1:-1]
    counts = layers_of_stages(sum(run.count for run in middle), stages)
    start, stop = sum(counts[:index]), sum(counts[: index + 1])
    runs: list[Run] = [network.runs[0] if index == 0 else replace(network.runs[0], block=_received(network.runs[0].block))]
    position = 0
    for run in middle:
        own = min(stop, position + run.count) - max(start, position)
        position += run.count
        if own > 0:
            runs.append(replace(run, count=own))
    if index == stages - 1:
        runs.append(network.runs[-1])
    return replace(network, runs=runs, parameters=_owned(network, runs, index))


def _received(block: Block) -> Block:
    """The first block of a later stage: hidden states arrive instead of being looked up."""
    ops = [replace(op, gradients=()) if op.name.endswith("embedding") else op for op in block.ops]
    return replace(block, ops=ops, parameters=())


def _owned(network: Network, runs: list[Run], index: int) -> list[Parameter]:
    """Weights of a stage, each as often as it has layers with it."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.block.parameters:
            counts[name] = counts.get(name, 0) + run.count if "*" in name else 1
    known = {name for run in network.runs for name in run.block.parameters}
    loose = [p for p in network.parameters if p.name not in known and index == 0]  # what no block uses stays on the first
    return [replace(p, count=counts[p.name]) for p in network.parameters if p.name in counts] + loose


def in_flight(sharding: Sharding, index: int, micro_batches: Size) -> float:
    """Forwards of a stage that wait for their backward at most, in units of all its layers.

    1F1B: as many as there are stages from this one on (Narayanan et al. 2021, section 2.2.1). Interleaved with v parts a stage:
    `2 (p - i - 1) + (v - 1) p + 1` of them are of one part each (Megatron-LM, schedules.py, the number of warm-up micro-batches).
    GPipe: all.
    """
    stages, parts = sharding.pipeline_parallel, sharding.virtual_stages
    if stages == 1:
        return 1
    if sharding.pipeline_schedule == "gpipe":
        return micro_batches
    if sharding.pipeline_schedule == "interleaved":
        return _least((2 * (stages - index - 1) + (parts - 1) * stages + 1) / parts, micro_batches)
    return _least(stages - index, micro_batches)


def _least(most: float, micro_batches: Any) -> float:
    if isinstance(micro_batches, int):
        return min(most, micro_batches)
    import numpy as np

    least: Any = np.minimum(most, micro_batches)
    found: float = least
    return found

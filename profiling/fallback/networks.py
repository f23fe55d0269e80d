"""The planner's network of a traced model: its weights, and its layers without ops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import WEIGHTS, Storage, Tensor, elements
from tuneplan.planner.methods.formats import stored_bytes
from tuneplan.planner.models.network import Run
from tuneplan.planner.models.parameter import Parameter
from tuneplan.profiling.fallback.cuts import FINISH, START, Cuts
from tuneplan.profiling.fallback.recording import Weight


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a network has whatever the batch.

    Attributes:
        parameters: weights; of layers alike once, with their number.
        runs: what is before the layers, layers alike, and what is after them.
        run_of: the run of each layer in the order in which they ran, of START and of FINISH.
    """

    parameters: list[Parameter]
    runs: list[Run]
    run_of: dict[int, int]


def skeleton(weights: Sequence[Weight], layers: Sequence[str], cuts: Cuts, existing_bytes: int) -> Skeleton:
    """The network of a traced model.

    Args:
        weights: every parameter.
        layers: paths of all layers, those that did not run included.
        cuts: of the step.
        existing_bytes: of all weights and buffers together; what no parameter has is one buffer.
    """
    members: dict[str, list[Weight]] = {path: [] for path in layers}
    root: list[Weight] = []
    for weight in weights:
        members.get(_layer(weight.name, members), root).append(weight)
    last = [weight for weight in root if weight.name.rpartition(".")[0] in cuts.finish]
    first = [weight for weight in root if weight not in last]
    made = Skeleton([], [], {})
    _add(made, "start", first, None, _hidden(any(weight.trained for weight in root)))
    _add_layers(made, members, cuts)
    _add(made, "finish", last, _hidden(True), None)
    made.run_of.update({START: 0, FINISH: len(made.runs) - 1})
    tied = max((w for w in first if len(w.shape) == 2), key=lambda w: elements(w.shape), default=None)
    if tied is not None and not any(len(w.shape) == 2 for w in last):
        made.runs[-1].block.parameters += (tied.name,)
    rest = existing_bytes - sum(p.stored_bytes * p.count for p in made.parameters)
    if rest > 0:
        made.parameters.append(_buffer(rest))
    return made


def _add_layers(made: Skeleton, members: Mapping[str, list[Weight]], cuts: Cuts) -> None:
    """A run for each group of neighbours alike; layers that did not run are last."""
    reached = {stretch.layer for stretch in cuts.backward[0]}
    below = made.runs[0].block.exit
    ordered = dict.fromkeys([*cuts.order, *members])
    known: object = None
    for index, path in enumerate(ordered):
        own = members[path]
        shapes = [(w.name[len(path) :], w.shape, w.storage, w.trained, w.idle, w.adapter) for w in own]
        stack, enters, leaves = path.rpartition(".")[0], below is not None and below.requires_grad, index in reached
        alike = (stack, index < len(cuts.order), enters, leaves, shapes)
        if alike == known:
            run = made.runs[-1]
            run.count += 1
            for parameter in made.parameters[len(made.parameters) - len(own) :]:
                parameter.count += 1
        else:
            stem = f"{stack}.*({len(made.runs)})"
            run = _add(made, "layer", own, _hidden(enters), _hidden(leaves), (path, stem))
            run.layered = True
        known, below = alike, run.block.exit
        if index < len(cuts.order):
            made.run_of[index] = len(made.runs) - 1


def _layer(name: str, layers: dict[str, list[Weight]]) -> str:
    """The path of the layer that a weight is in; "" for none."""
    pieces = name.split(".")
    return next((path for n in range(1, len(pieces)) if (path := ".".join(pieces[:n])) in layers), "")


def _add(
    made: Skeleton,
    name: str,
    weights: Sequence[Weight],
    entry: Tensor | None,
    exit: Tensor | None,
    renamed: tuple[str, str] = ("", ""),
) -> Run:
    """Add a run with its weights. `renamed`: what their names start with, and what takes its place."""
    own = [_parameter(weight, renamed[1] + weight.name[len(renamed[0]) :]) for weight in weights]
    run = Run(Block(name, [], entry, exit, parameters=tuple(p.name for p in own)), 1, checkpointed=False, layered=False)
    made.parameters.extend(own)
    made.runs.append(run)
    return run


def _hidden(requires_grad: bool) -> Tensor:
    """A stand-in for hidden states, of which only this is asked."""
    return Tensor(Storage(0, WEIGHTS), (0,), "bf16", requires_grad)


def _parameter(weight: Weight, name: str) -> Parameter:
    count, rows = elements(weight.shape), weight.shape[0] if weight.shape else 1
    size = stored_bytes(count, weight.storage, rows)
    return Parameter(
        name=name,
        shape=weight.shape,
        storage=weight.storage,
        trainable=weight.trained,
        adapter=weight.adapter,
        stored_bytes=size,
        count=1,
        tensor=Tensor(Storage(size, WEIGHTS), weight.shape, weight.storage, weight.trained, name),
        idle=weight.idle,
    )


def _buffer(size_bytes: int) -> Parameter:
    tensor = Tensor(Storage(size_bytes, WEIGHTS), (size_bytes,), "uint8", name="buffers")
    size = (size_bytes,)
    return Parameter("buffers", size, "uint8", False, False, size_bytes, 1, tensor, saved=False, buffer=True)

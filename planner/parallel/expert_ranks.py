"""The experts of one rank where ranks split them (Lepikhin et al. 2020, GShard), under even routing and under the worst.

Balanced, as many rows come from the other ranks as go there. At worst all tokens of all R ranks want experts of one rank, which
has E / R of them: each token sends it as many of its k rows as it has experts, so it computes `R * min(k, E / R) / k` times the
rows of a balanced rank.
"""

from fractions import Fraction

from tuneplan.planner.graph.block import Block
from tuneplan.planner.graph.tensor import Size, Tensor, elements, round_block
from tuneplan.planner.methods.formats import stored_bytes
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.spec import ModelSpec
from tuneplan.planner.training.settings import Settings

EXPERTS = "experts"


def split_experts(network: Network, spec: ModelSpec, settings: Settings, ranks: int) -> None:
    """Give the rank its part of the experts, and under the worst routing the rows of all ranks."""
    for p in network.parameters:
        if EXPERTS not in p.name.split("."):
            continue
        before = p.stored_bytes
        p.shape = (p.shape[0] // ranks, *p.shape[1:])
        p.stored_bytes = stored_bytes(elements(p.shape), p.storage, p.shape[0])
        p.tensor.storage.nbytes = p.stored_bytes
        for run in network.runs:
            for op in run.block.ops:
                for gradient in op.gradients:
                    if gradient.of is p.tensor and gradient.nbytes == before:
                        gradient.nbytes = p.stored_bytes
    if settings.routing == "worst":
        factor = busiest(getattr(spec, "num_experts", 1), getattr(spec, "top_k", 1), ranks)
        for block in {id(run.block): run.block for run in network.runs}.values():
            _more_rows(block, factor, settings.sequences * settings.seq_len * getattr(spec, "top_k", 1))


def busiest(experts: int, top_k: int, ranks: int) -> Fraction:
    """Rows of the busiest rank over those of a balanced one, at worst."""
    return Fraction(ranks * min(top_k, experts // ranks), top_k)


def _more_rows(block: Block, factor: Fraction, rows: Size) -> None:
    """Scale what the experts' ops make of each row, and their work."""

    def grown(size: Size) -> Size:
        return round_block(size * factor.numerator // factor.denominator)

    def per_row(tensor: Tensor | None) -> bool:
        return tensor is not None and tensor.shape[0] == rows

    scaled: set[int] = set()
    for op in block.ops:
        if EXPERTS not in op.name.split(".") or not per_row(op.output):
            continue
        rest = op.moved
        if op.allocates is not None and id(op.allocates) not in scaled:
            scaled.add(id(op.allocates))
            op.allocates.nbytes, added = grown(op.allocates.nbytes), grown(op.allocates.nbytes) - op.allocates.nbytes
            op.moved = rest + added
        op.flops = op.flops * factor.numerator // factor.denominator
        for gradient in op.gradients:
            gradient.flops = gradient.flops * factor.numerator // factor.denominator
            if per_row(gradient.of):
                gradient.moved = (gradient.moved or 0) * factor.numerator // factor.denominator
                gradient.nbytes = None if gradient.nbytes is None else grown(gradient.nbytes)
                gradient.scratch = None if gradient.scratch is None else grown(gradient.scratch)

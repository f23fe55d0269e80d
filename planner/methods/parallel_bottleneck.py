"""A bottleneck adapter beside the MLP, which can stand in a method together with one after it (AutoPEFT's PA and SA)."""

from dataclasses import dataclass
from typing import ClassVar

from tuneplan.planner.methods.bottleneck_adapter import BottleneckAdapter


@dataclass(frozen=True, slots=True)
class ParallelBottleneck(BottleneckAdapter):
    """y + s U f(D h) beside the MLP, h being the residual stream; the same as bottleneck_adapter(is_parallel=true)."""

    label: ClassVar[str] = "parallel_bottleneck"
    paper: ClassVar[str] = "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning"
    source: ClassVar[str] = "table 1 (parallel adapter); adapters 1.3 methods/bottleneck.py"
    module: ClassVar[str] = "parallel_adapter"

    mh_adapter: bool = False
    is_parallel: bool = True

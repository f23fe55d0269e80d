"""The real loop over experts on tensors with values, whose tokens are made to choose as `Settings.routing` says."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import traced  # noqa: E402

from tuneplan.profiling.expert_loop import is_experts  # noqa: E402
from tuneplan.profiling.step import StepTrace, trace_step  # noqa: E402


def force(model: Any, routing: str) -> None:
    """Overwrite what every router chose: one row after the other to the next expert, or all tokens to the first experts."""

    def overwrite(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen = args[1]
        tokens, top_k = chosen.shape
        wanted = torch.arange(top_k).expand(tokens, top_k)
        if routing == "even":
            wanted = (torch.arange(tokens * top_k) % module.num_experts).view(tokens, top_k)
        chosen.data.copy_(wanted)

    for module in model.modules():
        if is_experts(module):
            module.register_forward_pre_hook(overwrite, with_kwargs=True)


def run(case: traced.Case) -> StepTrace:
    """A step of the real code on the CPU."""
    ready = traced.built(case, "cpu")
    force(ready.model, case.settings.routing)
    return trace_step(ready, case.settings)

"""Optimizer states against the real bitsandbytes optimizers on the CPU, and fp32 master weights against plain torch."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")
bitsandbytes = pytest.importorskip("bitsandbytes")

import traced as side_by_side  # noqa: E402
from traced import Case, small  # noqa: E402

from tuneplan.planner.graph.tensor import round_block  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.network import build  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.training.optimizers import OPTIMIZERS, state_bytes  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402

MAKERS = {
    "adamw_8bit": bitsandbytes.optim.AdamW8bit,
    "lion": bitsandbytes.optim.Lion,
}


def _real_bytes(optimizer: Any, parameters: Iterable[Any]) -> int:
    """Bytes of the states that bitsandbytes makes for each parameter; tables that parameters share are left out."""
    total = 0
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
        state = optimizer.state[parameter]
        kept = [v for k, v in state.items() if isinstance(v, torch.Tensor) and not k.startswith("qmap")]
        total += sum(round_block(v.untyped_storage().nbytes()) for v in kept)
    return total


@pytest.mark.parametrize("name", list(MAKERS))
def test_states_of_bitsandbytes(name: str) -> None:
    """State bytes of a small model equal what bitsandbytes allocates, small tensors in fp32 included."""
    config = small(hidden_size=64, intermediate_size=176, num_hidden_layers=2, vocab_size=300)
    network = build(read_spec("test", ConfigReader(config, "test")), parse("full"), Settings())
    parameters = [
        torch.nn.Parameter(torch.zeros(p.shape, dtype=torch.bfloat16)) for p in network.parameters for _ in range(p.count)
    ]
    optimizer = MAKERS[name](parameters)

    assert _real_bytes(optimizer, parameters) == state_bytes(OPTIMIZERS[name], network.parameters, master=False).device


@pytest.mark.traced
def test_master_weights() -> None:
    """Mixed precision with fp32 masters: 12 bytes a parameter are kept, and gradients are cast for the update."""
    settings = Settings(micro_batch_size=1, seq_len=64, precision="master-weights")
    case = Case(small(), "full", replace(settings, gradient_checkpointing="non-reentrant"))
    _, memory = side_by_side.estimated(case)
    _, trace = side_by_side.traced(case)

    for name, phase in trace.phases.items():
        assert phase.peak_bytes == pytest.approx(memory.phases[name].peak_bytes, rel=0.001), name

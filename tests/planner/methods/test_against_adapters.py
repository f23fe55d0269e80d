"""Adapters of the `adapters` library against its recorded traces (tests/golden/record_adapters.py).

Multi-head Llama in fp32 with eager attention, where transformers 4.57 and 5.23 allocate alike: the case without adapters agrees
to 0.01 %. So the forward is held to 0.05 % in the whole, not only in the difference.
"""

import json
from pathlib import Path

import pytest

from tuneplan.planner.memory import StepMemory, step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings

GOLDEN = Path(__file__).parents[2] / "golden" / "adapters"


def estimated(case: str, method: str) -> tuple[dict[str, int], Network, StepMemory]:
    """What was recorded, and the ledger's answer to it."""
    golden = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
    spec = read_spec("test", ConfigReader({"model_type": "llama", **golden["config"]}, "test"))
    settings = Settings(
        micro_batch_size=golden["batch"],
        seq_len=golden["length"],
        dtype=golden["dtype"],
        attention=golden["attention"],
        gradient_checkpointing="off",
    )
    network = build(spec, parse(method), settings)
    return golden, network, step_memory(network, settings, OPTIMIZERS["adamw"])


@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("none", "trained_kinds(kinds=norm)"),
        ("houlsby", "houlsby"),
        ("pfeiffer", "pfeiffer"),
        ("parallel_adapter", "parallel_adapter"),
        ("compacter", "compacter"),
        ("compacter_plus", "compacter_plus"),
        ("lora", "lora(target_modules=q_proj,v_proj)"),
        ("prefix_tuning", "prefix_tuning(num_virtual_tokens=30,past_key_values=false)"),
        ("mam", "mam"),
        ("unipelt", "unipelt"),
    ],
)
def test_peak(case: str, method: str) -> None:
    """Parameters exactly; the end of the forward and the peak."""
    golden, network, memory = estimated(case, method)
    assert golden["trainable"] == network.trainable_parameters
    assert golden["forward_end_bytes"] == pytest.approx(memory.phases["forward"].end_bytes, rel=0.0005)
    assert golden["peak_bytes"] == pytest.approx(memory.peak.peak_bytes, rel=0.0005)

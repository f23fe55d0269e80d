"""Kernels that a layer starts, forward and backward, against what the real code dispatches."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.models.config import ConfigReader  # noqa: E402
from tuneplan.planner.models.network import build  # noqa: E402
from tuneplan.planner.models.registry import read_spec  # noqa: E402
from tuneplan.planner.timing.work import network_work  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 100, "tie_word_embeddings": True, "max_position_embeddings": 64,
}  # fmt: skip
RUN = Settings(micro_batch_size=2, seq_len=16, gradient_checkpointing="off", attention="eager")
NO_KERNEL = {
    "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "new_empty",
    "new_empty_strided", "permute", "reshape", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip
"""Operators that start nothing: views and allocations."""
TWO_KERNELS = {"slice_backward": 2}
"""Zeros, and a copy into a part of them."""

WHERE: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
PART = "target_modules=q_proj,v_proj"


class Dispatched(TorchDispatchMode):  # type: ignore[misc]
    """Counts operators that start kernels."""

    def __init__(self) -> None:
        """Nothing was dispatched yet."""
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run."""
        self.names[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """Kernels that all of them start."""
        return sum(TWO_KERNELS.get(name, 1) * times for name, times in self.names.items() if name not in NO_KERNEL)


@dataclass(frozen=True)
class Started:
    """Kernels of a forward and of a backward."""

    forward: int
    backward: int


def real(layers: int, config: Any) -> Started:
    """The real code's, on a CPU."""
    settings = transformers.LlamaConfig(**SIZES, num_hidden_layers=layers)
    settings._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(settings).to(torch.bfloat16)
    model = model if config is None else peft.get_peft_model(model, config)
    model.train()
    tokens = torch.zeros((RUN.micro_batch_size, RUN.seq_len), dtype=torch.long)
    with Dispatched() as ahead:
        output = model(input_ids=tokens, labels=tokens, use_cache=False)
    with Dispatched() as behind:
        output.loss.backward()
    return Started(ahead.kernels, behind.kernels)


def counted(layers: int, method: str) -> Started:
    """The planner's."""
    reader = ConfigReader({"model_type": "llama", **SIZES, "num_hidden_layers": layers}, "test")
    work = network_work(build(read_spec("test", reader), parse(method), RUN), RUN)
    return Started(work.forward.launches, work.backward.launches)


def of_a_layer(two: Started, three: Started) -> Started:
    """What one more layer starts."""
    return Started(three.forward - two.forward, three.backward - two.backward)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("full", None),
        (f"lora(r=8,{PART})", peft.LoraConfig(r=8, **WHERE)),
        (f"lora(r=8,use_dora=true,{PART})", peft.LoraConfig(r=8, use_dora=True, **WHERE)),
        (f"vera(r=8,{PART})", peft.VeraConfig(r=8, **WHERE)),
        (f"miss(r=8,{PART})", peft.MissConfig(r=8, **WHERE)),
        (
            "adalora(init_r=8,target_r=4,target_modules=q_proj,v_proj)",
            peft.AdaLoraConfig(init_r=8, target_r=4, total_step=100, tinit=10, tfinal=10, **WHERE),
        ),
    ],
    ids=lambda value: value.split("(")[0] if isinstance(value, str) else "",
)
def test_a_layer_starts_the_kernels_that_are_dispatched(method: str, config: Any) -> None:
    """One layer more under eager attention: the kernels of forward and backward, exactly."""
    expected = of_a_layer(real(2, config), real(3, config))
    assert expected == of_a_layer(counted(2, method), counted(3, method))

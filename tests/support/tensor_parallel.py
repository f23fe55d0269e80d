"""A Llama of transformers split over ranks by torch's own tensor parallelism, for tests."""

from typing import Any

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)


def split(model: Any, ranks: int, sequence: bool) -> None:
    """Heads, columns and vocabulary over the ranks, the logits left split; `sequence`: the tokens between them too."""
    mesh = init_device_mesh("cpu", (ranks,))
    between = Shard(1) if sequence else Replicate()
    outer: dict[str, Any] = {"embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=between)}
    inner: dict[str, Any] = {
        **{f"self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")},
        **{f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")},
        **{name: RowwiseParallel(output_layouts=between) for name in ("self_attn.o_proj", "mlp.down_proj")},
    }
    if sequence:
        outer["norm"] = SequenceParallel()
        whole = {"hidden_states": Replicate()}
        inner |= {
            "input_layernorm": SequenceParallel(),
            "post_attention_layernorm": SequenceParallel(),
            "self_attn": PrepareModuleInput(input_kwarg_layouts={"hidden_states": Shard(1)}, desired_input_kwarg_layouts=whole),
            "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        }
    parallelize_module(model.model, mesh, outer)
    parallelize_module(model, mesh, {"lm_head": ColwiseParallel(input_layouts=between)})
    for layer in model.model.layers:
        parallelize_module(layer, mesh, inner)
    model.config.vocab_size = model.vocab_size = model.config.vocab_size // ranks  # the loss is of a rank's part

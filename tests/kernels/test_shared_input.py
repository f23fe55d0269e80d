"""Which layers share an input, read from a module's code."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP
from transformers.models.t5.modeling_t5 import T5Attention

from tuneplan.kernels.shared_input import shared_inputs


class Three(nn.Module):
    """Children a, b and c; each subclass calls them in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Identity(), nn.Identity(), nn.Identity()


class Plain(Three):
    def forward(self, x: torch.Tensor) -> Any:
        return self.c(self.a(x).relu() * self.b(x))


class OutOfOrder(Three):
    def forward(self, x: torch.Tensor) -> Any:
        c = self.c(x)
        return self.b(x), self.a(x), c


class SetBetween(Three):
    def forward(self, x: torch.Tensor) -> Any:
        a = self.a(x)
        x = x + 1
        return a, self.b(x)


class SetByTheFirst(Three):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.a(x)
        return self.b(x)


class InABranch(Three):
    def forward(self, x: torch.Tensor, more: bool = False) -> Any:
        a = self.a(x)
        return (a, self.b(x)) if more else a


class BothInABranch(Three):
    def forward(self, x: torch.Tensor, more: bool = False) -> Any:
        if more:
            return self.a(x), self.b(x)
        return self.c(x)


class CalledTwice(Three):
    def forward(self, x: torch.Tensor) -> Any:
        return self.a(x), self.b(x), self.b(x)


class OtherUses(Three):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.a(x), self.b(y), self.c(input=x)


CASES = {
    Plain: [("a", "b")],
    OutOfOrder: [("c", "b", "a")],
    SetBetween: [],
    SetByTheFirst: [],
    InABranch: [],
    BothInABranch: [("a", "b")],
    CalledTwice: [],
    OtherUses: [],
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_groups(kind: type[Three]) -> None:
    """One variable, not set in between, in one branch, each child named once: else there is no group."""
    assert CASES[kind] == shared_inputs(kind(), ("a", "b", "c"))


def test_only_children_that_are_asked_for() -> None:
    """A layer without an adapter is in no group, and does not keep others from one."""
    assert [("c", "a")] == shared_inputs(OutOfOrder(), ("a", "c"))
    assert [] == shared_inputs(OutOfOrder(), ("a",))


def test_code_that_cannot_be_read() -> None:
    """A forward without Python source has no groups."""
    module = Plain()
    module.forward = len
    assert [] == shared_inputs(module, ("a", "b"))


FAMILIES = {
    LlamaAttention: [("q_proj", "k_proj", "v_proj")],
    MistralAttention: [("q_proj", "k_proj", "v_proj")],
    Qwen2Attention: [("q_proj", "k_proj", "v_proj")],
    Gemma3Attention: [("q_proj", "k_proj", "v_proj")],
    LlamaMLP: [("gate_proj", "up_proj")],
    Qwen2MLP: [("gate_proj", "up_proj")],
    BertSelfAttention: [("query", "key", "value")],
    T5Attention: [("k", "v")],
}
"""T5's keys and values may come from the encoder, its queries never do."""
CHILDREN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "query", "key", "value", "q", "k", "v")


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)
def test_families_of_transformers(kind: type[nn.Module]) -> None:
    """Attention and feed-forward of the code that people train."""
    assert FAMILIES[kind] == shared_inputs(kind.__new__(kind), CHILDREN)

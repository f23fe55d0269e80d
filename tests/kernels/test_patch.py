"""A patched PEFT model trains, generates, saves, switches, merges and disables as before."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from lora_models import KINDS, Case, OneLayer, adapted_layer, fill, ids, layer_of, losses, tiny_llama
from moved_bytes import moved
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tuneplan.kernels import patch as patching
from tuneplan.kernels.errors import KernelInputError
from tuneplan.kernels.lora_function import LoraLinears
from tuneplan.kernels.patch import PatchedForward, patch, unpatch

BF16, FP32 = torch.bfloat16, torch.float32
PREFIX = "base_model.model.model.layers.0."
GROUPS = tuple(
    tuple(f"base_model.model.model.layers.{layer}.{name}" for name in names)
    for layer in (0, 1)
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Outputs of each call of the autograd function."""
    found: list[int] = []
    real = LoraLinears.apply

    def counted(*arguments: Any) -> Any:
        outputs = real(*arguments)
        found.append(len(outputs))
        return outputs

    monkeypatch.setattr(LoraLinears, "apply", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_fp32_is_the_same(kind: str, calls: list[int]) -> None:
    """Losses of three steps agree to six digits, dropout and all, in as many calls as there are groups and single layers."""
    expected = losses(tiny_llama(kind, FP32, lora_dropout=0.1))
    model = tiny_llama(kind, FP32, lora_dropout=0.1)
    report = patch(model)
    assert (14, GROUPS, {}) == (len(report.patched), report.sharing, report.left_alone)
    result = losses(model)
    assert [3, 1, 2, 1] * 2 * 3 == calls
    # sums in another order: 1e-7 an op, some dozens of ops, three steps
    assert expected == pytest.approx(result, rel=2e-6)


@pytest.mark.parametrize("autocast", [None, BF16], ids=["plain", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_in_bf16(kind: str, autocast: torch.dtype | None) -> None:
    """Losses agree within a quarter of bf16's rounding, 2^-9 = 2e-3: a mean over 46 tokens keeps a fraction, 1e-4 here."""
    expected = losses(tiny_llama(kind), autocast=autocast)
    model = tiny_llama(kind)
    patch(model)
    assert expected == pytest.approx(losses(model, autocast=autocast), rel=5e-4)


def checkpoint(model: Any, reentrant: bool) -> None:
    """Layers run again in the backward. transformers 5.17 has the call under its older name alone."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """Both kinds, with dropout: the losses are those without checkpoints, to the bit."""
    found = []
    for checkpointed in (False, True):
        model = tiny_llama("4bit", lora_dropout=0.1)
        model.enable_input_require_grads()
        if checkpointed:
            checkpoint(model, reentrant)
        patch(model)
        found.append(losses(model))
    assert found[0] == found[1]


def test_checkpoints_without_a_compute_dtype() -> None:
    """It is set at the first call by bitsandbytes; the second run of a checkpoint takes the same code as the first."""
    model = tiny_llama("4bit")
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = None, False
    model.enable_input_require_grads()
    checkpoint(model, False)
    patch(model)
    assert losses(tiny_llama("4bit")) == pytest.approx(losses(model), rel=5e-4)


def kept_bytes(model: Any, autocast: bool) -> int:
    """Bytes of the storages that autograd keeps between the passes, parameters and quant states aside."""
    there = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    for module in model.modules():
        for owner in (getattr(module, "state", None), getattr(module, "weight", None)):
            state = getattr(owner, "quant_state", None)
            second = getattr(state, "state2", None)
            for holder, names in ((owner, ("CB", "SCB")), (state, ("absmax", "code", "offset")), (second, ("absmax", "code"))):
                tensors = (getattr(holder, name, None) for name in names)
                there |= {tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor)}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", BF16, enabled=autocast):
        loss = model(input_ids=ids(), labels=ids()).loss
    total = sum(found.values())
    loss.backward()
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_is_kept(kind: str) -> None:
    """Nothing more with adapters of the activations' dtype, a quarter less with PEFT's default of fp32, never more."""
    for dtype, autocast, options, most in (
        (BF16, False, {}, 0.75),
        (BF16, False, {"lora_dropout": 0.1}, 0.65),
        (BF16, True, {}, 0.9),
        (FP32, True, {}, 0.9),
        (FP32, False, {}, 1.0),
    ):
        model = tiny_llama(kind, dtype, **options)
        before = kept_bytes(model, autocast)
        patch(model)
        assert kept_bytes(model, autocast) <= most * before, (dtype, autocast, options)


MOVED = {"dense": 0.65, "8bit": 0.6, "4bit": 0.8}
"""Of PEFT's bytes. bitsandbytes decodes a 4-bit weight inside of its product, where its dense copy is not counted."""


@pytest.mark.parametrize("adapter", [BF16, FP32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_bytes_are_moved(kind: str, adapter: torch.dtype) -> None:
    """Forward and backward of one layer run fewer ops over fewer bytes than PEFT's code."""
    model, _ = layer_of(kind, Case(BF16, adapter, BF16), width=128, outputs=352, rank=4)
    x, grad = torch.randn(128, 128, dtype=BF16, requires_grad=True), torch.randn(128, 352, dtype=BF16)
    theirs = moved(lambda: model(x).backward(grad))
    patch(model)
    ours = moved(lambda: model(x).backward(grad))
    assert sum(ours.ops.values()) < sum(theirs.ops.values())
    assert sum(ours.bytes.values()) < MOVED[kind] * sum(theirs.bytes.values())


def test_unpatch_restores(calls: list[int]) -> None:
    """Nothing of the patch is left: attributes, hooks, and the bits of PEFT's own losses."""
    model = tiny_llama("4bit")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    patch(model)
    assert keys == list(model.state_dict())
    assert 14 == unpatch(model)
    assert 0 == unpatch(model)
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert hooks == {name: len(module._forward_hooks) for name, module in model.named_modules()}
    assert not any(module._forward_hooks_always_called for module in model.modules())
    assert losses(tiny_llama("4bit")) == losses(model)
    assert [] == calls


def output(model: Any) -> torch.Tensor:
    """Logits."""
    return model(input_ids=ids()).logits.detach()  # type: ignore[no-any-return]


def disabled(model: Any) -> torch.Tensor:
    """Without the adapter."""
    with model.disable_adapter():
        return output(model)


def merged(model: Any) -> torch.Tensor:
    """With the adapter merged, then apart again."""
    model.merge_adapter()
    found = output(model)
    model.unmerge_adapter()
    return torch.stack([found, output(model)])


def switched(model: Any) -> torch.Tensor:
    """With another adapter, then with the first."""
    model.set_adapter("other")
    found = output(model)
    model.set_adapter("default")
    return torch.stack([found, output(model)])


def both(model: Any) -> torch.Tensor:
    """With two adapters at once, then with one."""
    model.base_model.set_adapter(["default", "other"])
    found = output(model)
    model.set_adapter("default")
    return torch.stack([found, output(model)])


def mixed(model: Any) -> torch.Tensor:
    """With an adapter for each row."""
    model.eval()
    return model(input_ids=ids(), adapter_names=["default", "other"]).logits.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("use", [disabled, merged, switched, both, mixed])
def test_adapters_come_and_go(use: Callable[[Any], torch.Tensor]) -> None:
    """Whatever is done to the adapters of a patched model, the logits are those of PEFT."""
    found = []
    for patched in (False, True):
        model = tiny_llama("dense", FP32)
        model.add_adapter("other", LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], use_rslora=True))
        fill(model)
        if patched:
            patch(model)
        found.append(use(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generation(kind: str) -> None:
    """Greedy tokens of an evaluated model are PEFT's."""
    found = []
    for patched in (False, True):
        model = tiny_llama(kind, FP32)
        if patched:
            patch(model)
        model.eval()
        found.append(model.generate(input_ids=ids()[:, :8], max_new_tokens=6, do_sample=False, pad_token_id=0).tolist())
    assert found[0] == found[1]


def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    """What a patched model trained and saved loads into a plain one, and the other way round."""
    model = tiny_llama("dense", FP32)
    patch(model)
    losses(model, steps=2)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(tiny_llama("dense", FP32).unload(), str(tmp_path))
    expected = output(plain.eval())
    torch.testing.assert_close(expected, output(model.eval()), rtol=1e-5, atol=1e-5)
    assert 14 == len(patch(plain).patched)
    torch.testing.assert_close(expected, output(plain), rtol=1e-5, atol=1e-5)


def test_a_copy_is_patched_by_itself(calls: list[int]) -> None:
    """A deep copy runs on its own parameters, and is unpatched alone."""
    model = tiny_llama("dense", FP32)
    patch(model)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not output(twin).any()
    assert output(model).any()
    assert 14 == unpatch(twin)
    calls.clear()
    output(model)
    assert [3, 1, 2, 1] * 2 == calls


def test_frozen_a_and_trained_bias() -> None:
    """LoRA-FA's frozen A, and a bias that is trained beside the adapter: gradients are PEFT's."""
    found = []
    for patched in (False, True):
        model, layer = adapted_layer("dense", Case(FP32, FP32, FP32), bias=True)
        layer.lora_A.default.weight.requires_grad_(False)
        layer.base_layer.bias.requires_grad_(True)
        if patched:
            patch(model)
        torch.manual_seed(3)
        model(torch.randn(6, 128)).square().sum().backward()
        assert layer.lora_A.default.weight.grad is None
        found.append((layer.lora_B.default.weight.grad, layer.base_layer.bias.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-4)


def test_what_is_left_alone() -> None:
    """DoRA, an adapter's bias, embeddings, convolutions and trained weights keep PEFT's code; the report says why."""
    expected = {
        "variant of LoRA (Dora": {"use_dora": True},
        "has a bias (lora_bias)": {"lora_bias": True},
    }
    for reason, options in expected.items():
        model = get_peft_model(OneLayer(nn.Linear(8, 8)), LoraConfig(target_modules=["layer"], **options))
        report = patch(model)
        assert () == report.patched
        assert reason in report.left_alone["base_model.model.layer"]
        assert "0 LoRA layers patched" in str(report)
        assert reason in str(report)
    for layer in (nn.Embedding(8, 8), nn.Conv1d(4, 4, 1)):
        report = patch(get_peft_model(OneLayer(layer), LoraConfig(target_modules=["layer"])))
        assert f"type {type(layer).__name__}" in report.left_alone["base_model.model.layer"]


def test_a_trained_weight_and_hooks_run_peft(calls: list[int]) -> None:
    """What changes after the patch is seen at the call: a base weight that is trained, a hook on A, a replaced forward."""
    model, layer = adapted_layer("dense", Case(FP32, FP32, FP32))
    patch(model)
    x = torch.randn(2, 128)
    model(x)
    layer.base_layer.weight.requires_grad_(True)
    model(x).sum().backward()
    assert layer.base_layer.weight.grad is not None
    layer.base_layer.weight.requires_grad_(False)
    seen: list[Any] = []
    handle = layer.lora_A.default.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    handle.remove()
    assert ([1], [1]) == (calls, seen)
    layer.base_layer.forward = lambda x: torch.zeros(2, 160)
    patch(model)
    assert not isinstance(vars(layer).get("forward"), PatchedForward)


def test_other_dtypes_run_peft(calls: list[int]) -> None:
    """fp64 throughout, and A and B of two dtypes, which PEFT refuses in its own words."""
    model, layer = adapted_layer("dense", Case(torch.float64, torch.float64, torch.float64))
    patch(model)
    assert torch.float64 == model(torch.randn(2, 128, dtype=torch.float64)).dtype
    layer.lora_B.default.weight.data = layer.lora_B.default.weight.data.float()
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(2, 128, dtype=torch.float64))
    assert [] == calls


def test_an_input_that_was_changed_is_not_shared(calls: list[int]) -> None:
    """A hook hands one layer another tensor, or changes the shared one in place: each layer computes for what it gets."""
    for change in (lambda x: x * 2, lambda x: x.mul_(2)):
        found = []
        for patched in (False, True):
            model = tiny_llama("dense", FP32)
            if patched:
                patch(model)
            layer = model.get_submodule(PREFIX + "self_attn.k_proj")
            layer.register_forward_pre_hook(lambda _, inputs, change=change: (change(inputs[0]),))
            with torch.no_grad():
                found.append(output(model))
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert [3, 1, 1] == calls[:3]


def test_outputs_that_nobody_came_for_are_dropped() -> None:
    """Where a layer is not called after all, or the pass fails half way, nothing is left waiting."""
    model = tiny_llama("dense", FP32)
    patch(model)
    attention = model.get_submodule(PREFIX + "self_attn")
    shared = attention.q_proj.forward.shared

    def fail(*_: Any) -> None:
        raise ValueError("half way")

    handle = attention.v_proj.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="half way"):
        output(model)
    handle.remove()
    assert ({}, None) == (shared.waiting, shared.x)


def test_compiles_in_one_graph() -> None:
    """torch.compile(fullgraph=True) of a patched layer, over the three kinds of weights, gives eager gradients."""
    for kind in KINDS:
        model, layer = adapted_layer(kind, Case(FP32, FP32, FP32))
        patch(model)
        x = torch.randn(5, 128, requires_grad=True)
        expected = torch.autograd.grad(model(x).square().sum(), [x, layer.lora_A.default.weight])
        compiled = torch.compile(lambda x, model=model: model(x).square().sum(), fullgraph=True, backend="aot_eager")
        result = torch.autograd.grad(compiled(x), [x, layer.lora_A.default.weight])
        assert all(torch.equal(one, other) for one, other in zip(expected, result, strict=True))


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without adapters, and no peft at all."""
    with pytest.raises(KernelInputError, match="OneLayer has no adapter layers of peft"):
        patch(OneLayer(nn.Linear(2, 2)))
    monkeypatch.setitem(__import__("sys").modules, "peft.tuners.tuners_utils", None)
    with pytest.raises(KernelInputError, match="needs peft, which is not installed"):
        patching.patch(OneLayer(nn.Linear(2, 2)))

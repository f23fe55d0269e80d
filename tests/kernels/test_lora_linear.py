"""LoRA linears: gradients, errors against fp64 beside PEFT's own, what is kept, what is refused."""

from collections.abc import Callable
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from kernel_cases import DEVICE, relative_error
from lora_models import KINDS, Case, adapted_layer, exact_weight

from tuneplan.kernels.errors import KernelInputError, KernelUnavailableError
from tuneplan.kernels.frozen_weight import Rows8bit
from tuneplan.kernels.lora_linear import Adapted, lora_linear, lora_linears
from tuneplan.kernels.packed import Packed4bit
from tuneplan.kernels.patch import patch

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CASES = (
    Case(BF16, BF16, BF16),
    Case(BF16, FP32, BF16),
    Case(BF16, FP32, BF16, BF16),
    Case(BF16, FP32, FP32, BF16),
    Case(FP16, FP16, FP16),
    Case(FP16, FP32, FP16),
    Case(FP32, FP32, FP32),
)
SLACK = 1.05
"""Of an error against PEFT's: where both round alike, the order of sums moves it, by 0.3 % here and otherwise elsewhere."""


def member(outputs: int, rank: int, bias: bool = False, trains_A: bool = True, dtype: torch.dtype = FP64) -> Adapted:
    """A dense layer of 12 inputs with an adapter."""
    return Adapted(
        torch.randn(outputs, 12, dtype=dtype),
        torch.randn(rank, 12, dtype=dtype, requires_grad=trains_A),
        torch.randn(outputs, rank, dtype=dtype, requires_grad=True),
        0.7,
        torch.randn(outputs, dtype=dtype, requires_grad=True) if bias else None,
    )


def with_tensors(members: list[Adapted], tensors: tuple[Any, ...]) -> list[Adapted]:
    """The members with other A, B and bias."""
    return [
        Adapted(one.weight, *tensors[3 * at : 3 * at + 2], one.scale, tensors[3 * at + 2], one.dropout)
        for at, one in enumerate(members)
    ]


@pytest.mark.parametrize("x_trains", [True, False])
@pytest.mark.parametrize("trains_A", [True, False])
def test_gradcheck(x_trains: bool, trains_A: bool) -> None:
    """Analytic gradients are the numeric ones in fp64: three layers of one input, with a bias, with frozen A and without."""
    torch.manual_seed(0)
    members = [member(8, 2, bias=True, trains_A=trains_A), member(6, 3, trains_A=trains_A), member(4, 1, trains_A=trains_A)]
    x = torch.randn(2, 3, 12, dtype=FP64, requires_grad=x_trains)
    tensors = (x, *(tensor for one in members for tensor in (one.A, one.B, one.bias)))
    assert torch.autograd.gradcheck(lambda x, *rest: lora_linears(x, with_tensors(members, rest)), tensors)


def test_gradcheck_with_dropout() -> None:
    """The same with values dropped, each layer its own, and one output that is not used."""
    torch.manual_seed(0)
    members = [Adapted(one.weight, one.A, one.B, one.scale, None, p) for one, p in ((member(5, 2), 0.4), (member(4, 3), 0.0))]
    x = torch.randn(7, 12, dtype=FP64, requires_grad=True)

    def outputs(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        return lora_linears(x, with_tensors(members, rest))

    tensors = (x, *(tensor for one in members for tensor in (one.A, one.B, one.bias)))
    assert torch.autograd.gradcheck(outputs, tensors)
    (unused,) = torch.autograd.grad(outputs(*tensors)[0].sum(), [members[1].A], allow_unused=True)
    assert unused is None


def run(model: Any, layer: Any, case: Case, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of x, A and B."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=case.autocast or BF16, enabled=case.autocast is not None):
        y = model(x)
    y.backward(grad.to(y.dtype))
    A, B = layer.lora_A.default.weight, layer.lora_B.default.weight
    found = [y.detach(), x.grad, A.grad, B.grad]
    A.grad = B.grad = None
    return found


def errors(kind: str, case: Case, larger: float = 1.0) -> dict[str, tuple[float, float]]:
    """Errors against fp64 of the output and the gradients of x, A and B: here, and PEFT's, whose dtypes are the same.

    Args:
        kind: of the weight.
        case: dtypes.
        larger: B by this factor.
    """
    model, layer = adapted_layer(kind, case, bias=True)
    layer.lora_B.default.weight.data *= larger
    torch.manual_seed(3)
    x = torch.randn(200, 128).to(case.x)
    grad = torch.randn(200, 160).to(case.autocast or case.x)
    leaves = [layer.lora_A.default.weight, layer.lora_B.default.weight]
    A, B = (leaf.detach().double().requires_grad_() for leaf in leaves)
    x64 = x.double().requires_grad_()
    y64 = x64 @ exact_weight(layer).t() + layer.base_layer.bias.double() + layer.scaling["default"] * (x64 @ A.t() @ B.t())
    y64.backward(grad.double())
    exact = [y64.detach(), x64.grad, A.grad, B.grad]
    theirs = run(model, layer, case, x, grad)
    patch(model)
    ours = run(model, layer, case, x, grad)
    assert [tensor.dtype for tensor in theirs] == [tensor.dtype for tensor in ours]
    return {
        name: (relative_error(mine, value), relative_error(other, value))
        for name, mine, other, value in zip(("y", "x", "A", "B"), ours, theirs, exact, strict=True)
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(kind)[6:] for kind in vars(case).values()))
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_not_above_those_of_peft(kind: str, case: Case) -> None:
    """Output and gradients of x, A and B: dtypes as PEFT gives them, errors against fp64 no larger than PEFT's own."""
    found = errors(kind, case)
    if kind == "8bit" and case.autocast and case.x == FP32:
        # bitsandbytes leaves autocast on the way back and multiplies in fp32; these products are autocast's both ways
        assert found.pop("x")[0] < 3e-3
    assert {} == {name: (mine, theirs) for name, (mine, theirs) in found.items() if mine > SLACK * theirs}


def test_an_adapter_larger_than_its_weight() -> None:
    """fp32 adapters over bf16 inputs, rounded before the sum: where they outweigh the weight, up to sqrt(2) of PEFT's error."""
    mine, theirs = errors("dense", Case(BF16, FP32, BF16), larger=8.0)["y"]
    assert theirs < mine < 2**0.5 * SLACK * theirs


def test_dropout_draws_what_peft_draws() -> None:
    """With one seed the same values are dropped, and gradients agree within rounding of fp32."""
    case = Case(FP32, FP32, FP32)
    model, layer = adapted_layer("dense", case, dropout=0.3)
    x, grad = torch.randn(50, 128), torch.randn(50, 160)
    torch.manual_seed(7)
    theirs = run(model, layer, case, x, grad)
    patch(model)
    torch.manual_seed(7)
    ours = run(model, layer, case, x, grad)
    assert all(relative_error(mine, other.double()) < 1e-6 for mine, other in zip(ours, theirs, strict=True))


def packed(outputs: int, inputs: int, device: str = "cpu") -> Packed4bit:
    """Random NF4 values, double quantized."""
    data, state = bnb.quantize_4bit(torch.randn(outputs, inputs, dtype=BF16, device=device), blocksize=64, quant_type="nf4")
    return Packed4bit.of(data, state)


def rows_8bit(outputs: int, inputs: int, device: str = "cpu") -> Rows8bit:
    """Random int8 rows."""
    data, scale, _ = bnb.int8_vectorwise_quant(torch.randn(outputs, inputs, dtype=FP16, device=device))
    return Rows8bit(data, scale)


def test_what_is_kept() -> None:
    """Between the passes: x itself, S, the parameters and the packed weight; nothing as large as the dense weight."""
    weight = packed(256, 128)
    A, B = torch.randn(4, 128, dtype=BF16, requires_grad=True), torch.randn(256, 4, dtype=BF16, requires_grad=True)
    x = torch.randn(3, 5, 128, dtype=BF16, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(x, weight, A, B)
    there = [x, A, B, weight.data, weight.absmax, weight.code]
    assert weight.nested is None or there.extend([weight.nested.code, weight.nested.absmax, weight.nested.offset]) is None
    storages = {tensor.untyped_storage().data_ptr() for tensor in there}
    new = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in storages]
    assert [(15, 4)] == [tuple(tensor.shape) for tensor in new]
    assert any(tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for tensor in kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(x, weight, A.detach(), B)
    assert all(tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for tensor in kept), "A is frozen"


def test_a_weight_changed_between_the_passes_is_noticed() -> None:
    """As torch notices it for its own layers, dense and packed."""
    dense = torch.randn(16, 128)
    for weight, tensor in ((dense, dense), (packed_one := rows_8bit(16, 128), packed_one.data)):
        y = lora_linear(torch.randn(3, 128, requires_grad=True), weight, torch.randn(2, 128), torch.randn(16, 2))
        tensor.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_second_derivative_is_refused() -> None:
    """A gradient with its own graph is right; differentiating it says what to do."""
    one = member(8, 2)
    x = torch.randn(4, 12, dtype=FP64, requires_grad=True)
    y = lora_linear(x, one.weight, one.A, one.B)
    plain = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.equal(plain, grad)
    with pytest.raises(RuntimeError, match=r"no second derivative; unpatch\(model\)"):
        grad.sum().backward()


MADE: dict[str, Callable[[str], Any]] = {
    "dense": lambda device: torch.randn(64, 128, dtype=BF16, device=device),
    "4bit": lambda device: packed(64, 128, device),
    "8bit": lambda device: rows_8bit(64, 128, device),
}


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind: str) -> None:
    """torch.compile(fullgraph=True), forward and backward, gives the bits of eager calls: two layers that share an input."""
    torch.manual_seed(0)
    weights = [MADE[kind]("cpu"), MADE[kind]("cpu")]
    leaves = [torch.randn(*shape, dtype=BF16, requires_grad=True) for shape in ((10, 128), *((4, 128), (64, 4)) * 2)]

    def total(x: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
        members = [Adapted(weights[0], *leaves[:2], 2.0), Adapted(weights[1], *leaves[2:], 0.5)]
        return sum((y.float().square().sum() for y in lora_linears(x, members)), torch.zeros(()))

    expected = torch.autograd.grad(total(*leaves), leaves)
    compiled: Callable[..., torch.Tensor] = torch.compile(total, fullgraph=True, backend="aot_eager")
    result = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(torch.equal(one, other) for one, other in zip(expected, result, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_triton_all_the_way(kind: str) -> None:
    """With Triton's programs for every op: two layers of one input, fp32 and bf16 adapters, as close to torch's path as rounding.

    Both paths round dS and the outputs to bf16, so that they differ by 2^-8 at most where they differ, and rarely do.
    """
    for adapter in (BF16, FP32):
        torch.manual_seed(0)
        weights = [MADE[kind](DEVICE), MADE[kind](DEVICE)]
        x = torch.randn(10, 128, dtype=BF16, requires_grad=True, device=DEVICE)
        leaves = [torch.randn(*shape, dtype=adapter, requires_grad=True, device=DEVICE) for shape in ((4, 128), (64, 4)) * 2]
        found = []
        for backend in ("torch", "triton"):
            members = [Adapted(weights[0], *leaves[:2], 2.0), Adapted(weights[1], *leaves[2:], 0.5)]
            outputs = lora_linears(x, members, backend=backend)
            grads = torch.autograd.grad([y.float().square().sum() for y in outputs], [x, *leaves])
            found.append([*outputs, *grads])
        assert all(relative_error(one, other.double()) < 2e-3 for one, other in zip(found[1], found[0], strict=True))


def test_layouts_of_inputs_and_gradients() -> None:
    """No rows, transposed inputs, gradients that are expanded from one value, a single vector."""
    torch.manual_seed(0)
    one = member(8, 2, bias=True)
    apart = torch.randn(12, 5, dtype=FP64).t().requires_grad_()
    whole = apart.detach().contiguous().requires_grad_()
    for x in (apart, whole):
        lora_linear(x, one.weight, one.A, one.B, bias=one.bias).sum().backward()
    torch.testing.assert_close(apart.grad, whole.grad, rtol=1e-12, atol=1e-12)
    empty = lora_linear(torch.randn(0, 12, dtype=FP64), one.weight, one.A, one.B, bias=one.bias)
    assert (0, 8) == tuple(empty.shape)
    empty.sum().backward()
    assert (8,) == tuple(lora_linear(whole[0], one.weight, one.A, one.B).shape)


def changed(**changes: Any) -> Callable[[], Any]:
    """A call with something wrong in it."""
    good = {
        "x": torch.randn(3, 128, dtype=BF16),
        "weight": torch.randn(64, 128, dtype=BF16),
        "A": torch.randn(4, 128, dtype=BF16),
        "B": torch.randn(64, 4, dtype=BF16),
    }
    return lambda: lora_linear(**{**good, **changes})


WRONG = {
    "takes rows of 128": {"x": torch.randn(3, 64, dtype=BF16)},
    "inputs of torch.int64": {"x": torch.ones(3, 128, dtype=torch.int64)},
    "x is torch.float32, the weight torch.bfloat16": {"x": torch.randn(3, 128)},
    "weight lies on cpu, x on meta": {"x": torch.randn(3, 128, dtype=BF16, device="meta")},
    "B lies on meta": {"B": torch.randn(64, 4, dtype=BF16, device="meta")},
    r"A is \[4, 64\]": {"A": torch.randn(4, 64, dtype=BF16)},
    r"A is \[0, 128\]": {"A": torch.randn(0, 128, dtype=BF16)},
    r"B is \[4, 64\]": {"B": torch.randn(4, 64, dtype=BF16)},
    "of one floating dtype, but are": {"B": torch.randn(64, 4)},
    r"bias is \[1\]": {"bias": torch.randn(1)},
    "dropout 1.5": {"dropout": 1.5},
    "not a finite number": {"scale": float("nan")},
    "needs a gradient": {"weight": torch.randn(64, 128, dtype=BF16, requires_grad=True)},
    "dense weight of torch.uint8": {"weight": torch.ones(64, 128, dtype=torch.uint8)},
    "not list": {"weight": [[1.0]]},
    r"this one \[64, 2, 64\]": {"weight": torch.randn(64, 2, 64, dtype=BF16)},
    "compute_dtype is for quantized": {"compute_dtype": FP32},
    "not to fp64": {"weight": packed(64, 128), "compute_dtype": FP64},
    "compute_dtype torch.int8": {"weight": packed(64, 128), "compute_dtype": torch.int8},
    "unknown backend": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", WRONG)
def test_refused(message: str) -> None:
    """Dtypes, devices, shapes and numbers that do not fit, said before anything is launched."""
    with pytest.raises(KernelInputError, match=message):
        changed(**WRONG[message])()


def test_refused_weights_and_groups() -> None:
    """Parts of a quantized weight that do not belong together, layers that cannot share a call, a GPU that is not there."""
    data, state = bnb.quantize_4bit(torch.randn(64, 128, dtype=BF16), blocksize=64, quant_type="nf4")
    with pytest.raises(KernelInputError, match="belongs to another quant state"):
        Packed4bit.of(data[:100], state)
    state.blocksize = 48
    with pytest.raises(KernelInputError, match="block size 48"):
        Packed4bit.of(data, state)
    good = rows_8bit(8, 16)
    for part in ((good.data.t(), good.scale), (good.data.float(), good.scale), (good.data, good.scale[:3])):
        with pytest.raises(KernelInputError):
            Rows8bit(*part)
    with pytest.raises(KernelInputError, match="scales lie on meta"):
        Rows8bit(good.data, good.scale.to("meta"))
    x = torch.randn(2, 12, dtype=FP32)
    with pytest.raises(KernelInputError, match="no layer is given"):
        lora_linears(x, [])
    dense = member(4, 2, dtype=FP32)
    with pytest.raises(KernelInputError, match="cannot share one call"):
        lora_linears(x, [dense, Adapted(rows_8bit(4, 12), dense.A, dense.B)])
    with pytest.raises(KernelInputError, match="must be of one dtype"):
        lora_linears(x, [dense, Adapted(dense.weight, dense.A.to(BF16), dense.B.to(BF16))])


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for Triton where it cannot run: refused before the forward, not in the backward pass."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    one = member(4, 2)
    with pytest.raises(KernelUnavailableError, match="cannot run here"):
        lora_linear(torch.randn(2, 12, dtype=FP64), one.weight, one.A, one.B, backend="triton")

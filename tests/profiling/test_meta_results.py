"""What is remembered of operators on meta is what torch says of them."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import traced  # noqa: E402

from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import meta_results  # noqa: E402

ATEN = torch.ops.aten


def meta(*shape: int, dtype: Any = torch.float32) -> Any:
    """A tensor on meta."""
    return torch.empty(shape, dtype=dtype, device="meta")


def figures(out: Any) -> Any:
    """Shape, strides and dtype of a result, or of several."""
    if isinstance(out, tuple | list):
        return type(out), [figures(each) for each in out]
    return None if out is None else (out.shape, out.stride(), out.dtype, out.device, out.storage_offset())


CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "mul": (ATEN.mul.Tensor, (meta(4, 1, 3), meta(5, 1)), {}),
    "transposed": (ATEN.add.Tensor, (meta(4, 3).t(), 2), {"alpha": 3}),
    "mm": (ATEN.mm.default, (meta(4, 3), meta(3, 7)), {}),
    "cast": (ATEN._to_copy.default, (meta(4, 3),), {"dtype": torch.bfloat16}),
    "several": (ATEN.native_layer_norm.default, (meta(4, 3), [3], meta(3), meta(3), 1e-5), {}),
    "list": (ATEN._foreach_sqrt.default, ([meta(4), meta(2, 3)],), {}),
    "sum": (ATEN.sum.dim_IntList, (meta(4, 3), [0], True), {}),
    "cat": (ATEN.cat.default, ([meta(4, 3), meta(2, 3)],), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_as_torch_says(name: str) -> None:
    """The first call and those after it give what the operator gives, each time in a storage of its own."""
    func, args, kwargs = CALLS[name]
    expected = figures(func(*args, **kwargs))
    first, second = (meta_results.run(func, args, kwargs) for _ in range(2))
    assert expected == figures(first) == figures(second)
    storages = [
        each.untyped_storage()._cdata for out in (first, second) for each in (out if isinstance(out, tuple | list) else (out,))
    ]
    assert len(storages) == len(set(storages))


def test_other_inputs_are_other_calls() -> None:
    """Shapes, strides, dtypes, numbers and the default dtype all tell calls apart."""
    whole = meta(4, 3, dtype=torch.int64)
    given = [meta(4, 3), meta(3, 4).t(), meta(4, 3, dtype=torch.bfloat16), whole]
    assert len(given) == len({figures(meta_results.run(ATEN.mul.Tensor, (x, x), {})) for x in given})
    sums = [meta_results.run(ATEN.sum.dim_IntList, (meta(4, 3), dims, False), {}).shape for dims in ([0], [1], [0, 1])]
    assert [(3,), (4,), ()] == [tuple(shape) for shape in sums]
    assert torch.float32 == meta_results.run(ATEN.div.Tensor, (whole, whole), {}).dtype
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.bfloat16 == meta_results.run(ATEN.div.Tensor, (whole, whole), {}).dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_views_and_writes_stay_what_they_are() -> None:
    """A view shares its input's storage, and what is written into is given back itself."""
    x = meta(4, 3)
    for _ in range(2):
        view = meta_results.run(ATEN.t.default, (x,), {})
        assert x.untyped_storage()._cdata == view.untyped_storage()._cdata
        assert x is meta_results.run(ATEN.add_.Tensor, (x, meta(3)), {})
        assert meta_results.run(ATEN._foreach_add_.Scalar, ([x], 1), {}) is None


def test_values_are_computed() -> None:
    """Tensors that hold values go to the operator every time."""
    for value in (2.0, 3.0):
        x = torch.full((2,), value)
        assert [value * value] * 2 == meta_results.run(ATEN.mul.Tensor, (x, x), {}).tolist()


def test_mistakes_are_mistakes_each_time() -> None:
    """Shapes that do not fit are torch's error, however often."""
    for _ in range(2):
        with pytest.raises(RuntimeError):
            meta_results.run(ATEN.mm.default, (meta(4, 3), meta(4, 3)), {})


@pytest.mark.traced
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_step_is_the_same_either_way(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every birth and death of a step with its size, operator, module and phase, with and without what is remembered."""
    case = traced.Case(traced.small(), method, Settings(micro_batch_size=2, seq_len=64))

    def plain(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    remembered = traced.traced(case)[1].timeline.log
    monkeypatch.setattr(meta_results, "run", plain)
    computed = traced.traced(case)[1].timeline.log
    logs = [[(born, a.size_bytes, a.op, a.module, a.phase, a.category) for born, a in log] for log in (remembered, computed)]
    assert len(logs[0]) > 500
    assert logs[0] == logs[1]

"""Rates of products by shape: cards that were measured, cards like them, columns of cards, and a card's own curve."""

from dataclasses import replace

import numpy as np
import pytest

from tuneplan.hardware_profiles import speed_tables
from tuneplan.hardware_profiles.calibrations import Calibration
from tuneplan.hardware_profiles.kernel_speeds import GemmCurve, KernelSpeeds
from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.product_rates import ShapeShares, columns_of, shapes_of
from tuneplan.planner.timing.roofline import Rates, device_seconds, gpu_rates, matmul_share
from tuneplan.planner.timing.work import SMALL_OPS, Product, Work

A100, RTX_4090 = find_gpu("a100-80g"), find_gpu("rtx-4090")
LARGE, SKINNY = (8192, 8192, 8192), (8192, 16, 4096)


def product(dims: tuple[int, int, int], dtype: str = "bf16") -> Product:
    """One product of a shape that moves few bytes."""
    return Product(2 * dims[0] * dims[1] * dims[2], 1000, dtype, False, 1, dims)


def compute(gpu_rates_: Rates, *products: Product) -> float:
    """Device seconds of products alone."""
    return device_seconds(Work(products=list(products)), gpu_rates_).total


def test_a_measured_card_takes_its_own_times() -> None:
    """The time of a product in a step is the measured one over the share that a step reaches."""
    speeds = speed_tables.bundled("a100-80g")
    assert speeds is not None
    rates = gpu_rates(A100, {"bf16"})
    for dims in (LARGE, SKINNY, (840, 3072, 8192)):
        assert speeds.products.seconds(*dims) / constants.MATMUL_SHARE.value == pytest.approx(compute(rates, product(dims)))


def test_a_card_that_was_not_measured_takes_the_shape_of_the_nearest() -> None:
    """An RTX 4090 has the A100's FLOPs for each byte: its shares by shape, at its own rate."""
    shapes = shapes_of(RTX_4090)
    assert shapes is not None
    assert shapes.times is speed_tables.bundled("a100-80g").products  # type: ignore[union-attr]
    share = constants.MATMUL_CEILINGS["rtx-4090"].value * constants.MATMUL_TYPICAL.value * constants.MATMUL_SHARE.value
    assert share == pytest.approx(matmul_share(RTX_4090))


def test_skinny_products_are_far_from_the_rate_of_large_ones() -> None:
    """A LoRA of rank 16 reaches less than a fifth of the rate; fp32 products are not known by shape."""
    shapes = shapes_of(A100)
    assert shapes is not None
    assert shapes.share(SKINNY) < 0.2
    assert shapes.share(LARGE) > 0.9
    rates = gpu_rates(A100, {"bf16", "fp32"})
    flops = product(SKINNY).flops
    assert flops / rates.matmul["fp32"] + rates.start_seconds == pytest.approx(compute(rates, product(SKINNY, "fp32")))


def test_another_vendor_has_no_shapes() -> None:
    """Tiles and waves of another maker's card are not those that were measured."""
    assert shapes_of(find_gpu("mi300x")) is None


def test_columns_are_the_cards() -> None:
    """Shares of cards at once are those of each; a card without any has 1."""
    cards = [shapes_of(A100), None, shapes_of(find_gpu("h100-80g")), shapes_of(RTX_4090)]
    columns = columns_of(cards)
    assert columns is not None
    assert 2 == len(columns.different)
    dims = [np.array([840, 8192]), np.array([16, 4096]), np.array([3072, 4096])]
    found = columns.share(dims)
    for index, shapes in enumerate(cards):
        for place in range(2):
            expected = 1.0 if shapes is None else shapes.share(tuple(int(d[place]) for d in dims))  # type: ignore[arg-type]
            assert expected == pytest.approx(found[index, place])


def test_a_curve_measured_on_the_card_wins_over_rows() -> None:
    """`[kernels.gemm]` of a calibration: large products follow it, and skinny ones in proportion."""
    curve = GemmCurve((256, 8192), (1e14, 2e14))
    kernels = KernelSpeeds(gemm=curve)
    own = shapes_of(replace(A100, calibration=Calibration("a100-80g", {}, kernels=kernels)))
    plain = shapes_of(A100)
    assert isinstance(own, ShapeShares)
    assert plain is not None
    assert own.share((256, 8192, 8192)) == pytest.approx(0.5)
    assert own.share(LARGE) == pytest.approx(1.0)
    ratio = plain.share((8192, 16, 4096)) / plain.share(LARGE)
    assert ratio == pytest.approx(own.share((8192, 16, 4096)))


def test_reads_of_small_ops_come_from_the_cache() -> None:
    """An op that fits half of an L40S's 96 MiB moves half of its bytes; on an A5000, whose cache is small, all."""
    work, large = Work(), Work()
    work.stream(SMALL_OPS[-1], 3)
    large.stream(SMALL_OPS[-1] + 1, 3)
    l40s, a5000 = gpu_rates(find_gpu("l40s"), {"bf16"}), gpu_rates(find_gpu("a5000"), {"bf16"})
    assert 3 * SMALL_OPS[-1] / 2 / l40s.memory == pytest.approx(device_seconds(work, l40s).memory)
    assert 3 * SMALL_OPS[-1] / a5000.memory == pytest.approx(device_seconds(work, a5000).memory)
    assert device_seconds(large, l40s).memory == pytest.approx(2 * device_seconds(work, l40s).memory, rel=1e-6)


def test_short_attention_is_slower() -> None:
    """Half of the highest rate at 500 keys; the card's share holds at 4096."""
    rates = gpu_rates(A100, {"bf16"})

    def seconds(keys: int) -> float:
        return compute(rates, Product(10**12, 1000, "bf16", True, 1, (keys, keys, 128)))

    plain = 1e12 / rates.attention["bf16"] + rates.start_seconds
    assert plain == pytest.approx(seconds(4096))
    most = 1e12 / (seconds(10**9) - rates.start_seconds)
    assert most / 2 == pytest.approx(1e12 / (seconds(500) - rates.start_seconds), rel=1e-6)


def test_small_ops_of_arrays_are_those_of_each_size() -> None:
    """Bytes of small ops for a table of sizes, plain numbers and arrays mixed."""
    sizes = np.array([[100, 5000], [20, 10**6]])
    work = Work()
    work.stream(50, 2)
    work.stream(sizes, 3)
    work.stream(2 * sizes, 1)
    expected = [[100 + 3 * 100 + 200, 100], [100 + 60 + 40, 100]]
    assert expected == np.asarray(work.small(1000)).tolist()

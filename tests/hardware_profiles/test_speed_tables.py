"""Measured times by shape: interpolation, its edges, arrays, and what the files must hold."""

import numpy as np
import pytest

from tuneplan.hardware_profiles import speed_tables
from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.hardware_profiles.speed_tables import CollectiveTimes, ProductTimes

# Microseconds: rows 1 and 16, columns 32 and 64, inner 32 and 128.
SHEETS = (((1.0, 2.0), (2.0, 8.0)), ((4.0, 8.0), (8.0, 32.0)))
LOGS = tuple(tuple(tuple(np.log2(t * 1e-6) for t in line) for line in sheet) for sheet in SHEETS)
TIMES = ProductTimes(((1, 16), (32, 64), (32, 128)), LOGS, 1e12)


def test_measured_points_are_given_back() -> None:
    """At every measured point the time is the measured one."""
    for i, m in enumerate((1, 16)):
        for j, n in enumerate((32, 64)):
            for k, inner in enumerate((32, 128)):
                assert SHEETS[i][j][k] * 1e-6 == pytest.approx(TIMES.seconds(m, n, inner))


def test_between_points_logarithms_are_interpolated() -> None:
    """Halfway in the logarithm of a size lies the geometric mean of the times."""
    assert 2e-6 == pytest.approx(TIMES.seconds(4, 32, 32))
    assert (2 * 8) ** 0.5 * 1e-6 == pytest.approx(TIMES.seconds(1, 64, 64))


def test_beyond_the_points() -> None:
    """Below the smallest size the time stays; above the largest it grows with the size."""
    assert TIMES.seconds(1, 32, 32) == TIMES.seconds(1, 8, 3)
    assert TIMES.seconds(64, 64, 128) == pytest.approx(4 * TIMES.seconds(16, 64, 128))


def test_arrays_give_what_their_elements_give() -> None:
    """Sizes within, below and above the measured ones; any of the three may be an array."""
    rows = np.array([1, 3, 16, 40, 1000])
    expected = [TIMES.seconds(int(m), 48, 100) for m in rows]
    assert expected == pytest.approx(list(TIMES.seconds(rows, 48, 100)))
    inner = np.array([[8, 32], [77, 4096]])
    assert TIMES.seconds(5, 40, 77) == pytest.approx(TIMES.seconds(5, 40, inner)[1, 0])


def test_shares_are_rates_over_that_of_large_products() -> None:
    """FLOPs over seconds over the large rate."""
    assert 2 * 16 * 64 * 128 / 32e-6 / 1e12 == pytest.approx(TIMES.share(16, 64, 128))


def test_collectives_between_numbers_of_ranks() -> None:
    """Between two and four ranks the logarithm is interpolated; more than were measured count as the most."""
    times = CollectiveTimes((2, 4), (1024, 4096), {"all_gather": ((0.0, 1.0), (2.0, 3.0))})
    assert 1.0 == times.seconds("all_gather", 1024, 2)
    assert 2.0 ** (2 * np.log2(1.5)) == pytest.approx(times.seconds("all_gather", 1024, 3))
    assert times.seconds("all_gather", 8192, 8) == 16.0


@pytest.mark.parametrize("name", speed_tables.measured())
def test_files(name: str) -> None:
    """Each is of a known GPU, names its source, and its large products stay between a third and all of the peak."""
    speeds = speed_tables.bundled(name)
    gpu = load_gpus()[name]
    assert speeds is not None
    assert (name, True) == (speeds.gpu, "Apache-2.0" in speeds.source)
    assert 0.33 < speeds.products.large_rate / (gpu.peak_flops("bf16") or 0) < 1
    rows, columns, inner = speeds.products.axes
    sheets = speeds.products.log_seconds
    assert (len(rows), len(columns), len(inner)) == (len(sheets), len(sheets[0]), len(sheets[0][0]))


def test_a_card_without_a_file() -> None:
    """None, and no error."""
    assert speed_tables.bundled("rtx-4090") is None

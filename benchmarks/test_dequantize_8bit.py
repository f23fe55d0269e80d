"""8-bit weights to dense ones, beside other implementations: the cases of `plan bench --kernel dequantize_8bit`.

    python -m pytest benchmarks/test_dequantize_8bit.py --benchmark-only

Times are of the device where it is a GPU, wall times of calls on a CPU; see kernels/README.md.
"""

from typing import Any

import pytest

pytest.importorskip("torch")

from tuneplan.kernels.bench.cases import Case
from tuneplan.kernels.bench.replay import CLOCK, names, pairs, replay

PAIRS = pairs("dequantize_8bit")


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True, group="dequantize_8bit")
@pytest.mark.parametrize(("case", "name"), PAIRS, ids=names(PAIRS))
def test_dequantize_8bit(benchmark: Any, case: Case, name: str) -> None:
    """Rounds measured in turns with the other implementations; shares of what the device can do in the extra info."""
    missing = replay(benchmark, case, name)
    if missing:
        pytest.skip(missing)

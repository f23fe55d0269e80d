"""Surroundings alike for every test, in processes started here too.

Real steps of tiny models: one thread is faster than several that wait for each other. Reports are as wide as without a terminal:
pytest-xdist hands the width of its own to its workers.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)

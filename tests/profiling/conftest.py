"""Real steps of tiny models: one thread is faster than several that wait for each other."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Run torch on one thread, where there is torch."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)

"""What every suite shares."""

from __future__ import annotations

import os

import pytest
import torch

# One torch thread per process, here and in those that tests start: two are slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    """Start each test from one global state.

    The package never draws from it, but plain layers that a test builds do; without
    this a tolerance would hold or fail by chance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield

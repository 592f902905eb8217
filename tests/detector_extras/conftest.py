"""The libraries run on as many threads as the detectors of factory, because rounding depends on their number."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)

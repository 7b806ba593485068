import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def one_thread():
    """The models here are too small for two threads to be worth their meeting."""
    torch.set_num_threads(1)

"""For every test: one thread, so that sums have a fixed order and tests do not fight for the machine."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from pyquant.capture import capture
from pyquant.graph import Graph
from pyquant.model import QModel, prepare
from tests.networks import build, inputs


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Give torch one thread; a test that wants more sets them itself and puts them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seed() -> torch.Generator:
    """A generator of a test's own; the global one is never used for a test's data."""
    return torch.Generator().manual_seed(20061)


@pytest.fixture(scope="session")
def captured() -> Callable[[str], tuple[Graph, dict[str, torch.Tensor]]]:
    """Name of a shared network -> its captured graph and state; each is exported once, from a batch of one."""
    return cache(lambda name: capture(build(name), inputs(name, 1)))


@pytest.fixture(scope="session")
def prepared() -> Callable[[str], QModel]:
    """Name of a shared network -> its model with the default plan, no ranges yet."""
    return cache(lambda name: prepare(build(name), inputs(name, 1)))

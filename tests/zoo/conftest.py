"""Real models and data for the zoo's tests; what is not installed here skips the test, with the reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyquant.errors import MissingPackageError
from pyquant.zoo import sources


@pytest.fixture(scope="session")
def installed() -> Callable[..., Any]:
    """Call a loader; skip the test where what it needs is not installed."""

    def call(loader: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return loader(*arguments)
        except MissingPackageError as error:
            pytest.skip(str(error))

    return call


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A machine without optional packages and without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "find_spec", lambda module: None)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in a fixed order, and no fight for the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

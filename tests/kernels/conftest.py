"""Kernels run on CUDA where there is one, and in Triton's interpreter elsewhere (tests/conftest.py turns it on)."""

import pytest


@pytest.fixture(scope="session")
def device() -> str:
    """Return "cuda" where there is such a device, else "cpu"."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"

"""Fixtures of the TensorRT tests."""

import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def blocks_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of models/blocks, as it is committed. Read it, never change it."""
    folder = tmp_path_factory.mktemp("blocks")
    with tarfile.open(ROOT / "models" / "blocks.bundle.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (bundle,) = folder.iterdir()
    return bundle


@pytest.fixture
def rtx() -> None:
    """Skip where TensorRT-RTX is not installed."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")

"""Fixtures of the export tests."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may spoil."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def open_session() -> Callable[[Path | bytes], Any]:
    import onnxruntime

    def open_one(model: Path | bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    return open_one

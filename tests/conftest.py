"""What several folders of tests share."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tests/golden/checkpoint, exported once per session. Read it, never change it."""
    pytest.importorskip("torch")
    from framert.export.pipeline import export

    return export(GOLDEN / "checkpoint", tmp_path_factory.mktemp("bundles") / "golden.bundle", progress=False)

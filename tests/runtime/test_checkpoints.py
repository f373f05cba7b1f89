"""A checkpoint where a bundle is taken: exported once, and again only when it changed."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import framert
from framert.runtime import checkpoints
from framert.runtime.errors import BackendError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def exports(golden_bundle, tmp_path, monkeypatch):
    """A cache of its own, and an exporter that copies a bundle that is there and remembers what it was given."""
    import framert.export.pipeline as pipeline

    asked = []

    def export(checkpoint, output):
        asked.append((checkpoint, output))
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(golden_bundle, output)
        return Path(output)

    monkeypatch.setattr(pipeline, "export", export)
    monkeypatch.setenv("FRAMERT_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.fixture
def checkpoint(tmp_path):
    return Path(shutil.copytree(GOLDEN / "checkpoint", tmp_path / "mine"))


def test_a_checkpoint_is_exported_once(checkpoint, exports):
    pytest.importorskip("onnxruntime")
    assert framert.load(checkpoint).manifest.family == "onediffusion"
    assert framert.load(str(checkpoint)).manifest.family == "onediffusion"
    assert len(exports) == 1
    source, bundle = exports[0]
    assert source == checkpoint.resolve()
    assert bundle.parent.name == "cache"


def test_a_changed_checkpoint_is_exported_again(checkpoint, exports):
    first = checkpoints.bundle_of(checkpoint)
    file = checkpoint / "transformer" / "config.json"
    os.utime(file, ns=(1, 1))
    assert checkpoints.bundle_of(checkpoint) != first
    assert len(exports) == 2


def test_a_damaged_bundle_of_the_cache_is_made_again(checkpoint, exports):
    first = checkpoints.bundle_of(checkpoint)
    (first / "denoiser.onnx").write_bytes(b"")
    assert checkpoints.bundle_of(checkpoint) == first
    assert len(exports) == 2
    assert (first / "denoiser.onnx").stat().st_size


def test_without_the_exporter_a_checkpoint_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in [name for name in sys.modules if name.startswith("framert.export")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendError, match=r"is a checkpoint, and exporting it needs onnxscript"):
        framert.load(checkpoint)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", [None, 3, "a\0b", "x" * 5000, "nowhere"])
def test_what_is_no_checkpoint(path):
    assert not checkpoints.is_checkpoint(path)


def test_a_bundle_is_no_checkpoint(golden_bundle):
    assert not checkpoints.is_checkpoint(golden_bundle)
    assert checkpoints.is_checkpoint(GOLDEN / "checkpoint")

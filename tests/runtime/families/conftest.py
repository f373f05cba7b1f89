"""Fixtures of the tests of families: a UniVG bundle of random numbers on a backend in NumPy (tests/emulated)."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from framert.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def univg() -> ModuleType:
    """Return the module tests/emulated/univg.py."""
    spec = spec_from_file_location("emulated_univg", Path(__file__).parents[2] / "emulated" / "univg.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def open_bundle(univg, tmp_path_factory):
    """Return a maker of bundles; its keywords are those of ``emulated.univg.manifest``."""
    return lambda **kinds: univg.write_bundle(tmp_path_factory.mktemp("univg") / "tiny.bundle", **kinds)


@pytest.fixture
def pipe(univg, open_bundle):
    bundle = open_bundle()
    return Pipeline(bundle, univg.NumpyBackend(bundle))


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))

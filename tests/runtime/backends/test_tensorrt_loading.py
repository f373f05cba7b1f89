"""Engines of several threads and one TensorRT library."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert
from framert.runtime.backends.tensorrt import library

CUBE = {"task": "text_to_image", "prompt": "a red cube", "size": (64, 64), "seed": 1, "guidance": 3.0}


def test_engines_are_loaded_one_at_a_time(machine, engine_bundle, monkeypatch):
    """What an engine brings while it is loaded is noted in one place for all."""
    machine()
    one = library.load("tensorrt")
    ready, loading = threading.Event(), threading.Event()
    register, load = one.register_plugin, one.engine
    monkeypatch.setattr(one, "register_plugin", lambda name: (ready.set(), register(name))[1])
    monkeypatch.setattr(one, "engine", lambda *given, **more: (loading.set(), load(*given, **more))[1])
    with ThreadPoolExecutor(1) as pool:
        with one.loading:
            loaded = pool.submit(lambda: framert.load(engine_bundle, backend="tensorrt").run(**CUBE))
            assert ready.wait(60)  # the next thing it does is to load
            assert not loading.wait(0.3)
        assert loaded.result(60).latents is not None
    assert loading.is_set()

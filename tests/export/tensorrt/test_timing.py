"""Timing caches: who shares one, and that none is half written."""

from pathlib import Path
from typing import Any

import pytest

from framert.export.tensorrt import timing


class FakeApi:
    def __init__(self, flavour: str = "tensorrt", version: str = "10.3.0") -> None:
        self.flavour, self.version = flavour, version


class FakeCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class FakeConfig:
    """Takes a cache that begins with "good"; makes none of one that begins with "torn"."""

    def __init__(self) -> None:
        self.cache = FakeCache(b"never set")

    def create_timing_cache(self, content: bytes) -> FakeCache | None:
        return None if content.startswith(b"torn") else FakeCache(content)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        assert isinstance(cache, FakeCache)  # the bindings take nothing else
        if cache.content and not cache.content.startswith(b"good"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        return self.cache


def test_a_cache_belongs_to_gpu_version_and_kernels(tmp_path: Path) -> None:
    def file(gpu: str = "Orin", kernels: str = "", **api: str) -> Path:
        fake: Any = FakeApi(**api)
        return timing.cache_file(tmp_path, fake, gpu, kernels)

    others = [file(gpu="Thor"), file(kernels="abc"), file(version="10.4.0"), file(flavour="tensorrt-rtx")]
    assert len({file(), *others}) == 5
    assert file() == file()
    assert file(gpu="NVIDIA GeForce RTX 4090").name.startswith("NVIDIA-GeForce-RTX-4090-tensorrt-10.3.0-")


def test_a_cache_is_kept_between_builds(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.timing"
    config = FakeConfig()
    assert not timing.attach(config, file)
    config.cache = FakeCache(b"good")
    timing.store(config, file)
    assert [path.name for path in file.parent.iterdir()] == ["a.timing"]
    again = FakeConfig()
    assert timing.attach(again, file)
    assert again.cache.content == b"good+"


@pytest.mark.parametrize("content", [b"bad", b"torn", b""])
def test_a_damaged_cache_is_started_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.timing").write_bytes(content)
    config = FakeConfig()
    assert not timing.attach(config, tmp_path / "a.timing")
    assert config.cache.content == b""

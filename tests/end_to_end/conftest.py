"""What the tests of bad input share: a folder of pictures to be left as it was, and how a refusal looks."""

import re
import shutil
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from framert.runtime.cli import main

SIDE = 32


@pytest.fixture
def refuses():
    """A context in which an error is raised whose one sentence holds the given parts."""

    @contextmanager
    def check(error, *says):
        with pytest.raises(error) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for part in says:
            assert part in message

    return check


@pytest.fixture
def refused(capsys):
    """Run a task of a bundle on the command line, which must refuse; returns its one line."""

    def call(bundle, task, *words):
        common = ("--prompt=x", f"--size={SIDE}x{SIDE}", "--steps=1", "-o", "out.png")
        capsys.readouterr()
        code = main([str(word) for word in ("run", bundle, task, *common, *words)])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert re.fullmatch(r"framert: error: .+\n", captured.err), captured.err
        return captured.err

    return call


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of good and bad pictures."""
    folder = tmp_path_factory.mktemp("given")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    picture.save(folder / "picture.png")
    Image.new("L", (8, 8), "white").save(folder / "small.png")
    Image.new("L", (48, 40), "black").save(folder / "black.png")
    (folder / "views").mkdir()
    (folder / "notes.png").write_text("not a picture\n")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_header(50_000, 50_000))
    (folder / "small_bomb.png").write_bytes(png_header(10_000, 10_000))  # Pillow alone would only warn
    (folder / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for name in ("truncated.png", "truncated.jpg"):
        picture.save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    return folder


def state(folder):
    """{path: content} of everything in a folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def unchanged():
    """A context after which a folder holds what it held before, byte for byte."""

    @contextmanager
    def check(folder):
        before = state(folder)
        yield
        assert state(folder) == before

    return check


@pytest.fixture
def workplace(given, tmp_path, monkeypatch, unchanged):
    """A copy of the pictures as the current folder; fails the test that leaves anything else there."""
    folder = tmp_path / "workplace"
    shutil.copytree(given, folder)
    monkeypatch.chdir(folder)
    with unchanged(folder):
        yield folder

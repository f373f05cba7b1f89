"""Output that cannot be written: refused before the run, and nothing is left half written."""

import errno
import os
from pathlib import Path

import pytest

import framert
from framert.runtime.errors import OutputError

SIDE = 32


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("picture.png", ("picture.png exists", "--force")),
        ("missing/out.png", ("missing does not exist", "make the folder first")),
        ("notes.png/out.png", ("notes.png is not a folder", "make the folder first")),
        ("out.tga", ("suffix '.tga'", ".png")),
        ("out", ("suffix ''", ".png")),
        ("views", ("suffix ''", ".png")),
        ("x" * 400 + ".png", ("cannot write", "too long")),
    ],
)
def test_output_that_cannot_be_is_refused_before_the_run(output, says, golden_bundle, workplace, refused, monkeypatch):
    monkeypatch.setattr("framert.runtime.cli.run.load", lambda *_, **__: pytest.fail("ran before the check"))
    line = refused(golden_bundle, "text_to_image", "-o", output)
    for part in says:
        assert part in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="modes do not stop root")
def test_output_folder_without_permission_is_refused(golden_bundle, workplace, refused):
    (workplace / "views").chmod(0o500)
    try:
        line = refused(golden_bundle, "text_to_image", "-o", "views/out.png")
    finally:
        (workplace / "views").chmod(0o700)
    assert "Permission denied; give an -o that can be written" in line


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_new_files(monkeypatch):
    real = Path.open

    def open_(self, mode="r", *rest, **options):
        if set(mode) & set("wxa"):
            no_space()
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize("where", ["open", "fsync", "check"])
def test_full_disk_leaves_no_picture(where, golden_bundle, workplace, refused, monkeypatch):
    if where == "open":
        no_new_files(monkeypatch)
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr("tempfile.TemporaryFile", no_space)
    line = refused(golden_bundle, "text_to_image", "--quiet")
    assert "cannot write out.png: No space left on device; free some space" in line


def test_full_disk_is_an_output_error_in_python(pipe, workplace, monkeypatch):
    result = pipe.run("text_to_image", prompt="x", size=(SIDE, SIDE), steps=1)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match="No space left on device"):
        result.save("out.png")

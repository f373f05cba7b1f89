"""A second name for a loaded library, as the dynamic loader sees it."""

import subprocess
import sys
from pathlib import Path

import pytest

from framert.kernels.plugin.soname import add_name, empty_library

# In a process of its own: a library stays loaded under its names. libm is there on every Linux.
FIND_COSINE = """
import ctypes, pathlib, sys
from framert.kernels.plugin.soname import add_name
(path,) = {line.split()[-1] for line in open("/proc/self/maps") if "/libm.so" in line or "/libm-" in line}
try:
    ctypes.CDLL("libframert_alias_test.so")
except OSError:
    add_name(pathlib.Path(path), "libframert_alias_test.so")
    cosine = ctypes.CDLL("libframert_alias_test.so").cos
    cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
    print(cosine(0.0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ELF libraries and /proc are Linux's")
def test_a_library_is_found_under_its_second_name_with_its_symbols() -> None:
    done = subprocess.run([sys.executable, "-c", FIND_COSINE], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"


def test_what_is_not_a_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not ELF")
    with pytest.raises(OSError, match="not a 64-bit little-endian ELF library"):
        add_name(tmp_path / "text.so", "libother.so")


@pytest.mark.parametrize("name", ["a", "libtensorrt_rtx.so", "x" * 100])
def test_every_segment_lies_within_the_file(name: str) -> None:
    library = empty_library(name, needed="libm.so.6", machine=62)
    assert name.encode() + b"\0" in library
    for place in range(64, 64 + 2 * 56, 56):
        offset, size = (int.from_bytes(library[place + at : place + at + 8], "little") for at in (8, 32))
        assert offset + size <= len(library)

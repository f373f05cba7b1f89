"""Builds too large for the machine are refused before they start."""

from pathlib import Path

import pytest

from framert.export.tensorrt import memory
from framert.runtime.errors import BackendError

GIB = 1 << 30


def test_what_a_build_needs_is_told_before_it_starts() -> None:
    memory.check("denoiser", 5 * GIB, 24 * GIB)
    memory.check("denoiser", 5 * GIB, None)
    with pytest.raises(BackendError, match=r"denoiser \(5 GiB of weights\) takes about 10.8 GiB of memory and 8 GiB"):
        memory.check("denoiser", 5 * GIB, 8 * GIB)


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert memory.available(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal:  8388608 kB\nMemAvailable:    4194304 kB\n")
    assert memory.available(meminfo, tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(meminfo, tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GIB}\n")
    # The page cache is given up when memory is needed.
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n")
    assert memory.available(meminfo, tmp_path) == 2 * GIB


def test_this_machine_says_how_much_is_free() -> None:
    if not memory.MEMINFO.exists():
        pytest.skip("only Linux has /proc/meminfo")
    free = memory.available()
    assert free is not None
    assert 0 < free < 1 << 50

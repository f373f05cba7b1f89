"""How much memory a build will take, told before it starts: a builder that runs out is killed without a word."""

from pathlib import Path

from framert.runtime.errors import BackendError

# Peak memory beyond mapped weight files. Measured with TensorRT-RTX 1.7 and rounded up: 8355 MiB for the published
# denoiser's 4728 MiB of weights in fp16, 2375 MiB for 1182 MiB, which is 400 MiB and 1.7 copies.
BASE_BYTES = 800 << 20
WEIGHT_COPIES = 2.0
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def needed(weight_bytes: int) -> int:
    """Return the bytes that building a graph with so many bytes of weights takes at its peak."""
    return BASE_BYTES + int(WEIGHT_COPIES * weight_bytes)


def available(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the bytes this process may still take, of the machine's and of its container's; None if nobody says."""
    limits = []
    if meminfo.exists():
        values = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in values:
            limits.append(int(values["MemAvailable"].split()[0]) * 1024)
    try:
        most = (cgroup / "memory.max").read_text().strip()
        if most != "max":
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            used = int((cgroup / "memory.current").read_text()) - int(stat["inactive_file"]) - int(stat["active_file"])
            limits.append(int(most) - used)
    except (OSError, ValueError, KeyError):
        pass  # no container, or one without this interface
    return min(limits, default=None)


def check(graph: str, weight_bytes: int, free: int | None) -> None:
    """Raises: BackendError if building the graph takes more memory than is free."""
    need = needed(weight_bytes)
    if free is not None and need > free:
        raise BackendError(
            f"building {graph} ({weight_bytes / 2**30:.3g} GiB of weights) takes about {need / 2**30:.3g} GiB of "
            f"memory and {free / 2**30:.3g} GiB are free; build on a larger machine, or in lower precision"
        )

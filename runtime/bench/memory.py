"""How much memory this process has held at most, as the operating system counts it."""

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident(status: Path = STATUS) -> int | None:
    """Return the largest resident size so far, in bytes; None where the platform does not say.

    Shared libraries and the pages of mapped files that were touched count, as they do for the out-of-memory killer.
    """
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak(control: Path = Path("/proc/self/clear_refs")) -> bool:
    """Make the present size the peak; return whether the platform can (Linux alone)."""
    try:
        control.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True

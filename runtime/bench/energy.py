"""Energy the machine has used, where the platform reports it: RAPL counters, or the power rails of a Jetson board.

Counters: /sys/class/powercap/*/energy_uj of the packages and their memory (Linux on Intel and AMD; readable by root
alone on most systems). Rails: current and voltage of ina3221 monitors under /sys/class/hwmon, sampled and summed up.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
WHOLE_BOARD = "VDD_IN"  # a Jetson's input rail, which the others are part of


@dataclass(slots=True)
class Counter:
    """One RAPL zone: a counter in microjoules that starts again from 0 beyond ``span``."""

    file: Path
    span: int
    last: int
    total: int = 0

    def update(self) -> None:
        now = int(self.file.read_text())
        self.total += now - self.last if now >= self.last else now - self.last + self.span
        self.last = now


@dataclass(frozen=True, slots=True)
class Rail:
    """One monitored supply: files of millivolts and milliamperes."""

    volts: Path
    amperes: Path

    def watts(self) -> float:
        return int(self.volts.read_text()) * int(self.amperes.read_text()) * 1e-6


class EnergyMeter:
    """Joules since some moment, of the whole machine: differences of ``read`` are what a piece of work cost.

    Used as a context, in which rails are sampled by a thread.

    Args:
        root: of the sysfs tree.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._counters = _counters(root)
        self._rails = [] if self._counters else _rails(root)
        self._joules = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def available(self) -> bool:
        """True where the platform reports energy."""
        return bool(self._counters or self._rails)

    def read(self) -> float | None:
        """Return joules so far; None where the platform does not report energy."""
        for counter in self._counters:
            counter.update()
        if self._counters:
            return sum(counter.total for counter in self._counters) * 1e-6
        return self._joules if self._rails else None

    def __enter__(self) -> "EnergyMeter":
        if self._rails:
            self._thread = threading.Thread(target=self._sample, name="framert-energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        before = time.perf_counter()
        while not self._stop.wait(SAMPLE_SECONDS):
            now = time.perf_counter()
            self._joules += sum(rail.watts() for rail in self._rails) * (now - before)
            before = now


def _counters(root: Path) -> list[Counter]:
    found = []
    for zone in sorted(root.glob("class/powercap/*/energy_uj")):
        if "mmio" in zone.parent.name:  # a second door to the same counter of the package
            continue
        try:
            name = (zone.parent / "name").read_text().strip()
            if name.startswith(("package", "dram")):  # core and uncore are parts of the package
                span = int((zone.parent / "max_energy_range_uj").read_text())
                found.append(Counter(zone, span, int(zone.read_text())))
        except (OSError, ValueError):  # not for us to read
            continue
    return found


def _rails(root: Path) -> list[Rail]:
    found: dict[str, Rail] = {}
    for label in sorted(root.glob("class/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        rail = Rail(label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
        try:
            if (label.parent / "name").read_text().strip() == "ina3221" and rail.watts() >= 0:
                found[label.read_text().strip()] = rail
        except (OSError, ValueError):
            continue
    return [found[WHOLE_BOARD]] if WHOLE_BOARD in found else list(found.values())

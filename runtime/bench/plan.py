"""What ``framert bench`` is asked to measure, and by which name a bundle goes in its rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from framert.runtime.bench.quality import DEFAULT_GATE
from framert.runtime.bench.trace import Trace
from framert.runtime.bench.workload import Kind, Size
from framert.runtime.errors import ConfigError
from framert.runtime.families import DEFAULT
from framert.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. family: whose tasks. together: requests in flight for throughput. gate: least PSNR in dB, see
    ``Report``.
    """

    tasks: Sequence[str]
    sizes: Sequence[Size]
    steps: int | None = None
    rounds: int = 5
    together: int = 8
    trace: Trace | None = None
    gate: float = DEFAULT_GATE
    family: str = DEFAULT

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.together < 1 or not self.tasks or not self.sizes or not self.gate > 0:
            raise ConfigError(
                f"give at least one task, size, round and request at once and a gate above 0 dB; got {self.rounds=}, "
                f"{self.together=}, {self.gate=}".replace("self.", "")
            )

    @property
    def kinds(self) -> list[Kind]:
        """Every task at every size."""
        return [Kind(task, size, self.steps, self.family) for task in self.tasks for size in self.sizes]

    @property
    def mix(self) -> list[tuple[Kind, float]]:
        """What the trace asks for, with weights."""
        return [] if self.trace is None else self.trace.kinds(self.sizes, self.steps, self.kinds)

    @property
    def all_kinds(self) -> list[Kind]:
        """The kinds of the call, then those that only the trace has."""
        return list(dict.fromkeys([*self.kinds, *(kind for kind, _ in self.mix)]))


def identity(manifest: Manifest) -> str:
    """Return the checkpoint a bundle was made of, and twelve digits over the sha256 of its files."""
    files = manifest.provenance.get("files") or {name: spec.sha256 for name, spec in manifest.files.items()}
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(files.items()))
    return f"{manifest.provenance.get('checkpoint', 'bundle')} {hashlib.sha256(text.encode()).hexdigest()[:12]}"

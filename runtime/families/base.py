"""What a family decides: the one place where models of different kinds differ for the runtime."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from framert.runtime.arrays import Floats
from framert.runtime.composition import Composition
from framert.runtime.guidance import Branch
from framert.runtime.manifest import Manifest
from framert.runtime.request import Request
from framert.runtime.tables import Layout
from framert.runtime.task import Task

if TYPE_CHECKING:
    from framert.runtime.components import Components
    from framert.runtime.job import Job


@dataclass(frozen=True, slots=True)
class Guided:
    """The branches whose weighted sum is the velocity, and the settings they were made of."""

    branches: tuple[Branch, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Start:
    """What a request's solver starts from.

    latents: (frames, channels, h, w). conditions: (slots, condition width), what each latent token is shown of a
    picture, or None.
    """

    latents: Floats
    conditions: Floats | None = None


class Family(Protocol):
    """Tasks, prompts, guidance, conditioning and table layout of one kind of model."""

    @property
    def name(self) -> str:
        """The word for it in manifests."""

    def tasks(self, manifest: Manifest | None = None) -> Mapping[str, Task]:
        """Return the tasks by name; with a manifest those that its bundle can do."""

    def compose(self, request: Request, manifest: Manifest) -> Composition:
        """Return the frames of a task, or of raw frames where the request names none.

        Raises: TaskError for an unknown task, arguments it does not take or lacks, and wrong counts; ImageError.
        """

    def at_size(self, composition: Composition, size: tuple[int, int]) -> Composition:
        """Return the composition with what depends on the size (width, height) of the result. Raises: TaskError."""

    def guide(self, request: Request, composition: Composition) -> Guided:
        """Return the guidance branches. Raises: ConfigError if a scale is not allowed."""

    def layout(self, manifest: Manifest) -> Layout:
        """Return how this family's tables are laid out."""

    def start(self, job: "Job", components: "Components", seconds: dict[str, float]) -> Start:
        """Encode a job's pictures into what its solver starts from."""

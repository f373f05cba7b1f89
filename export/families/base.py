"""What a family decides: the one place where models of different kinds differ for the export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from framert.export.cases import Case, Condition
from framert.export.checkpoint import Checkpoint
from framert.export.plan import GraphPlan
from framert.export.quantize.recipe import Recipe
from framert.export.quantize.smoothing import Link
from framert.runtime.manifest import Manifest, ModelSpec, ScheduleSpec, TokenizerSpec


class Family(Protocol):
    """Graphs, tokenizers and the manifest's numbers of one kind of checkpoint."""

    @property
    def name(self) -> str:
        """The word for it in manifests."""

    @property
    def guidance_branches(self) -> int:
        """Width of ``guidance_index``: fixed, so that a result does not depend on who else is in the pack."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt is truncated to, the end token included."""

    def plans(self, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
        """Return the graphs in the order they run. Raises: CheckpointError for a variant the family does not have."""

    def model(self, checkpoint: Checkpoint) -> ModelSpec:
        """Return what the runtime must know of the model. Raises: CheckpointError."""

    def schedule(self, checkpoint: Checkpoint) -> ScheduleSpec:
        """Return the constants of the schedule. Raises: CheckpointError."""

    def native_side(self, checkpoint: Checkpoint) -> int:
        """Return the side in pixels of the pictures the model was trained on, where the caller names none."""

    def write_tokenizers(self, checkpoint: Checkpoint, folder: Path) -> Mapping[str, TokenizerSpec]:
        """Write the tokenizers into a bundle; return them by input, or nothing for the one every bundle has.

        Raises: CheckpointError if one is missing or damaged.
        """

    def cases(self, graph: str, manifest: Manifest, checkpoint: Checkpoint, condition: Condition) -> list[Case]:
        """Return the seeded inputs on which ``verify`` compares a graph of a bundle with the oracle.

        condition: runs the conditioner, whose results the denoiser's cases hold.
        """

    def links(self, part: str, checkpoint: Checkpoint) -> list[Link]:
        """Return where factors may move between weights of a part, transformer or text_encoder, before it is quantized.

        Raises: ConfigError if the part cannot be quantized.
        """

    def folded(self, recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
        """Return the transformer's recipe with weights whose results fp16 holds."""

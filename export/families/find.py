"""Which family a checkpoint is of."""

from framert.export.checkpoint import Checkpoint
from framert.export.families.base import Family
from framert.export.families.onediffusion import OneDiffusion
from framert.export.families.univg import UniVG

FAMILIES: dict[str, type[Family]] = {"NextDiT": OneDiffusion, "SD3Transformer2DModel": UniVG}


def find_family(checkpoint: Checkpoint) -> Family:
    """Return the family by the transformer's class; a configuration that names none is the first family's."""
    return FAMILIES.get(str(checkpoint.configs["transformer"].get("_class_name")), OneDiffusion)()

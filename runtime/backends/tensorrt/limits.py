"""What a bundle's engines take, asked before anything is computed."""

from collections.abc import Sequence

from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.shapes import GRAPH, CallSizes
from framert.runtime.tiling import TILE


class Limits:
    """See ``base.Limits``. text, rows: most that the arenas hold."""

    def __init__(self, profiles: Profiles, sizes: CallSizes) -> None:
        self._profiles, self._sizes = profiles, sizes
        self.text = profiles.most(GRAPH, "capacity")
        self.rows = profiles.most(GRAPH, "rows")

    def check_call(self, lengths: Sequence[int], frames: int) -> None:
        self._sizes.check(lengths, frames)

    def check_picture(self, height: int, width: int, *, given: bool) -> None:
        if given:
            self._profiles.choose("vae_encoder", {"height": height, "width": width})

    def check_latents(self, height: int, width: int) -> None:
        tile = {"latent_height": min(height, TILE), "latent_width": min(width, TILE)}
        self._profiles.choose("vae_decoder", tile)

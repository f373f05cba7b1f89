"""What a bundle's engines take, asked before anything is computed."""

from collections.abc import Sequence

from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.shapes import GRAPH, CallSizes
from framert.runtime.tiling import TILE


class EngineLimits:
    """See ``base.Limits``. factor: picture pixels per latent pixel."""

    def __init__(self, profiles: Profiles, sizes: CallSizes, factor: int) -> None:
        self._profiles, self._sizes, self._factor = profiles, sizes, factor
        self.text = profiles.most(GRAPH, "capacity")
        self.rows = profiles.most(GRAPH, "rows")

    def check_call(self, lengths: Sequence[int], frames: int) -> None:
        self._sizes.check(lengths, frames)

    def check_size(self, height: int, width: int, *, encodes: bool) -> None:
        if encodes:
            self._profiles.choose("vae_encoder", {"height": height, "width": width})
        latents = [min(side // self._factor, TILE) for side in (height, width)]
        self._profiles.choose("vae_decoder", {"latent_height": latents[0], "latent_width": latents[1]})

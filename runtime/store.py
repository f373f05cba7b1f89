"""What was precomputed per prompt and schedule, kept in the denoiser's arenas and shared between requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framert.runtime.arena import Arena, Span
from framert.runtime.backends.base import Denoiser, Limits, Reusing, text_arenas
from framert.runtime.components import Components, Text
from framert.runtime.manifest import Manifest

FIRST_TEXT = 1024  # tokens and rows the arenas start with; they double when a request needs more
FIRST_ROWS = 128
FIRST_CACHE = 4096  # rows of kept keys and values, once a request reuses any


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A hold on one prompt's text rows, on its modulation rows for one list of noise levels, and on kept keys."""

    text: Span
    modulation: Span
    cache: Span | None = None


class ConditioningStore:
    """Fills the arenas of one denoiser through the conditioner. limits: how far they grow; None for any size."""

    def __init__(
        self, components: Components, denoiser: Denoiser, manifest: Manifest, limits: Limits | None = None
    ) -> None:
        self._components = components
        self._denoiser = denoiser
        self._arenas = tuple(text_arenas(manifest))
        self._text = Arena(FIRST_TEXT, limits.text if limits else None)
        self._rows = Arena(FIRST_ROWS, limits.rows if limits else None)
        self._cache = Arena(FIRST_CACHE)

    @property
    def reuses(self) -> bool:
        """Whether the denoiser can keep keys and values of condition frames."""
        return isinstance(self._denoiser, Reusing)

    def prepare(self) -> None:
        """Make the arenas, so that calls can run before any request came."""
        self._denoiser.reserve(text=self._text.capacity, rows=self._rows.capacity)

    def acquire(
        self, text: Text, noise_levels: Sequence[float], seconds: dict[str, float], *, cache: int = 0
    ) -> Conditioning:
        """Return rows for a text and noise levels in 0..1000, computing them unless somebody already did.

        Args:
            cache: also hold so many rows for keys and values, which nobody shares.
        """
        held = Conditioning(
            self._text.acquire(text.key, text.length),
            self._rows.acquire((text.key, tuple(noise_levels)), len(noise_levels)),
            self._cache.acquire(object(), cache) if cache else None,
        )
        try:
            if held.cache is not None:
                assert isinstance(self._denoiser, Reusing)
                required = self._cache.required
                self._denoiser.reserve_cache(required)
                self._cache.capacity = required
            if held.text.fresh or held.modulation.fresh:
                self._fill(held, self._components.condition(text.values, noise_levels, seconds))
        except BaseException:
            self.release(held)
            raise
        return held

    def _fill(self, held: Conditioning, made: Mapping[str, Any]) -> None:
        text, rows = self._text.required, self._rows.required
        self._denoiser.reserve(text=text, rows=rows)  # may be out of memory: then nothing has grown
        self._text.capacity, self._rows.capacity = text, rows
        if held.text.fresh:
            self._denoiser.write_text(held.text.begin, *(made[name] for name in self._arenas))
            held.text.fresh = False
        if held.modulation.fresh:
            self._denoiser.write_modulation(held.modulation.begin, made["modulation"])
            held.modulation.fresh = False

    def release(self, held: Conditioning) -> None:
        self._text.release(held.text)
        self._rows.release(held.modulation)
        if held.cache is not None:  # still fresh, so that its rows are free at once
            self._cache.release(held.cache)

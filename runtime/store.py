"""What was precomputed per prompt and schedule, kept in the denoiser's arenas and shared between requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framert.runtime.arena import Arena, Span
from framert.runtime.backends.base import Denoiser
from framert.runtime.components import Components

FIRST_TEXT = 1024  # tokens and rows the arenas start with; they double when a request needs more
FIRST_ROWS = 128


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A hold on one prompt's text rows and on its modulation rows for one list of noise levels."""

    text: Span
    modulation: Span


class ConditioningStore:
    """Fills the arenas of one denoiser through the conditioner."""

    def __init__(self, components: Components, denoiser: Denoiser) -> None:
        self._components = components
        self._denoiser = denoiser
        self._text = Arena(FIRST_TEXT)
        self._rows = Arena(FIRST_ROWS)

    def acquire(self, prompt: str, noise_levels: Sequence[float], seconds: dict[str, float]) -> Conditioning:
        """Return rows for a prompt and noise levels in 0..1000, computing them unless somebody already did."""
        hidden = self._components.hidden_states(prompt, seconds)
        held = Conditioning(
            self._text.acquire(prompt, len(hidden)),
            self._rows.acquire((prompt, tuple(noise_levels)), len(noise_levels)),
        )
        try:
            if held.text.fresh or held.modulation.fresh:
                self._fill(held, self._components.condition(hidden, noise_levels, seconds))
        except BaseException:
            self.release(held)
            raise
        return held

    def _fill(self, held: Conditioning, made: Mapping[str, Any]) -> None:
        text, rows = self._text.required, self._rows.required
        self._denoiser.reserve(text=text, rows=rows)  # may be out of memory: then nothing has grown
        self._text.capacity, self._rows.capacity = text, rows
        if held.text.fresh:
            self._denoiser.write_text(held.text.begin, made["text_k"], made["text_v"])
            held.text.fresh = False
        if held.modulation.fresh:
            self._denoiser.write_modulation(held.modulation.begin, made["modulation"])
            held.modulation.fresh = False

    def release(self, held: Conditioning) -> None:
        self._text.release(held.text)
        self._rows.release(held.modulation)

"""Sizes of calls: what a pack is padded to, so that few shapes of calls serve all packs, and which profile takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framert.runtime.backends.buckets import capacity, text_bucket, token_bucket
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.tables import Tables
from framert.runtime.windows import reaches

GRAPH = "denoiser"
AXES = ("tokens", "slots", "sequences", "frames", "text_tokens", "longest", "text_longest")  # that a key names
LEAST_SEQUENCES = 16  # a plugin's step is padded to; each empty one costs some programs


@dataclass(frozen=True, slots=True)
class StepKey:
    """Sizes of a call. profile: of the engine.

    text_tokens: 0 where text is no part of a call. longest, text_longest: of the windows, 0 where attention has none.
    """

    profile: int
    tokens: int
    slots: int
    sequences: int
    frames: int
    text_tokens: int
    longest: int
    text_longest: int


class CallSizes:
    """Says what packs are padded to.

    Args:
        profiles: of the bundle. text: tokens of the longest prompt.
    """

    def __init__(self, profiles: Profiles, text: int) -> None:
        self._profiles = profiles
        self._most = {axis: profiles.most(GRAPH, axis) for axis in profiles.of(GRAPH)[0]}
        self._carried = text if "text_tokens" in self._most else 0

    def padded(self, tokens: int) -> int:
        """Return the bucket of so many model tokens. Raises: BackendError if the engine takes fewer."""
        self._profiles.choose(GRAPH, {"tokens": tokens})
        return min(token_bucket(tokens), self._most["tokens"])

    def check(self, lengths: Sequence[int], frames: int) -> None:
        """Raises: BackendError if no profile takes sequences of so many tokens, of so many frames together.

        Of a text that is carried the longest there may be is counted: prompts are not read yet.
        """
        tokens = sum(lengths)
        padding = self.padded(tokens) - tokens
        longest = max(max(lengths) + self._carried, padding)
        if padding:
            lengths, frames = [*lengths, padding], frames + 1
        self._choose(tokens + padding, len(lengths), frames, len(lengths) * self._carried, longest, 1)

    def key(self, tables: Tables) -> StepKey:
        """Return the sizes of a pack's calls. Raises: BackendError if no profile takes them."""
        longest, text = reaches(tables)
        tokens, sequences = len(tables.source), len(tables.q_range)
        words = 0 if tables.text_source is None else max(1, len(tables.text_source))
        number = self._choose(tokens, sequences, tables.frames, words, longest, text)
        most = {axis: size[2] for axis, size in self._profiles.of(GRAPH)[number].items()}
        windows = "longest" in most
        return StepKey(
            profile=number,
            tokens=tokens,
            slots=tokens,  # as many as there can be: theirs is a small part of the work
            # Padded attention takes its time for empty sequences too.
            sequences=sequences if windows else min(capacity(sequences, LEAST_SEQUENCES), most["sequences"]),
            frames=most["frames"],
            text_tokens=min(text_bucket(words), most["text_tokens"]) if words else 0,
            longest=min(token_bucket(longest), most["longest"]) if windows else 0,
            text_longest=min(token_bucket(text), most["text_longest"]) if "text_longest" in most else 0,
        )

    def lengths(self, key: StepKey) -> Mapping[str, int]:
        """Return the length of each axis of the denoiser's inputs: the key's, and the most of what it does not name."""
        most = {axis: sizes[2] for axis, sizes in self._profiles.of(GRAPH)[key.profile].items()}
        return most | {axis: getattr(key, axis) for axis in AXES if axis in most}

    def _choose(self, tokens: int, sequences: int, frames: int, words: int, longest: int, text: int) -> int:
        sizes = {"tokens": tokens, "sequences": sequences, "frames": frames}
        further = {"text_tokens": words, "longest": longest, "text_longest": text}
        return self._profiles.choose(
            GRAPH, sizes | {axis: size for axis, size in further.items() if axis in self._most}
        )

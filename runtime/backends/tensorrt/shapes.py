"""Sizes of calls: what a pack is padded to, so that few shapes of calls serve all packs, and which profile takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framert.runtime.backends.buckets import capacity, token_bucket
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.tables import Tables

GRAPH = "denoiser"
AXES = ("tokens", "slots", "sequences", "frames", "longest", "text_longest")  # that a key names
LEAST_SEQUENCES = 16  # a plugin's step is padded to; each empty one costs some programs


@dataclass(frozen=True, slots=True)
class StepKey:
    """Sizes of a call. profile: of the engine. longest, text_longest: of the windows, 0 where attention has none."""

    profile: int
    tokens: int
    slots: int
    sequences: int
    frames: int
    longest: int
    text_longest: int


class CallSizes:
    """Says what packs are padded to. profiles: of the bundle."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._most = {axis: profiles.most(GRAPH, axis) for axis in profiles.of(GRAPH)[0]}
        self._windows = "longest" in self._most

    def padded(self, tokens: int) -> int:
        """Return the bucket of so many model tokens. Raises: BackendError if the engine takes fewer."""
        self._profiles.choose(GRAPH, {"tokens": tokens})
        return min(token_bucket(tokens), self._most["tokens"])

    def check(self, lengths: Sequence[int], frames: int) -> None:
        """Raises: BackendError if no profile takes sequences of so many tokens, of so many frames together."""
        tokens = sum(lengths)
        padding = self.padded(tokens) - tokens
        if padding:
            lengths, frames = [*lengths, padding], frames + 1
        self._key(tokens + padding, len(lengths), frames, max(lengths), 1)

    def key(self, tables: Tables) -> StepKey:
        """Return the sizes of a pack's calls. Raises: BackendError if no profile takes them."""
        longest = max(int(tables.q_range[:, 1].max()), int(tables.kv_range[:, 1].max()), 1)
        text = max(int(tables.text_range[:, 1].max()), 1)
        return self._key(len(tables.source), len(tables.q_range), tables.frames, longest, text)

    def lengths(self, key: StepKey) -> Mapping[str, int]:
        """Return the length of each axis of the denoiser's inputs: the key's, and the most of what it does not name."""
        most = {axis: sizes[2] for axis, sizes in self._profiles.of(GRAPH)[key.profile].items()}
        return most | {axis: getattr(key, axis) for axis in AXES if axis in most}

    def _key(self, tokens: int, sequences: int, frames: int, longest: int, text: int) -> StepKey:
        sizes = {"tokens": tokens, "sequences": sequences, "frames": frames}
        if self._windows:
            sizes |= {"longest": longest, "text_longest": text}
        number = self._profiles.choose(GRAPH, sizes)
        most = {axis: size[2] for axis, size in self._profiles.of(GRAPH)[number].items()}
        return StepKey(
            profile=number,
            tokens=tokens,
            slots=tokens,  # as many as there can be: theirs is a small part of the work
            # Padded attention takes its time for empty sequences too.
            sequences=sequences if self._windows else min(capacity(sequences, LEAST_SEQUENCES), most["sequences"]),
            frames=most["frames"],
            longest=min(token_bucket(longest), most["longest"]) if self._windows else 0,
            text_longest=min(token_bucket(text), most["text_longest"]) if self._windows else 0,
        )

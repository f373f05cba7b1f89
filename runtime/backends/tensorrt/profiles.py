"""The sizes that engines were built for, read from profiles.json: which profile takes a call, and what is refused."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from framert.runtime.errors import BackendError, BundleError
from framert.runtime.profiles import MANY_PART

FILE = "profiles.json"
Sizes = Mapping[str, int]
Profile = Mapping[str, tuple[int, int, int]]  # axis -> least, best, most

# Axis -> what it counts.
WORDS = {
    "tokens": "model tokens, guidance branches counted",
    "sequences": "sequences, one for each guidance branch and one for padding",
    "text_tokens": "text tokens of all sequences",
    "longest": "model tokens of one sequence",
    "text_longest": "text tokens of one prompt",
    "frames": "frames",
    "rows": "modulation rows",
    "capacity": "text tokens",
    "height": "pixels high",
    "width": "pixels wide",
    "latent_height": "latent pixels high",
    "latent_width": "latent pixels wide",
    "length": "text tokens of one prompt",
    "features": "pictures that one prompt refers to",
}
SHOWN = ("tokens", "sequences", "longest", "frames")  # of the denoiser's profiles, in the order they are told


class Profiles:
    """The profiles of every graph. rebuild: returns how to build them again, for an axis and its size if given."""

    def __init__(self, table: Mapping[str, Sequence[Profile]], rebuild: Callable[..., str]) -> None:
        self._table = table
        self._rebuild = rebuild

    @classmethod
    def read(cls, folder: Path, graphs: Sequence[str], rebuild: Callable[..., str]) -> "Profiles":
        """Raises: BundleError if the file is missing or not what ``framert build`` writes."""
        file = folder / FILE
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            table = {
                graph: [{axis: (int(a), int(b), int(c)) for axis, (a, b, c) in one.items()} for one in data[graph]]
                for graph in graphs
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{file} cannot be read ({error!r}); {rebuild()}") from error
        if empty := [graph for graph, profiles in table.items() if not profiles]:
            raise BundleError(f"{file} has no profile of {', '.join(empty)}; {rebuild()}")
        return cls(table, rebuild)

    def of(self, graph: str) -> Sequence[Profile]:
        return self._table[graph]

    def most(self, graph: str, axis: str) -> int:
        """Return the largest size of an axis in any profile; 0 where the graph has no such axis."""
        return max(profile[axis][2] for profile in self._table[graph]) if axis in self._table[graph][0] else 0

    def choose(self, graph: str, sizes: Sizes) -> int:
        """Return the profile with the smallest sizes that takes a call.

        Raises: BackendError that says what was asked for, what is allowed and what to build.
        """
        taking = [index for index, one in enumerate(self._table[graph]) if not _outside(one, sizes)]
        if not taking:
            raise BackendError(self._refusal(graph, sizes))
        return min(taking, key=lambda index: (self._volume(graph, index, sizes), index))

    def _volume(self, graph: str, index: int, sizes: Sizes) -> int:
        volume = 1
        for axis in sizes:
            volume *= self._table[graph][index].get(axis, (1, 1, 1))[2]
        return volume

    def _refusal(self, graph: str, sizes: Sizes) -> str:
        profiles = self._table[graph]
        for axis, size in sizes.items():  # one size that no profile takes is the whole story
            if axis not in profiles[0]:
                continue
            least, most = min(one[axis][0] for one in profiles), self.most(graph, axis)
            if not least <= size <= most:
                remedy = self._rebuild(axis=axis, size=size) if size > most else self._rebuild()
                what = WORDS.get(axis, axis)
                what += ", its text counted" if axis == "longest" and "text_tokens" in profiles[0] else ""
                return f"{graph} was asked for {size} {what}, and is built for {least} to {most}; {remedy}"
        asked = ", ".join(f"{sizes[axis]} {axis}" for axis in SHOWN if axis in sizes)
        allowed = "; or ".join(
            ", ".join(f"{one[axis][2]} {axis}" for axis in SHOWN if axis in one and axis in sizes) for one in profiles
        )
        # Each size alone fits: it is many sequences, one of which is too long for a part of the largest bucket.
        tokens = max(sizes["tokens"], MANY_PART * sizes["longest"]) if {"tokens", "longest"} <= set(sizes) else 0
        remedy = self._rebuild(axis="tokens", size=tokens) if tokens else self._rebuild()
        return f"{graph} was asked for {asked}, and is built for up to {allowed}; {remedy}"


def _outside(profile: Profile, sizes: Sizes) -> list[str]:
    return [
        axis for axis, size in sizes.items() if axis in profile and not profile[axis][0] <= size <= profile[axis][2]
    ]

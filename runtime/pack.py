"""The sequences that share denoiser calls, as one set of tables on the device."""

from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np

from framert.runtime import tables
from framert.runtime.arrays import Floats
from framert.runtime.backends.base import Denoiser, Reusing
from framert.runtime.families import find_family
from framert.runtime.manifest import Manifest
from framert.runtime.sequence import Sequence
from framert.runtime.tables import BranchRows, Tables

WARM_UP_CALLS = 4  # latents may move two ways, and a way be recorded when it is gone a second time
SIDE = 32  # tokens a side of the frames of a call that nobody reads


@dataclass(frozen=True, slots=True)
class _Nothing:
    """A member for calls that nobody reads."""

    frames: int
    height: int
    width: int
    branches: tuple[BranchRows, ...]
    conditions: Floats | None = None

    @classmethod
    def of(cls, tokens: int, side: int) -> "_Nothing":
        """Return a member of nearly so many model tokens, in two branches as guided requests have them."""
        branches = 1 if tokens == 1 else 2
        own = tokens // branches
        width = min(own, side)
        height = min(own // width, side)
        return cls(own // (width * height), height, width, (BranchRows(0, 1, 0, 1.0),) * branches)


class Pack:
    """Binds members to the denoiser. Tables are rebuilt only when the members change.

    Args:
        denoiser: the backend's step.
        manifest: of the bundle; says how its family's tables are laid out.
    """

    def __init__(self, denoiser: Denoiser, manifest: Manifest) -> None:
        self._denoiser = denoiser
        self._guidance_branches = manifest.guidance_branches
        self._side = min(SIDE, manifest.model.max_positions)
        self._layout = find_family(manifest.family).layout(manifest)
        self._members: tuple[Sequence, ...] = ()
        self._skipping: tuple[bool, ...] = ()
        self._built: dict[tuple[bool, ...], Tables] = {}  # of these members, by who skips

    def step(self, members: List[Sequence]) -> None:
        """Run one call for all members and move each to its next evaluation. Raises: what the backend raises."""
        skipping = tuple(member.skips for member in members)
        if tuple(members) != self._members:
            self._bind(members, skipping)
        elif skipping != self._skipping:
            assert isinstance(self._denoiser, Reusing)
            self._denoiser.switch(self._tables(members, skipping))
            self._skipping = skipping
        row = [member.rows[member.call] for member in members]
        row.append(np.zeros(self._built[skipping].frames - sum(map(len, row)), np.int32))
        self._denoiser.step(np.concatenate(row), np.concatenate([member.update() for member in members]))
        for member in members:
            member.call += 1

    def warm_up(self, count: int, token_width: int) -> None:
        """Run ``count`` model tokens on zeros, as often as a backend has things to compile or to record."""
        self.collect()
        member = _Nothing.of(count, self._side)
        bucket = self._denoiser.padded(count)
        built = tables.build([member], guidance_branches=self._guidance_branches, tokens=bucket, layout=self._layout)
        slots = tables.slot_count(member)
        nothing = np.zeros((slots, token_width), np.float32)
        self._denoiser.bind(built, nothing, nothing)
        for _ in range(WARM_UP_CALLS):
            self._denoiser.step(np.zeros(built.frames, np.int32), np.zeros((slots, 6), np.float32))

    def collect(self) -> None:
        """Bring the members' latents and histories back from the denoiser, and unbind it."""
        if self._members:
            latents, history = self._denoiser.state()
            for member, part in self._slices():
                member.latents, member.history = latents[part].copy(), history[part].copy()
        self._members = ()

    def release(self) -> None:
        """Forget the members without reading anything back; the denoiser's contents are then nobody's."""
        self._members = ()

    def latents(self, sequence: Sequence) -> Floats:
        """Return a member's current (slots, token_width) latents."""
        return self._part(self._denoiser.state()[0], sequence)

    def velocity(self, sequence: Sequence) -> Floats:
        """Return a member's guided velocity of the last call, (slots, token_width)."""
        return self._part(self._denoiser.velocity(), sequence)

    def _part(self, values: Floats, sequence: Sequence) -> Floats:
        return next(values[part] for member, part in self._slices() if member is sequence)

    def _slices(self) -> list[tuple[Sequence, slice]]:
        ends = np.cumsum([tables.slot_count(member) for member in self._members]).tolist()
        begins = [0, *ends[:-1]]
        return [(member, slice(a, b)) for member, a, b in zip(self._members, begins, ends, strict=True)]

    def _bind(self, members: List[Sequence], skipping: tuple[bool, ...]) -> None:
        self.collect()
        self._built = {}
        built = self._tables(members, skipping)
        latents = np.concatenate([member.latents for member in members])
        history = np.concatenate([member.history for member in members])
        self._denoiser.bind(built, latents, history)
        self._members, self._skipping = tuple(members), skipping

    def _tables(self, members: List[Sequence], skipping: tuple[bool, ...]) -> Tables:
        if skipping not in self._built:
            running = [
                member.generated_frames if skips else None for member, skips in zip(members, skipping, strict=True)
            ]
            tokens = sum(tables.token_count(member, own) for member, own in zip(members, running, strict=True))
            cached = any(branch.cache_begin is not None for member in members for branch in member.branches)
            self._built[skipping] = tables.build(
                members,
                guidance_branches=self._guidance_branches,
                tokens=self._denoiser.padded(tokens),
                running=running,
                cache_rows=self._denoiser.cache_rows if cached and isinstance(self._denoiser, Reusing) else None,
                layout=self._layout,
            )
        return self._built[skipping]

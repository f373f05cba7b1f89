"""Small arrays to the device in every step, without the host ever waiting for the device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from framert.runtime.arrays import Array

DEPTH = 4  # steps that the host may be ahead


class Staging:
    """Pinned buffers in a ring: a buffer is written again only when the copy out of it is done.

    Args:
        device: where arrays go. On the CPU they are copied directly.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._buffers: list[list[Tensor]] = [[] for _ in range(DEPTH)]
        event: Any = torch.cuda.Event
        self._copied = [event() for _ in range(DEPTH)] if self._pinned else []
        self._next = 0

    def send(self, *pairs: tuple[Tensor, Array]) -> None:
        """Copy each array to the begin of its target, of the same dtype, in the order of the current stream."""
        place, self._next = self._next, (self._next + 1) % DEPTH
        sources = [torch.from_numpy(np.ascontiguousarray(values)) for _, values in pairs]
        if self._pinned:
            sources = self._stage(place, sources)
        for (target, _), source in zip(pairs, sources, strict=True):
            target[: len(source)].copy_(source, non_blocking=True)
        if self._pinned:
            self._copied[place].record()

    def _stage(self, place: int, sources: list[Tensor]) -> list[Tensor]:
        self._copied[place].synchronize()  # returns at once for one that was never recorded
        buffers = self._buffers[place]
        staged: list[Tensor] = []
        for number, source in enumerate(sources):
            if number == len(buffers):
                buffers.append(torch.empty(0, dtype=source.dtype))
            if buffers[number].numel() < source.numel() or buffers[number].dtype != source.dtype:
                buffers[number] = torch.empty(source.numel(), dtype=source.dtype, pin_memory=True)
            staged.append(buffers[number][: source.numel()].view(source.shape).copy_(source))
        return staged

"""What an evaluation computed, kept beside its JSON: others are measured against it without running it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
SUFFIX = ".npz"


@dataclass(frozen=True, slots=True)
class Kept:
    """Arrays by (task, scene): scenes count from 0.

    latents: at the end. velocity: (levels, values), at these latents under noise; of one task only.
    """

    latents: dict[tuple[str, int], Array] = field(default_factory=dict)
    velocity: dict[tuple[str, int], Array] = field(default_factory=dict)

    def update(self, other: "Kept") -> None:
        """Take what another process found."""
        self.latents.update(other.latents)
        self.velocity.update(other.velocity)

    def write(self, path: Path, run: Mapping[str, Any]) -> None:
        """Write everything into one file, and whose it is."""
        arrays = {
            f"{name}/{task}/{scene}": array
            for name, found in (("latents", self.latents), ("velocity", self.velocity))
            for (task, scene), array in found.items()
        }
        np.savez(path, allow_pickle=False, run=np.array(json.dumps(run, sort_keys=True)), **arrays)

    @classmethod
    def read(cls, path: Path, run: Mapping[str, Any]) -> "Kept":
        """Read a file. Raises: ValueError if it is damaged, or of another evaluation than ``run``; OSError."""
        kept = cls()
        try:
            with np.load(path, allow_pickle=False) as file:
                whose = str(file["run"])
                for key in file.files:
                    name, *rest = key.split("/")
                    if rest:
                        getattr(kept, name)[rest[0], int(rest[1])] = file[key]
        except (ValueError, KeyError, EOFError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no latents of an evaluation ({error}); evaluate the reference again"
            ) from error
        if whose != json.dumps(run, sort_keys=True):
            raise ValueError(f"{path} is of another evaluation than the JSON beside it; evaluate the reference again")
        return kept

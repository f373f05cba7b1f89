"""The families of models: each is one object that holds everything in which it differs from the others."""

import difflib

from framert.runtime.errors import BundleError, TaskError
from framert.runtime.families.base import Family
from framert.runtime.families.onediffusion.family import OneDiffusion
from framert.runtime.families.univg.family import UniVG
from framert.runtime.manifest import Manifest
from framert.runtime.task import Task

__all__ = ["DEFAULT", "FAMILIES", "Family", "find_family", "find_task"]

FAMILIES: dict[str, Family] = {family.name: family for family in (OneDiffusion(), UniVG())}
DEFAULT = "onediffusion"  # whose tasks are meant where no bundle says


def find_family(name: str) -> Family:
    """Return the family called ``name``. Raises: BundleError that lists those there are."""
    if name in FAMILIES:
        return FAMILIES[name]
    raise BundleError(
        f"the bundle is of the family {name!r}, and this framert has {', '.join(FAMILIES)}; update framert, or export "
        "another checkpoint"
    )


def find_task(name: str, family: str = DEFAULT, manifest: Manifest | None = None) -> Task:
    """Return a family's row called ``name``; with its manifest only what that bundle can do.

    Raises: TaskError that lists the tasks and the closest one, and says whose task it is if it is another's.
    """
    tasks = find_family(family).tasks(manifest)
    if isinstance(name, str) and name in tasks:
        return tasks[name]
    known = f"the tasks are {', '.join(tasks)}"
    owners = [other.name for other in FAMILIES.values() if isinstance(name, str) and name in other.tasks()]
    if owners:
        owner, lacking = owners[0], f"is of the family {family}"
        if family in owners:
            owner, lacking = family, "lacks what it takes"
        raise TaskError(
            f"{name!r} is a task of {owner}, and this bundle {lacking}; {known}: use one of them, or a bundle that has "
            "it (framert tasks BUNDLE)"
        )
    close = difflib.get_close_matches(str(name), tasks, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "use one of them, or generate() for other frames."
    raise TaskError(f"there is no task {name!r}; {known}: {hint}")

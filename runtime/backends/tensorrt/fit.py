"""Whether a bundle of engines is for this machine: its GPU, its TensorRT, the kernels inside; and what mends it."""

import re
import shlex

from framert.runtime.backends.tensorrt.library import KINDS
from framert.runtime.backends.tensorrt.rebuild import how_built, rebuild_command
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError

AMPERE = 80


def check_kind(bundle: Bundle) -> str:
    """Return the kind of a bundle of engines. Raises: BackendError for one of graphs."""
    kind = bundle.manifest.target.get("kind", "")
    if kind not in KINDS:
        raise BackendError(
            f"{bundle.path} is of kind {kind!r}, and backend 'tensorrt' runs kinds {' and '.join(map(repr, KINDS))}; "
            f"build it: framert build {shlex.quote(str(bundle.path))} --target sm_NN -o ENGINES"
        )
    return kind


def check_version(bundle: Bundle, version: str) -> None:
    """Raises: BackendError unless engines of this bundle load in the installed version."""
    made = bundle.manifest.target.get("version", "")
    ours, theirs = _numbers(version), _numbers(made)
    if ours == theirs:
        return
    if for_other_versions(bundle) and ours[:1] == theirs[:1] and ours > theirs:
        return
    kind = bundle.manifest.target["kind"]
    raise BackendError(
        f"{bundle.path} was built with {kind} {made}, and {version} is installed, which does not run it; install "
        f"{KINDS[kind][0]}=={made}, or {rebuild_command(bundle)}"
    )


def check_gpu(bundle: Bundle, target: str, gpu: str) -> None:
    """Raises: BackendError unless the engines, and kernels of ours in them, are for this compute capability."""
    targets = bundle.manifest.target.get("compute_capability", "").split(",")
    ampere = how_built(bundle).get("compatible") == "ampere+" and int(target.removeprefix("sm_")) >= AMPERE
    if target not in targets and not ampere:
        raise BackendError(
            f"{bundle.path} was built for {' and '.join(targets)}, and this GPU ({gpu}) is {target}; "
            f"{rebuild_command(bundle, target=target)}"
        )
    if "kernels" in bundle.manifest.target and target not in (kernel.split(":")[0] for kernel in kernels(bundle)):
        held = ", ".join(kernel.split(":")[0] for kernel in kernels(bundle)) or "none"
        raise BackendError(
            f"{bundle.path} holds attention kernels for {held}, and this GPU ({gpu}) is {target}; "
            f"{rebuild_command(bundle, target=target)}"
        )


def for_other_versions(bundle: Bundle) -> bool:
    """Return whether later releases of the same major version run the engines."""
    return bool(how_built(bundle).get("compatible") == "version")


def kernels(bundle: Bundle) -> list[str]:
    """Return "target:hash" of every kernel that the manifest names."""
    return [kernel for kernel in bundle.manifest.target.get("kernels", "").split(",") if kernel]


def check_kernels(bundle: Bundle, graph: str, found: list[str]) -> None:
    """Raises: BackendError if an engine brought a kernel that the manifest does not name."""
    known = kernels(bundle)
    if strange := sorted(set(found) - set(known)):
        raise BackendError(
            f"{bundle.path}/{graph}.engine holds the attention kernel {strange[0]}, and its manifest names "
            f"{', '.join(known) or 'none'}; {rebuild_command(bundle)}"
        )


def _numbers(version: str) -> list[int]:
    """Return the up to four numbers of a version: what follows them is the package's own."""
    return [int(part) for part in re.findall(r"\d+", version)[:4]]

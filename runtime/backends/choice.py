"""What ``load`` takes by itself, and why: what a bundle is made for; with "auto" the fastest it was verified with."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from framert.runtime.backends.base import ENGINES
from framert.runtime.bundle import Bundle
from framert.runtime.cpu import cpu_features
from framert.runtime.errors import BackendError

HALF_BUDGET = 0.05  # largest relative L2 error of a velocity in bfloat16; PyTorch's own bfloat16 has about as much


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend with its precision (None: its own), and the reason in words."""

    backend: str
    precision: str | None
    reason: str


def made_for(bundle: Bundle) -> tuple[str, str]:
    """Return the backend that a bundle was made for, and the reason in words; the simplest one for exported graphs."""
    kind = bundle.manifest.target.get("kind", "")
    if kind in ENGINES:
        return "tensorrt", f"the bundle holds engines for {kind}"
    return "onnxruntime", "the bundle holds graphs, and no other backend was named"


def choose(bundle: Bundle) -> Choice:
    """Return the backend to run a bundle with here.

    Engines have but one. Exported graphs go to OpenVINO in bfloat16 where the CPU multiplies bfloat16 and ``framert
    doctor BUNDLE --record`` found the error small; to ONNX Runtime, which computes what was exported, everywhere else.

    Raises: BackendError if no CPU backend is installed.
    """
    backend, reason = made_for(bundle)
    if backend == "tensorrt":
        return Choice(backend, None, reason)
    installed = [name for name in ("onnxruntime", "openvino") if find_spec(name) is not None]
    if not installed:
        raise BackendError("no CPU backend is installed; pip install 'framert[cpu]'")
    if installed == ["openvino"]:
        return Choice("openvino", None, "onnxruntime is not installed")
    if "openvino" not in installed:
        return Choice("onnxruntime", None, "openvino is not installed")
    half = sorted({"avx512_bf16", "amx_bf16", "bf16"} & cpu_features())
    if not half:
        return Choice("onnxruntime", None, "this CPU has no bfloat16 arithmetic, which openvino would gain from")
    record = _record(bundle, "openvino", "bf16")
    if record.get("refused"):
        return Choice("onnxruntime", None, f"openvino refused this bundle: {record['refused']}")
    error = record.get("velocity_error")
    if not isinstance(error, int | float):
        return Choice(
            "onnxruntime", None,
            f"this CPU has {half[0]}, but openvino in bf16 was never compared on this bundle; "
            f"framert doctor {bundle.path} --record does it",
        )  # fmt: skip
    if not error <= HALF_BUDGET:
        return Choice("onnxruntime", None, f"openvino in bf16 was {error:.2g} off on this bundle, over {HALF_BUDGET}")
    return Choice("openvino", "bf16", f"this CPU has {half[0]}, and bf16 was {error:.2g} off on this bundle")


def _record(bundle: Bundle, backend: str, precision: str) -> Mapping[str, Any]:
    """Return what ``framert doctor --record`` wrote into the manifest of a backend, nothing if it did not."""
    backends = bundle.manifest.verified.get("backends")
    record = backends.get(f"{backend}:{precision}") if isinstance(backends, dict) else None
    return record if isinstance(record, dict) else {}

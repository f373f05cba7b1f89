"""Which implementation of a kernel runs: decided once, by rule, and never silently replaced by another."""

import os
from typing import Literal

from torch import Tensor

from framert.runtime.errors import BackendError

Impl = Literal["auto", "triton", "reference"]


def use_triton(impl: Impl, tensor: Tensor, kernel: str) -> bool:
    """Return whether ``kernel`` runs its Triton implementation on ``tensor``.

    "auto" is Triton for CUDA tensors and the reference elsewhere. CPU tensors may be given to "triton" only where
    Triton interprets (TRITON_INTERPRET=1 in the environment before triton is imported).

    Raises: BackendError for an unknown ``impl``, or for "triton" where it cannot run.
    """
    if impl == "reference" or (impl == "auto" and not tensor.is_cuda):
        return False
    if impl not in ("auto", "triton"):
        raise BackendError(f"{kernel}: unknown impl {impl!r}; choose one of auto, triton, reference")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            f"{kernel}: impl='triton' needs CUDA tensors, got one on {tensor.device}; "
            "use impl='reference' on the CPU, or set TRITON_INTERPRET=1 to interpret the kernel (slow)"
        )
    return True

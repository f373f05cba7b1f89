"""One compiled kernel: a Triton function with types, constants and launch, the same ahead of time and just in time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a transformer that kernels are specialized on. norm_eps: of the RMSNorms and of the q and k norms."""

    name: str
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    token_width: int
    softcap: float
    guidance_branches: int = 4
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialization:
    """One Triton function for one set of constants.

    Args:
        name: unique among the kernels of a target; what the spill table and the launcher call it.
        kernel: the function under ``triton.jit``.
        signature: Triton's type of each argument, in order: "*bf16", "i32", "fp32", "constexpr".
        constants: values of the constexpr arguments.
        warps, stages: of the launch.
        grid: the launch grid, one C expression per axis over the names of integer arguments and of ``constants``.
        divisible: arguments whose value (or address) is a multiple of 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    grid: tuple[str, str, str]
    divisible: frozenset[str] = frozenset()

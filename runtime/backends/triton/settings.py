"""How one backend computes: where, in which precision, and with which implementation of the kernels."""

import os
from dataclasses import dataclass
from typing import get_args

import torch

from framert.kernels.checks import FP8_CAPABILITY
from framert.kernels.dispatch import Impl
from framert.runtime.backends.triton.products import COMPUTE, Precision
from framert.runtime.errors import BackendError, ConfigError

DEFAULT_PRECISION: Precision = "bf16"
LEAST_CAPABILITY = (8, 0)  # the first with bf16; the kernels are compiled and measured for it and newer ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """device: of weights and arenas. impl: of the kernels. precision: of the step's products.

    graphs: dtype of text encoder and autoencoder; the conditioner is always fp32, as its products serve every step.
    residual: dtype of the step's residual stream. modulation: of the multipliers' arena.
    """

    device: torch.device
    impl: Impl
    precision: Precision

    @property
    def graphs(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    @property
    def residual(self) -> torch.dtype:
        """bf16 as published: fp32 lowers its velocity error on Blocks by a fifth (0.72 to 0.59 %, on average), and
        costs 4 bytes more per value in each of the two passes of a layer. fp16 does not hold what sums up here.
        """
        return torch.float32 if self.precision in ("fp32", "fp16") else torch.bfloat16

    @property
    def modulation(self) -> torch.dtype:
        """In bf16 it moves nothing measurable on Blocks; every token reads its row, so that halves cache traffic."""
        return self.residual


def choose(impl: str | None, precision: str | None) -> Settings:
    """Return the settings of the options given to ``load``.

    Raises: ConfigError for an unknown value; BackendError where the kernels or the precision cannot run.
    """
    impl = "auto" if impl is None else impl
    precision = DEFAULT_PRECISION if precision is None else precision
    if impl not in get_args(Impl):
        raise ConfigError(f"impl is {impl!r}; backend 'triton' takes {', '.join(get_args(Impl))}")
    if precision not in COMPUTE:
        raise ConfigError(f"precision is {precision!r}; backend 'triton' takes {', '.join(COMPUTE)}")
    device = _device(impl)
    if device.type == "cuda":
        _check_capability(device, precision)
    return Settings(device=device, impl=impl, precision=precision)  # type: ignore[arg-type]  # checked above


def _check_capability(device: torch.device, precision: str) -> None:
    capability = torch.cuda.get_device_capability(device)
    has = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    if capability < LEAST_CAPABILITY:
        raise BackendError(
            f"backend 'triton' needs compute capability 8.0 or newer, {has}; choose backend='onnxruntime'"
        )
    if precision == "fp8" and capability < FP8_CAPABILITY:
        raise BackendError(
            f"precision 'fp8' needs compute capability 8.9 or newer, {has}; use precision='bf16' or 'int8'"
        )


def _device(impl: str) -> torch.device:
    if impl == "reference":
        return torch.device("cpu")
    if os.environ.get("TRITON_INTERPRET") == "1":
        if impl == "triton":
            return torch.device("cpu")
        if torch.cuda.is_available():
            raise BackendError(
                "backend 'triton' needs an NVIDIA GPU, and TRITON_INTERPRET=1 keeps Triton from this one; unset it, "
                "or give impl='triton' to interpret the kernels (slow)"
            )
    elif torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    raise BackendError(
        "backend 'triton' needs an NVIDIA GPU and a torch built for CUDA, and torch sees none here; "
        "impl='reference' runs it on the CPU to check it (slow), backend='onnxruntime' is made for CPUs"
    )

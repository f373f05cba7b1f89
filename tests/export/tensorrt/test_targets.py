"""Targets and what they compute: names, refusals, and the GPU of this machine."""

import ctypes
import re
from types import SimpleNamespace
from typing import Any

import pytest

from framert.export.tensorrt import targets
from framert.export.tensorrt.targets import Gpu, check_precision, parse_targets, this_gpu
from framert.runtime.errors import BackendError, ConfigError


def test_targets_keep_their_order_and_lose_repetitions() -> None:
    assert parse_targets(["sm_120", "sm_86", "sm_120"]) == ("sm_120", "sm_86")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["sm_88"], "unknown target 'sm_88'; choose from sm_75, sm_80"),
        (["8.9"], "unknown target '8.9' (did you mean sm_89?)"),
        (["12.0"], "unknown target '12.0' (did you mean sm_120?)"),
        ([], "no target; give one or more of sm_75"),
    ],
)
def test_unknown_targets(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_targets(given)


@pytest.mark.parametrize(
    ("precision", "given", "message"),
    [
        ("fp8", ["sm_87"], "denoiser is in fp8, which sm_87 does not have; it has fp32, fp16, bf16, int8, int4"),
        ("bf16", ["sm_75"], "denoiser is in bf16, which sm_75 does not have; it has fp32, fp16, int8"),
        ("fp8", ["sm_89", "sm_86"], "fp8, which sm_86 does not have"),
        ("fp4", ["sm_90"], "fp4, which sm_90 does not have"),
    ],
)
def test_precisions_a_target_has_not(precision: str, given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_precision("denoiser", precision, given)


def test_precisions_a_target_has() -> None:
    check_precision("denoiser", "fp8", ["sm_89", "sm_120"])
    for target in targets.PRECISIONS:
        check_precision("denoiser", "fp32", [target])
        check_precision("denoiser", "int8", [target])


class FakeCuda:
    """Stands in for libcuda on a machine with one device."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return self.code

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0


def test_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda())
    assert this_gpu() == Gpu("Orin", "sm_87")


def test_a_broken_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(code=999))
    with pytest.raises(BackendError, match="error 999"):
        this_gpu()


def test_no_driver_or_no_device_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert this_gpu() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 100))
    assert this_gpu() is None

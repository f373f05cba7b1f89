"""Kernels as engines hold them: grid rules, argument lists, and bytes that come back whole."""

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from framert.kernels.plugin.driver import MAX_DYNAMIC_SHARED_SIZE, Driver
from framert.kernels.plugin.launch import Launch, evaluate, pack, unpack
from framert.runtime.errors import BackendError

LAUNCH = Launch(
    target="sm_89",
    entry="_add_kernel",
    arguments=(("x_ptr", "*fp16"), ("n", "i32"), ("y_ptr", "*fp16")),
    divisible=("x_ptr", "y_ptr"),
    constants={"BLOCK": 128, "SCALE": 0.5, "TEXT": True},
    grid=("(n + BLOCK - 1) / BLOCK", "BLOCK / 64", "1"),
    threads=128,
    shared_memory=1024,
    kernel_hash="abc",
    image=b"\x7fELF\0bytes",
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("n", 10), ("n - 3 * 2", 4), ("(n + 3) / 4", 3), ("7 / 2 * 2", 6), ("n % 4 + (1)", 3)],
)
def test_grid_expressions(expression: str, value: int) -> None:
    assert evaluate(expression, {"n": 10}) == value


@pytest.mark.parametrize("expression", ["m", "n ** 2", "f(n)", "n.real", "1.5", "__import__('os')", "n if n else 1"])
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(BackendError, match=r"the grid .* holds"):
        evaluate(expression, {"n": 10})


def test_a_launch_has_blocks_and_parameters_in_order() -> None:
    assert LAUNCH.blocks({"n": 257}) == (3, 2, 1)
    parameters = LAUNCH.parameters({"y_ptr": 1 << 40, "n": 257, "x_ptr": 4096})
    assert [(type(one), one.value) for one in parameters] == [
        (ctypes.c_uint64, 4096),
        (ctypes.c_int32, 257),
        (ctypes.c_uint64, 1 << 40),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x_ptr": 16, "n": 1}, "takes x_ptr, n, y_ptr; given x_ptr, n"),
        ({"x_ptr": 16, "n": 1, "y_ptr": 16, "m": 1}, "takes x_ptr, n, y_ptr; given"),
        ({"x_ptr": 8, "n": 1, "y_ptr": 16}, "x_ptr is 8, which 16 does not divide"),
        ({"x_ptr": 16, "n": 1 << 31, "y_ptr": 16}, "n is 2147483648, which i32 does not hold"),
        ({"x_ptr": 16, "n": -1, "y_ptr": 16}, "n is -1"),
    ],
)
def test_wrong_values(values: dict[str, int], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        LAUNCH.parameters(values)


def test_kernels_come_back_from_bytes() -> None:
    launches = [LAUNCH, replace(LAUNCH, target="sm_120", image=b"")]
    assert unpack(pack(launches)) == launches
    assert unpack(pack([])) == []
    content = pack(launches)
    for length in (1, 20, len(content) - 1):
        with pytest.raises(BackendError, match="not whole; build the engine again"):
            unpack(content[:length])


def test_a_compiled_kernel_becomes_a_launch() -> None:
    fields = {name: getattr(LAUNCH, name) for name in Launch.__slots__ if name not in {"threads", "image"}}
    compiled = SimpleNamespace(**fields, warps=4, cubin=LAUNCH.image, ptx=".version 8.5")
    assert Launch.of(compiled) == LAUNCH
    assert Launch.of(compiled, ptx=True) == replace(LAUNCH, image=b".version 8.5")


class FakeCuda:
    """Records the calls of the driver. failing: the one that returns an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> int:
            self.calls.append((name, given))
            if name == "cuDeviceGetAttribute":
                given[0]._obj.value = {75: 12, 76: 0}[given[1]]
            return 700 if name == self.failing else 0

        return call


def test_the_driver_is_told_what_to_launch() -> None:
    cuda = FakeCuda()
    driver = Driver(cuda)
    assert driver.target() == "sm_120"
    function = driver.load(LAUNCH)
    assert [name for name, _ in cuda.calls[-2:]] == ["cuModuleLoadData", "cuModuleGetFunction"]
    assert cuda.calls[-1][1][2] == b"_add_kernel"
    parameters = LAUNCH.parameters({"x_ptr": 4096, "n": 257, "y_ptr": 8192})
    driver.launch(function, LAUNCH, (3, 2, 1), parameters, 77)
    name, given = cuda.calls[-1]
    assert name == "cuLaunchKernel"
    assert given[1:8] == (3, 2, 1, 128, 1, 1, 1024)
    assert given[8].value == 77
    assert ctypes.c_uint64.from_address(given[9][0]).value == 4096
    assert ctypes.c_int32.from_address(given[9][1]).value == 257


def test_much_shared_memory_is_asked_for() -> None:
    cuda = FakeCuda()
    Driver(cuda).load(replace(LAUNCH, shared_memory=96 << 10))
    assert cuda.calls[-1][0] == "cuFuncSetAttribute"
    assert cuda.calls[-1][1][1:] == (MAX_DYNAMIC_SHARED_SIZE, 96 << 10)


def test_a_failing_call_and_a_missing_driver_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"refuses cuModuleLoadData \(error 700\)"):
        Driver(FakeCuda("cuModuleLoadData")).load(LAUNCH)

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match=r"no CUDA driver \(libcuda.so.1: cannot open\)"):
        Driver()

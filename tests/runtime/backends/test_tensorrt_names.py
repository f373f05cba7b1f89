"""Every name that is called of TensorRT and of the CUDA driver, against the bindings that are installed.

The versions of TensorRT that pip cannot install everywhere were checked the same way, with their bindings over a
stand-in library: 10.3, 10.7, 10.9, 10.13, 10.16 and 11.4 have all of NAMES.
"""

import ast
import gc
import inspect
import re
import subprocess
import sys
from enum import IntEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from framert.runtime.backends.tensorrt import driver, library
from framert.runtime.backends.tensorrt.device import Device
from framert.runtime.backends.tensorrt.library import KINDS, NAMES, RTX_NAMES
from framert.runtime.backends.tensorrt.memory import DeviceArray
from framert.runtime.errors import BackendError
from framert.runtime.gpus import find_gpus

PACKAGE = Path(library.__file__).parent
CUDA = Path(__file__).parents[2] / "emulated" / "cuda.py"


@pytest.mark.parametrize("kind", list(KINDS))
def test_installed_bindings_have_every_name(kind):
    module = pytest.importorskip(KINDS[kind][0], exc_type=ImportError)
    for table in (NAMES, RTX_NAMES if kind == "tensorrt-rtx" else {}):
        for name, attributes in table.items():
            missing = [attribute for attribute in attributes if not hasattr(getattr(module, name), attribute)]
            assert not missing, f"{name} of {module.__name__} {module.__version__}"


def test_names_are_those_that_are_called():
    """What looks like TensorRT's in the code stands in the tables, and nothing else does."""
    known = {attribute for table in (NAMES, RTX_NAMES) for names in table.values() for attribute in names}
    called = set()
    for file in ("library.py", "engine.py", "kernel_cache.py"):
        for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
            if isinstance(node, ast.Attribute):
                called.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                called |= set(re.findall(r"^is_stream_capturable$", node.value))
    assert known <= called
    tensorrts = {
        name for name in called if re.match(r"(get_tensor_|set_|execute_|create_execution|num_io|num_opt)", name)
    }
    assert tensorrts - known == set()


def test_the_emulation_has_no_name_that_tensorrt_lacks(machine):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
    module = inspect.getmodule(type(machine().trt["tensorrt"]))
    for ours, theirs in ((module.Engine, trt.ICudaEngine), (module.Context, trt.IExecutionContext)):
        public = [name for name in vars(ours) if not name.startswith("_")]
        extra = {"output_shapes"}  # the emulation's own
        assert [name for name in public if not hasattr(theirs, name)] == [name for name in public if name in extra]


def driver_names():
    """The driver's functions and constants that driver.py names."""
    text = (PACKAGE / "driver.py").read_text()
    return sorted(set(re.findall(r"\bcu[A-Z]\w+", text)) | set(re.findall(r"\bCU(?:device|stream|event)\w*\b", text)))


def test_cuda_python_has_every_function_of_the_driver():
    names = driver_names()
    assert len(names) > 25
    if find_spec("cuda") is None or find_spec(driver.PACKAGE) is None:
        pytest.skip("needs cuda-python: pip install 'cuda-python>=12.8'")
    cuda = import_module(driver.PACKAGE)
    assert [name for name in names if not hasattr(cuda, name)] == []
    constants = re.findall(r"\b(CU_[A-Z_]+)\b", (PACKAGE / "driver.py").read_text())
    enums = (cuda.CUdevice_attribute, cuda.CUstream_flags, cuda.CUevent_flags, cuda.CUstreamCaptureMode)
    assert [name for name in constants if not any(hasattr(enum, name) for enum in enums)] == []


def test_the_emulated_driver_has_what_is_called(machine):
    assert [name for name in driver_names() if not hasattr(machine().cuda, name)] == []


def test_without_a_driver_the_real_package_is_refused_in_one_sentence():
    if find_spec("cuda") is None or find_spec(driver.PACKAGE) is None:
        pytest.skip("needs cuda-python: pip install 'cuda-python>=12.8'")
    if find_gpus():
        pytest.skip("there is one")
    with pytest.raises(BackendError, match=r"^backend 'tensorrt' needs an NVIDIA GPU with its driver, and .*$"):
        driver.Driver()


class Recorder:
    """Passes calls on to the emulated driver, and notes the arguments of one call of each function."""

    def __init__(self, cuda):
        self.cuda, self.calls = cuda, {}

    def __getattr__(self, name):
        found = getattr(self.cuda, name)
        if not name.startswith("cu"):
            return found

        def call(*arguments):
            self.calls.setdefault(name, arguments)
            return found(*arguments)

        return call


def test_the_real_functions_take_the_arguments_they_are_given(machine, engine_bundle):
    """Without a driver they read their arguments, and then find none: anything but a TypeError will do."""
    if find_spec("cuda") is None or find_spec(driver.PACKAGE) is None:
        pytest.skip("needs cuda-python: pip install 'cuda-python>=12.8'")
    if find_gpus():
        pytest.skip("a GPU would do what it is asked for")
    recorder = Recorder(machine().cuda)
    device = Device(recorder)
    with device.use():
        made = DeviceArray(device.driver, device.stream, (4,), "float32", "a test")
        device.staging.send((made.address, np.zeros(2, np.float32)), (made.address, np.zeros(4, np.float32)))
        device.staging._room(0, 1 << 12)
        made.zero()
        device.driver.copy(made.address, made.address + 8, 8, device.stream)
        graph = device.driver.capture(device.stream, made.zero)
        device.driver.launch(graph, device.stream)
        device.driver.release(graph, "graph")
        made.read()
        del made
        device.driver.memory()
        device.driver.collect()
        with pytest.raises(BackendError):
            device.driver.upload(0, 0, 4, 12345)
    del device
    gc.collect()
    assert set(recorder.calls) == {name for name in driver_names() if name.startswith("cu")}
    cuda = import_module(driver.PACKAGE)
    for name, arguments in recorder.calls.items():
        real = [
            getattr(getattr(cuda, type(one).__name__), one.name) if isinstance(one, IntEnum) else one
            for one in arguments
        ]
        with pytest.raises(Exception) as caught:  # noqa: PT011  # its type differs from version to version
            getattr(cuda, name)(*real)
        assert not isinstance(caught.value, TypeError | ValueError | AttributeError), f"{name}: {caught.value}"


# In a process of its own: plugins are registered per process. The kernels stand in for those an engine brings.
DRIVE = """
import sys
from types import SimpleNamespace
import onnx
import tensorrt_rtx as trt
from framert.kernels.plugin import frame_attention
from framert.runtime.backends.tensorrt import library

plain = frame_attention.creator
def creator(module):
    made = plain(module)
    make = made.create_plugin
    def create_plugin(name, given, phase):
        plugin = make(name, given, phase)
        plugin.launches = [SimpleNamespace(target="sm_89", kernel_hash="0123456789abcdef0123")]
        return plugin
    made.create_plugin = create_plugin
    return made

frame_attention.creator = creator
rtx = library.load("tensorrt-rtx")
brought = rtx.register_plugin("FrameAttention")
assert rtx.register_plugin("FrameAttention") is brought and not brought
builder = trt.Builder(rtx._logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, rtx._logger)
parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
assert parser.parse_from_file(sys.argv[1]), rtx.words()
nodes = [node for node in onnx.load(sys.argv[1]).graph.node if node.op_type == "FrameAttention"]
print(len(brought) == len(nodes) > 0, set(brought))
"""


def test_the_real_registry_calls_the_creator_that_notes_kernels(golden_bundle):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, str(golden_bundle / "denoiser.onnx")], capture_output=True, text=True
    )
    assert done.stdout == "True {'sm_89:0123456789abcdef'}\n", done.stderr


def test_the_real_runtime_refuses_what_is_no_engine(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
    made = library.load("tensorrt-rtx")
    file = tmp_path / "denoiser.engine"
    file.write_bytes(b"nonsense" * 100)
    with pytest.raises(BackendError, match=r"tensorrt-rtx .* cannot load .*denoiser.engine: .*Serialization") as caught:
        made.engine(file)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"")
    with pytest.raises(BackendError, match=r"denoiser.engine cannot be read"):
        made.engine(file)

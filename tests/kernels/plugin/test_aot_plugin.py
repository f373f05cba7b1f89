"""The quickly deployable plugin: what TensorRT is told of it, over its own bindings where they are installed.

Elsewhere over a recorded stand-in of their contract. PTX itself is made in a process of its own.
"""

import json
import operator
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton: pip install 'framert[triton]'")

from framert.kernels.plugin.aot_plugin import AotPlugin, check_order
from framert.kernels.plugin.frame_attention import INPUTS
from framert.runtime.errors import BackendError

FOLDER = str(Path(__file__).parent)
sys.path.insert(0, FOLDER)
import plugin_contract  # noqa: E402
from attention_launches import SHAPE, launches, shapes  # noqa: E402

sys.path.remove(FOLDER)

HALF = SimpleNamespace(name="HALF")
OPERATIONS = {
    "SUM": operator.add, "PROD": operator.mul, "SUB": operator.sub, "FLOOR_DIV": operator.floordiv,
}  # fmt: skip


class Expression:
    """A constant in place of TensorRT's own expression of dimensions, which only a builder makes."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class Builder:
    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, kind: Any, a: Expression, b: Expression) -> Expression:
        return Expression(OPERATIONS[kind.name](a.value, b.value))


class Contract:
    """One of the two: the module, descriptions of tensors in its terms, and numbers back from its expressions."""

    def __init__(self, trtp: Any, trt: Any = None) -> None:
        self.trtp, self.trt = trtp, trt
        self.plugin = AotPlugin(trtp)
        self.plugin.define(lazy=True)

    def tensors(self, sizes: Any, dtype: Any = None) -> list[Any]:
        if self.trt is None:
            sym = plugin_contract.SymInt32
            return [plugin_contract.TensorDesc([sym(side) for side in size], dtype or HALF) for size in sizes]
        from tensorrt_bindings.plugin import _tensor

        made = []
        for size in sizes:
            exprs = _tensor.ShapeExprs(len(size))
            for axis, side in enumerate(size):
                exprs[axis] = _tensor.ShapeExpr(Expression(side))
            made.append(self.trtp.TensorDesc(exprs, dtype or self.trt.float16))
        return made

    def number(self, expression: Any) -> Any:
        return expression.value if self.trt is None else expression._expr.value

    def drive(self, sizes: Any) -> tuple[Any, ...]:
        """Return (kernel, image, grid, block and shared memory, scalars) for inputs of these sizes."""
        definition = self.trtp.op.framert.FrameAttention
        tensors = self.tensors(sizes)
        output = definition.register_func(*tensors)
        assert [self.number(side) for side in output.shape_expr] == list(sizes[0])
        assert output.dtype == tensors[0].dtype
        entry, image, parameters, scalars = definition.aot_impl_func(*tensors, (output,), 0)
        assert all(isinstance(scalars[place], self.trtp.SymInt32) for place in range(len(scalars)))
        numbers = {name: self.number(getattr(parameters, name)) for name in plugin_contract.KernelLaunchParams.NAMES}
        return entry, image, numbers, [self.number(scalars[place]) for place in range(len(scalars))]


@pytest.fixture(scope="module")
def bindings() -> Any:
    """TensorRT's own Python bindings with ahead-of-time plugins, defined once: it takes no definition back."""
    trt = pytest.importorskip("tensorrt", reason="needs TensorRT 10.9 or newer")
    trtp = pytest.importorskip("tensorrt.plugin", reason="needs TensorRT 10.9 or newer")
    if not hasattr(trtp, "aot_impl"):
        pytest.skip("needs TensorRT 10.9 or newer")
    return Contract(trtp, trt)


@pytest.fixture(params=["recorded", "bindings"])
def contract(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Contract:
    if request.param == "recorded":
        return Contract(plugin_contract.module())
    found: Contract = request.getfixturevalue("bindings")
    from tensorrt_bindings.plugin import _tensor

    monkeypatch.setattr(found.trt, "IDimensionExpr", Expression)
    monkeypatch.setattr(_tensor.SymIntExpr, "_exprBuilder", Builder())
    return found


@pytest.mark.parametrize(("tokens", "sequences"), [(50, 3), (200, 1), (1, 1), (4096, 64)])
def test_grid_scalars_and_launch(contract: Contract, tokens: int, sequences: int) -> None:
    launch = replace(launches()[1], image=b".version 8.5")
    contract.plugin.launch = launch
    entry, image, numbers, scalars = contract.drive(shapes(tokens, sequences))
    tile = launch.constants["TILE"]
    rows, kv_rows = SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim
    assert (entry, image) == (launch.entry, b".version 8.5")
    # As kernel.frame_attention launches it: a tile of rows per program, one more per sequence, and the gaps between.
    blocks = ((tokens + sequences * (tile - 1)) // tile + sequences + 1, SHAPE.heads, 1)
    assert tuple(numbers[f"grid_{axis}"] for axis in "xyz") == blocks
    assert blocks == launch.blocks({"tokens": tokens, "sequences": sequences})
    assert tuple(numbers[f"block_{axis}"] for axis in "xyz") == (launch.threads, 1, 1)
    assert numbers["shared_mem"] == launch.shared_memory
    assert scalars == [tokens, sequences, rows, kv_rows, kv_rows, kv_rows, kv_rows, rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HEADS": 8}, "is for 8 heads on 2 of 24; the node has 4 on 2 of 24"),
        ({"HEAD_DIM": 32}, "is for 4 heads on 2 of 32"),
    ],
)
def test_kernels_of_another_attention_are_refused(contract: Contract, changes: Any, message: str) -> None:
    launch = launches()[0]
    contract.plugin.launch = replace(launch, constants=dict(launch.constants) | changes)
    with pytest.raises(BackendError, match=message):
        contract.drive(shapes())


def test_kernels_of_another_type_are_refused(contract: Contract) -> None:
    contract.plugin.launch = launches("bf16")[0]
    with pytest.raises(BackendError, match="is for bf16 tensors; given are HALF"):
        contract.drive(shapes())


def test_without_a_kernel_nothing_is_embedded() -> None:
    with pytest.raises(BackendError, match="no kernel is set for FrameAttention"):
        Contract(plugin_contract.module()).drive(shapes())


def test_strides_that_break_a_promise_are_refused() -> None:
    contract = Contract(plugin_contract.module())
    launch = launches()[0]
    contract.plugin.launch = replace(launch, divisible=(*launch.divisible, "tokens"))
    with pytest.raises(BackendError, match="tokens is 50, which 16 does not divide"):
        contract.drive(shapes(50))


def test_sizes_that_are_not_known_are_not_asked() -> None:
    """Shapes are fake at first, and known only at run time later: both must pass."""
    contract = Contract(plugin_contract.module())
    contract.plugin.launch = launches()[0]
    definition = contract.trtp.op.framert.FrameAttention
    fake = [plugin_contract.TensorDesc([plugin_contract.Fake() for _ in size], HALF) for size in shapes()]
    assert definition.register_func(*fake).ndim == 3
    definition.aot_impl_func(*fake, (fake[0],), 0)
    free = contract.tensors(shapes())
    free[0].shape_expr[0] = plugin_contract.SymInt32(50, constant=False)
    _, _, parameters, scalars = definition.aot_impl_func(*free, (free[0],), 0)
    assert not scalars[0].is_constant
    assert not parameters.grid_x.is_constant
    assert parameters.grid_y.constant_value() == SHAPE.heads


def test_the_kernel_takes_its_arguments_as_tensorrt_passes_them() -> None:
    launch = launches()[0]
    check_order(launch)
    first, *rest = launch.arguments
    for arguments in ((*rest, first), (first, *rest[:-1]), (*launch.arguments[:-1], ("x", "fp32"), rest[-1])):
        with pytest.raises(BackendError, match="TensorRT gives inputs, int32 scalars, outputs"):
            check_order(replace(launch, arguments=arguments))


COMPILE = """
import json, sys
from framert.export.tensorrt.plugin import compile_kernels
from framert.kernels.aot import ptx
from framert.kernels.aot.compiler import assemble, _ptxas, CUDA_12, CUDA_13
from framert.kernels.aot.ops import BLOCKS
from framert.kernels.aot.targets import TARGETS
found = {}
for launch in compile_kernels(BLOCKS, "fp16", sys.argv[1:], ptx=True):
    text, target = launch.image.decode(), TARGETS[launch.target]
    entry = ptx.entry(text)
    tool = _ptxas(CUDA_12 if target.ptx_version < 90 else CUDA_13)
    cubin, registers, spills = assemble(text, entry.architecture, tool, launch.target)
    version = text.split(".version ")[1].split()[0]
    named, whole = entry.name == launch.entry, cubin[:4] == b"\\x7fELF"
    found[launch.target] = [named, entry.architecture, len(entry.parameters), version, whole, spills]
print(json.dumps(found))
"""


def test_ptx_is_what_each_platform_takes() -> None:
    """Accepted by ptxas, in the version of the platform's driver, with the kernel's own parameters and no more."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "sm_87", "sm_89", "sm_90", "sm_110"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    own = len(INPUTS) + 8 + 1
    assert json.loads(done.stdout) == {
        "sm_87": [True, "sm_87", own, "8.5", True, 0],
        "sm_89": [True, "sm_89", own, "8.5", True, 0],
        "sm_90": [True, "sm_90a", own, "8.5", True, 0],
        "sm_110": [True, "sm_110a", own, "9.0", True, 0],
    }

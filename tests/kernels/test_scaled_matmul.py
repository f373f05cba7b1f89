"""Products of quantized operands against fp64, by every implementation that runs here."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.quantize_rows.api import quantize_rows  # noqa: E402
from framert.kernels.scaled_matmul import kernel, reference, vendor  # noqa: E402
from framert.kernels.scaled_matmul.api import scaled_matmul  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError, ShapeError  # noqa: E402

KINDS = ("int8", "fp8")
SHAPES = [(1, 16, 16), (5, 24, 40), (64, 64, 128), (65, 130, 288), (130, 48, 256), (0, 16, 16)]


def operands(m, n, k, kind, device, seed=0):
    """Quantized activations and weights, with rows of very different ranges."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator) * torch.logspace(-1, 1, m)[:, None]
    b = torch.randn(n, k, generator=generator) / k**0.5
    bias = torch.randn(n, generator=generator)
    (a, a_scale), (b, b_scale) = quantize_rows(a, kind), quantize_rows(b, kind)
    return [tensor.to(device) for tensor in (a, b, a_scale, b_scale, bias)]


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_within_budget_of_fp64(shape, kind, out_dtype, device):
    a, b, a_scale, b_scale, bias = operands(*shape, kind, device)
    for own_bias in (None, bias.to(out_dtype)):
        actual = scaled_matmul(a, b, a_scale, b_scale, out_dtype=out_dtype, bias=own_bias, impl="triton")
        exact = reference.scaled_matmul(
            a, b, a_scale.double(), b_scale.double(), out_dtype=torch.float64, bias=own_bias
        )
        low = reference.scaled_matmul(a, b, a_scale, b_scale, out_dtype=out_dtype, bias=own_bias)
        assert_within_budget(actual, low, exact)


def test_int8_sums_are_exact(device):
    """The last bits of sums beyond 2**24, which fp32 would lose, are there."""
    k = 2048
    a = torch.full((3, k), 127, dtype=torch.int8, device=device)
    b = torch.full((16, k), 127, dtype=torch.int8, device=device)
    b[:, -1] = 126
    one = torch.ones(3, device=device), torch.ones(16, device=device)
    expected = torch.tensor(float(127 * 127 * (k - 1) + 127 * 126))
    for impl in ("triton", "reference", "torch") if device == "cpu" else ("triton", "reference"):
        result = scaled_matmul(a, b, *one, out_dtype=torch.float32, impl=impl)
        assert (result.cpu() == expected).all(), impl


@pytest.mark.parametrize("kind", KINDS)
def test_torch_agrees_with_the_kernel(kind, device):
    if device == "cuda" and not (kind == "fp8" and torch.cuda.get_device_capability() in vendor.ROW_WISE):
        pytest.skip("this device has no row-wise product in torch")
    a, b, a_scale, b_scale, bias = operands(33, 48, 64, kind, device)
    bias = bias.bfloat16()
    by_torch = scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, bias=bias, impl="torch")
    exact = reference.scaled_matmul(a, b, a_scale.double(), b_scale.double(), out_dtype=torch.float64, bias=bias)
    low = reference.scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, bias=bias)
    assert_within_budget(by_torch, low, exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [20, 100])
def test_a_row_does_not_depend_on_the_others(kind, m, device):
    """Bit for bit: its place, its neighbours (here an outlier of 1e30 in scale) and their number change nothing."""
    a, b, a_scale, b_scale, _ = operands(m, 40, 288, kind, device)
    if kind == "fp8" and device == "cpu":
        # whole numbers, whose sums are exact: the interpreter's products are NumPy's, which sums in an order of its own
        a, b = ((tensor.float() / 28).round().to(tensor.dtype) for tensor in (a, b))
    whole = scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.float32, impl="triton")
    order = torch.randperm(m, generator=torch.Generator().manual_seed(3)).to(device)
    shuffled = scaled_matmul(a[order], b, a_scale[order], b_scale, out_dtype=torch.float32, impl="triton")
    assert torch.equal(shuffled, whole[order])
    loud = a_scale.clone()
    loud[1:] = 1e30
    beside = scaled_matmul(a, b, loud, b_scale, out_dtype=torch.float32, impl="triton")
    assert torch.equal(beside[0], whole[0])
    alone = scaled_matmul(a[:1], b, a_scale[:1], b_scale, out_dtype=torch.float32, impl="triton")
    if kind == "int8":
        assert torch.equal(alone[0], whole[0])
    else:  # a tile of another height; sums in the same order
        torch.testing.assert_close(alone[0], whole[0], rtol=1e-6, atol=1e-6)


def test_every_element_is_written_and_nothing_beside(device):
    a, b, a_scale, b_scale, _ = operands(70, 50, 64, "int8", device)
    space = torch.full((72, 50), float("nan"), device=device)
    kernel.scaled_matmul(a, b, a_scale, b_scale, None, space[1:71])
    assert space[1:71].isfinite().all()
    assert space[[0, 71]].isnan().all()


def test_auto_is_the_reference_on_the_processor():
    a, b, a_scale, b_scale, _ = operands(5, 16, 32, "int8", "cpu")
    expected = scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, impl="reference")
    assert torch.equal(scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.bfloat16), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": torch.ones(2, 32)}, ShapeError, "a is torch.float32, b torch.int8; both must be int8"),
        ({"a": torch.ones(2, 16, dtype=torch.int8)}, ShapeError, r"a is \(2, 16\), b \(16, 32\); give \(m, k\)"),
        ({"a": torch.ones(32, 2, dtype=torch.int8).T}, ShapeError, "a must be contiguous"),
        ({"a_scale": torch.ones(3)}, ShapeError, r"a_scale is \(3,\) torch.float32; give \(2,\)"),
        ({"b_scale": torch.ones(16).half()}, ShapeError, "b_scale is torch.float16; give float32"),
        ({"bias": torch.ones(1)}, ShapeError, r"bias is \(1,\) torch.float32; give \(16,\)"),
        ({"out_dtype": torch.int8}, ConfigError, "out_dtype is torch.int8; choose one of torch.bfloat16"),
        ({"impl": "cublas"}, BackendError, "unknown impl 'cublas'; choose one of auto, triton, torch, reference"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_calls_say_what_is_allowed(change, error, message):
    arguments = {
        "a": torch.ones(2, 32, dtype=torch.int8),
        "b": torch.ones(16, 32, dtype=torch.int8),
        "a_scale": torch.ones(2),
        "b_scale": torch.ones(16),
        "out_dtype": torch.bfloat16,
    }
    with pytest.raises(error, match=message):
        scaled_matmul(**(arguments | change))


def test_torch_that_refuses_is_named(monkeypatch):
    def refuse(*_):
        raise RuntimeError("self.size(0) needs to be greater than 16\nmore")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    a, b, a_scale, b_scale, _ = operands(5, 16, 32, "int8", "cpu")
    with pytest.raises(BackendError, match=r"torch refuses \(self.size\(0\) needs to be greater than 16\); use impl"):
        scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, impl="torch")

"""Quantization per row against fp64, and the properties that keep requests apart."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.quantize_rows import kernel  # noqa: E402
from framert.kernels.quantize_rows.api import quantize_rows  # noqa: E402
from framert.kernels.quantize_rows.reference import LIMIT  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError, ShapeError  # noqa: E402

KINDS = ("int8", "fp8")


def rows(shape, dtype, device, seed=0):
    """Rows whose magnitudes differ by up to 1e6, with outliers within a row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[0])[:, None]
    x[:, :: max(shape[1] // 3, 1)] *= 20
    return x.to(dtype).to(device)


def step(q, kind):
    """Return the distance from each value of q to its neighbours in the kind's grid: an upper bound."""
    values = q.double().abs()
    return torch.ones_like(values) if kind == "int8" else torch.clamp(values, min=2**-6) / 8 * 1.0001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 16), (5, 288), (3, 1), (7, 100), (2, 2000), (0, 16)], ids=str)
def test_kernel_is_within_half_a_step_of_fp64(shape, kind, dtype, device):
    x = rows(shape, dtype, device)
    q, scale = quantize_rows(x, kind, impl="triton")
    _, exact_scale = quantize_rows(x.double(), kind, impl="reference")
    assert (q.shape, scale.shape, scale.dtype) == (x.shape, (shape[0],), torch.float32)
    torch.testing.assert_close(scale.double(), exact_scale, rtol=3e-7, atol=0)
    error = (q.double() * exact_scale[:, None] - x.double()).abs()
    assert (error <= 0.5 * step(q, kind) * exact_scale[:, None] * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_rounds_as_torch_does(kind, device):
    """The same values as torch on the CPU, so that weights quantized anywhere are the same weights."""
    x = rows((64, 300), torch.float32, "cpu", seed=1)
    q, scale = quantize_rows(x.to(device), kind, impl="triton")
    expected, expected_scale = quantize_rows(x, kind, impl="reference")
    assert torch.equal(q.cpu().float(), expected.float())  # -0 and 0 are one value
    assert torch.equal(scale.cpu(), expected_scale)


def test_every_fp8_value_survives(device):
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = values[values.isfinite()].to(device)[None]  # its largest is 448: the scale is 1
    q, scale = quantize_rows(x, "fp8", impl="triton")
    assert scale.item() == 1
    assert torch.equal(q.float(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_wider_than_a_block_are_read_in_parts(kind, device, monkeypatch):
    x = rows((3, 300), torch.float16, device)
    expected = quantize_rows(x, kind, impl="triton")
    monkeypatch.setattr(kernel, "MAX_BLOCK", 128)
    for actual, whole in zip(quantize_rows(x, kind, impl="triton"), expected, strict=True):
        assert torch.equal(actual.view(torch.uint8), whole.view(torch.uint8))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind, impl, device):
    x = rows((6, 40), torch.bfloat16, device)
    q, scale = quantize_rows(x, kind, impl=impl)
    for row in range(6):
        alone, alone_scale = quantize_rows(x[row : row + 1], kind, impl=impl)
        assert torch.equal(alone[0].view(torch.int8), q[row].view(torch.int8))
        assert torch.equal(alone_scale[0], scale[row])


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_tiny_values_and_row_strides(kind, impl, device):
    wide = rows((4, 64), torch.float32, device)
    wide[1] = 0
    wide[2] = 1e-38
    x = wide[:, 16:48]
    q, scale = quantize_rows(x, kind, impl=impl)
    assert scale[1] == 0
    assert not q[1:3].float().any()
    assert (q[0].float().abs().max(), q[3].float().abs().max()) == (LIMIT[kind], LIMIT[kind])
    again, _ = quantize_rows(x.contiguous(), kind, impl=impl)
    assert torch.equal(q.view(torch.int8), again.view(torch.int8))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_row_is_seen(value, kind, impl, device):
    x = rows((3, 40), torch.float32, device)
    x[1, 7] = value
    q, scale = quantize_rows(x, kind, impl=impl)
    assert not scale[1].isfinite()
    assert not (q[1, 7].float() * scale[1]).isfinite()
    assert scale[[0, 2]].isfinite().all()


def test_nothing_beyond_the_rows_is_written(device):
    x = rows((3, 50), torch.float16, device)
    space = torch.full((5, 50), 99, dtype=torch.int8, device=device)
    scale = torch.full((5,), float("nan"), device=device)
    kernel.quantize_rows(x, space[1:4], scale[1:4], "int8")
    assert (space[[0, 4]] == 99).all()
    assert scale[[0, 4]].isnan().all()
    assert scale[1:4].isfinite().all()


def test_bad_calls_say_what_is_allowed(device):
    x = torch.ones(2, 16, device=device)
    with pytest.raises(ConfigError, match="'int4'; choose one of int8, fp8"):
        quantize_rows(x, "int4")
    with pytest.raises(ShapeError, match=r"\(2, 16, 1\) torch.float32; give \(rows, width\)"):
        quantize_rows(x[..., None], "int8")
    with pytest.raises(ShapeError, match="float dtype"):
        quantize_rows(x.int(), "int8")
    with pytest.raises(ShapeError, match="last axis contiguous"):
        quantize_rows(x.T, "int8", impl="triton")
    with pytest.raises(BackendError, match="unknown impl 'cuda'"):
        quantize_rows(x, "int8", impl="cuda")

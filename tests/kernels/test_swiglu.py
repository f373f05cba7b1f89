"""SwiGLU against fp64, quantized per token or not."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.kernels.swiglu import kernel, reference  # noqa: E402
from framert.kernels.swiglu.api import swiglu  # noqa: E402
from framert.runtime.errors import ConfigError, ShapeError  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# widths that are a power of two, odd, 11 * 256, and 5 * 512 as one block and a tail when quantized
SHAPES = [(0, 64), (1, 64), (37, 64), (5, 99), (3, 2816), (2, 2560), (1, 10240)]


def inputs(tokens, ffn, dtype, device):
    """Rows of very different magnitudes, with gates deep on both sides of silu."""
    generator = torch.Generator().manual_seed(tokens + ffn)
    x = 3 * torch.randn(tokens, 2 * ffn, generator=generator)
    x[:, ffn:] *= torch.logspace(-3, 2, max(tokens, 1))[:tokens, None]
    return x.to(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_reference(shape, dtype, device):
    x = inputs(*shape, dtype, device)
    assert_within_budget(swiglu(x, impl="triton"), swiglu(x, impl="reference"), reference.swiglu(x.double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantized_is_within_half_a_step_of_fp64(shape, kind, dtype, device):
    x = inputs(*shape, dtype, device)
    y, scale = swiglu(x, quantize=kind, impl="triton")
    value = reference.swiglu(x.double())
    assert y.dtype == (torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    assert (y.shape, scale.shape, scale.dtype) == (shape, shape[:1], torch.float32)
    torch.testing.assert_close(
        scale.double(), value.abs().amax(1) / (127 if kind == "int8" else 448), rtol=4e-6, atol=0
    )
    grid = value / scale.double()[:, None]
    # int8 has steps of 1; fp8 of an eighth of the value's power of two, at least 2**-9
    step = torch.ones_like(grid) if kind == "int8" else torch.exp2(grid.abs().clamp(min=2**-6).log2().floor() - 3)
    assert ((y.double() - grid).abs() <= 0.5 * step + 4e-6 * grid.abs() + 1e-6).all()


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp:RuntimeWarning"
)  # infinity, then 1 / infinity: as meant
def test_extreme_gates_do_not_overflow(device):
    gate = torch.tensor([[-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, 3.0]], device=device)
    x = torch.cat((gate, torch.ones_like(gate)), 1)
    expected = reference.swiglu(x.double()).float()
    torch.testing.assert_close(swiglu(x, impl="triton"), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("ffn", [64, 2560])
def test_a_token_does_not_depend_on_its_pack(kind, ffn, device):
    x = inputs(19, ffn, torch.bfloat16, device)
    whole, part = (swiglu(rows, quantize=kind, impl="triton") for rows in (x, x[5:12]))
    pairs = [(whole, part)] if kind is None else zip(whole, part, strict=True)
    for all_tokens, some in pairs:
        assert torch.equal(all_tokens[5:12].view(torch.uint8), some.view(torch.uint8))


@pytest.mark.parametrize("ffn", [48, 300, 2600])
def test_all_is_written_and_nothing_else(ffn, device):
    x = inputs(5, ffn, torch.float32, device)
    y = torch.full((7, ffn), torch.nan, device=device)
    kernel.launch(x, y[1:6], None, quantize=None)
    torch.testing.assert_close(y[1:6], swiglu(x, impl="reference"))
    assert y[[0, 6]].isnan().all()
    q = torch.full((7, ffn), 99, dtype=torch.int8, device=device)
    scale = torch.full((7,), torch.nan, device=device)
    kernel.launch(x, q[1:6], scale[1:6], quantize="int8")
    expected, expected_scale = swiglu(x, quantize="int8", impl="reference")
    assert (q[1:6].int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(scale[1:6], expected_scale)
    assert (q[[0, 6]] == 99).all()
    assert scale[[0, 6]].isnan().all()


@pytest.mark.parametrize("place", [3, 2500], ids=["block", "tail"])
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_broken_row_is_never_turned_into_plausible_numbers(kind, impl, place, device):
    x = inputs(3, 2560, torch.float32, device)
    x[1, 2560 + place] = torch.nan
    y, scale = swiglu(x, quantize=kind, impl=impl)
    value = y.float() * scale[:, None]
    assert not value[1].isfinite().any()
    assert value[[0, 2]].isfinite().all()


def test_bad_calls_say_what_is_allowed(device):
    with pytest.raises(ShapeError, match="gate_up has 7 columns"):
        swiglu(torch.ones(2, 7, device=device))
    with pytest.raises(ShapeError, match="gate_up is int32; allowed: bfloat16, float16, float32"):
        swiglu(torch.ones(2, 8, device=device).int())
    with pytest.raises(ConfigError, match="'int4'; choose one of None, int8, fp8"):
        swiglu(torch.ones(2, 8, device=device), quantize="int4")
    with pytest.raises(ConfigError, match="quantizes up to 16384"):
        swiglu(torch.ones(1, 40000, device=device), quantize="int8", impl="triton")


def test_a_wide_row_is_split_where_that_saves_lanes():
    shape = ModelShape(name="published", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                       token_width=64, softcap=30.0)  # fmt: skip
    plain, whole = kernel.specializations(shape, "bf16", 87)
    assert (plain.name, plain.constants["BLOCK"], plain.grid[1]) == ("swiglu_bf16_10240", 2048, "5")
    assert (whole.constants["BLOCK"], whole.constants["TAIL"]) == (8192, 2048)
    assert {item.name for item in kernel.specializations(shape, "bf16", 89)} == {
        "swiglu_bf16_10240", "swiglu_bf16_10240_int8", "swiglu_bf16_10240_fp8",
    }  # fmt: skip

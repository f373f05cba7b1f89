"""Norm and modulation against fp64, and that a token depends on nothing but itself and its frame's multiplier."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.nn import functional  # noqa: E402

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.norm_modulate import kernel, reference  # noqa: E402
from framert.kernels.norm_modulate.api import norm_modulate  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError, ShapeError  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FRAMES = 4
SHAPE = ModelShape(name="published", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                   token_width=64, softcap=30.0)  # fmt: skip


def inputs(tokens, hidden, dtype, device, multiplier_dtype=torch.float32):
    """Tokens of very different magnitudes in frames of ragged lengths; the multiplier is one column of an arena."""
    generator = torch.Generator().manual_seed(tokens + hidden)
    x = torch.randn(tokens, hidden, generator=generator) + 0.5
    x *= torch.logspace(-3, 2, max(tokens, 1))[:tokens, None]
    arena = 1 + 0.3 * torch.randn(3, 5, hidden, generator=generator)
    frame = torch.randint(FRAMES, (tokens,), generator=generator).sort().values
    return (
        x.to(dtype).to(device),
        arena.to(multiplier_dtype).to(device)[:, 2],
        torch.tensor([2, 0, 1, 2], dtype=torch.int32, device=device),
        frame.int().to(device),
    )


def shifts(arguments):
    """Another column of the multipliers' arena: where the same storage begins anew."""
    multiplier = arguments[1]
    return multiplier.as_strided(multiplier.shape, multiplier.stride(), 0)


def exact(x, multiplier, row, frame, **options):
    """The reference in fp64 on the same inputs; the norm's options as given."""
    return reference.norm_modulate(x.double(), multiplier.double(), row, frame, **options)


@pytest.mark.parametrize("center", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (37, 48), (9, 288), (5, 1000), (2, 3840)], ids=str)
def test_kernel_matches_reference(shape, dtype, center, device):
    arguments = inputs(*shape, dtype, device)
    actual = norm_modulate(*arguments, eps=1e-5, center=center, impl="triton")
    low = norm_modulate(*arguments, eps=1e-5, center=center, impl="reference")
    assert_within_budget(actual, low, exact(*arguments, eps=1e-5, center=center))


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (37, 48), (5, 1000)], ids=str)
def test_shifted_kernel_matches_reference(shape, dtype, kind, device):
    """The modulation of Stable Diffusion 3; quantized, rows are those of the shifted values."""
    arguments = inputs(*shape, dtype, device)
    options = {"eps": 1e-6, "center": True, "shift": shifts(arguments)}
    value = exact(*arguments, **options | {"shift": options["shift"].double()})
    actual, low = (norm_modulate(*arguments, **options, quantize=kind, impl=impl) for impl in ("triton", "reference"))
    if kind is None:
        assert_within_budget(actual, low, value)
        return
    torch.testing.assert_close(actual[1], low[1], rtol=1e-5, atol=0)
    step = actual[1].double()[:, None] * (1 if kind == "int8" else 32)  # of the largest magnitudes
    assert ((actual[0].double() * actual[1].double()[:, None] - value).abs() <= 0.5001 * step + 1e-6).all()


def test_reference_is_torchs_own():
    x, multiplier, row, frame = inputs(9, 48, torch.float32, "cpu")
    per_token = multiplier[row[frame.long()].long()]
    rms = reference.norm_modulate(x, multiplier, row, frame, eps=1e-5)
    torch.testing.assert_close(rms, functional.rms_norm(x, (48,), eps=1e-5) * per_token)
    layer = reference.norm_modulate(x, multiplier, row, frame, eps=1e-6, center=True)
    torch.testing.assert_close(layer, functional.layer_norm(x, (48,), eps=1e-6) * per_token, rtol=1e-5, atol=1e-5)
    shift = torch.randn(multiplier.shape)
    moved = reference.norm_modulate(x, multiplier, row, frame, eps=1e-6, center=True, shift=shift)
    torch.testing.assert_close(moved, layer + shift[row[frame.long()].long()])


@pytest.mark.parametrize("multiplier_dtype", DTYPES, ids=str)
def test_multiplier_may_have_its_own_dtype(multiplier_dtype, device):
    arguments = inputs(6, 96, torch.bfloat16, device, multiplier_dtype)
    actual = norm_modulate(*arguments, eps=1e-5, impl="triton")
    low = norm_modulate(*arguments, eps=1e-5, impl="reference")
    assert_within_budget(actual, low, exact(*arguments, eps=1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (37, 48), (5, 1000), (2, 3840)], ids=str)
def test_quantized_is_within_half_a_step_of_fp64(shape, kind, dtype, device):
    arguments = inputs(*shape, dtype, device)
    y, scale = norm_modulate(*arguments, eps=1e-5, quantize=kind, impl="triton")
    value = exact(*arguments, eps=1e-5)
    assert y.dtype == (torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    assert (y.shape, scale.shape, scale.dtype) == (shape, shape[:1], torch.float32)
    torch.testing.assert_close(
        scale.double(), value.abs().amax(1) / (127 if kind == "int8" else 448), rtol=2e-6, atol=0
    )
    grid = (value / scale.double()[:, None]).abs()
    # int8 has steps of 1; fp8 of an eighth of the value's power of two, at least 2**-9
    step = torch.ones_like(grid) if kind == "int8" else torch.exp2(grid.clamp(min=2**-6).log2().floor() - 3)
    assert ((y.double() - value / scale.double()[:, None]).abs() <= 0.5 * step + 4e-6 * grid.abs() + 1e-6).all()


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_a_token_does_not_depend_on_its_pack(kind, device):
    x, multiplier, row, frame = inputs(19, 48, torch.bfloat16, device)
    whole = norm_modulate(x, multiplier, row, frame, eps=1e-5, quantize=kind, impl="triton")
    part = norm_modulate(x[5:12], multiplier, row, frame[5:12], eps=1e-5, quantize=kind, impl="triton")
    pairs = [(whole, part)] if kind is None else zip(whole, part, strict=True)
    for all_tokens, some in pairs:
        assert torch.equal(all_tokens[5:12].view(torch.uint8), some.view(torch.uint8))


@pytest.mark.parametrize("kind", [None, "int8"])
def test_all_is_written_and_nothing_else(kind, device):
    x, multiplier, row, frame = inputs(11, 48, torch.float32, device)
    y = (
        torch.full((13, 48), 99, dtype=torch.int8, device=device)
        if kind
        else torch.full_like(x.new_empty(13, 48), torch.nan)
    )
    scale = torch.full((13,), torch.nan, device=device) if kind else None
    inner = None if scale is None else scale[1:12]
    kernel.launch(x, multiplier, row, frame, y[1:12], inner, eps=1e-5, center=False, quantize=kind)
    expected = norm_modulate(x, multiplier, row, frame, eps=1e-5, quantize=kind, impl="reference")
    if scale is None:
        torch.testing.assert_close(y[1:12], expected)
        assert y[[0, 12]].isnan().all()
    else:
        assert (y[1:12].int() - expected[0].int()).abs().max() <= 1
        assert (y[[0, 12]] == 99).all()
        assert scale[[0, 12]].isnan().all()
        torch.testing.assert_close(scale[1:12], expected[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, of 0 * infinity: as meant
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_of_zeros_and_broken_rows(kind, impl, device):
    """Zeros stay zeros; a row with NaN or infinity is never turned into plausible numbers; its neighbours are fine."""
    x, multiplier, row, frame = inputs(5, 48, torch.float32, device)
    x[1], x[2, 7], x[3, 7] = 0, torch.nan, torch.inf
    frame[4] = 1  # alone with row 0, whose multiplier is broken
    frame[:4] = 0
    multiplier[0, 5] = torch.nan
    y, scale = norm_modulate(x, multiplier, row, frame, eps=1e-5, quantize=kind, impl=impl)
    value = y.float() * scale[:, None]
    assert not value[1].any()
    assert not value[2:].isfinite().any()
    assert value[0].isfinite().all()


def test_bad_calls_say_what_is_allowed(device):
    x, multiplier, row, frame = inputs(4, 48, torch.float32, device)
    with pytest.raises(ShapeError, match=r"multiplier has shape \(3, 32\); expected \(any, 48\)"):
        norm_modulate(x, multiplier[:, :32], row, frame, eps=1e-5)
    with pytest.raises(ShapeError, match="frame is int64; allowed: int32"):
        norm_modulate(x, multiplier, row, frame.long(), eps=1e-5)
    with pytest.raises(ShapeError, match="x is float64; allowed: bfloat16, float16, float32"):
        norm_modulate(x.double(), multiplier, row, frame, eps=1e-5)
    with pytest.raises(ShapeError, match="must be contiguous"):
        norm_modulate(x.T.contiguous().T, multiplier, row, frame, eps=1e-5)
    with pytest.raises(ShapeError, match="shift is bfloat16; allowed: float32"):
        norm_modulate(x, multiplier, row, frame, eps=1e-5, shift=multiplier.bfloat16())
    with pytest.raises(ShapeError, match="rows of shift are 48 values apart and those of multiplier 240"):
        norm_modulate(x, multiplier, row, frame, eps=1e-5, shift=multiplier.contiguous())
    with pytest.raises(ConfigError, match="'int4'; choose one of None, int8, fp8"):
        norm_modulate(x, multiplier, row, frame, eps=1e-5, quantize="int4")
    with pytest.raises(BackendError, match="unknown impl 'cuda'"):
        norm_modulate(x, multiplier, row, frame, eps=1e-5, impl="cuda")
    wide = torch.ones(1, 20000, device=device)
    with pytest.raises(ConfigError, match="holds up to 16384"):
        norm_modulate(wide, wide, row[:1] * 0, frame[:1] * 0, eps=1e-5, impl="triton")


def test_specializations_are_named_apart_and_float8_is_left_to_devices_that_have_it():
    old, new = ({item.name for item in kernel.specializations(SHAPE, "bf16", capability)} for capability in (87, 89))
    assert old == {f"norm_modulate_bf16_3840{suffix}" for suffix in ("", "_center", "_int8")}
    assert new - old == {"norm_modulate_bf16_3840_fp8"}

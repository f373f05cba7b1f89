"""Gated residual against fp64, alone and with the norm that follows, which must equal the two kernels in turn."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.nn import functional  # noqa: E402

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.gated_residual import kernel, reference  # noqa: E402
from framert.kernels.gated_residual.api import gated_residual  # noqa: E402
from framert.kernels.norm_modulate.api import norm_modulate  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.runtime.errors import ConfigError, ShapeError  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(0, 48), (1, 48), (37, 48), (9, 288), (5, 1000), (2, 3840)]
FRAMES = 4


def inputs(tokens, hidden, dtype, device, stream=None):
    """Residual stream (of dtype ``stream``), branch, an arena's two columns, and the frames' tables."""
    generator = torch.Generator().manual_seed(tokens + hidden)
    x, y = torch.randn(2, tokens, hidden, generator=generator)
    y *= torch.logspace(-3, 2, max(tokens, 1))[:tokens, None]  # rows where eps matters, and rows where it does not
    arena = (0.5 + 0.3 * torch.randn(3, 5, hidden, generator=generator)).to(device)
    frame = torch.randint(FRAMES, (tokens,), generator=generator).sort().values
    return (
        (x.to(stream or dtype).to(device), y.to(dtype).to(device), arena[:, 1]),
        (torch.tensor([2, 0, 1, 2], dtype=torch.int32, device=device), frame.int().to(device)),
        arena[:, 3],
    )


def exact(floats, tables, **options):
    """The reference in fp64 on the same inputs."""
    options = {name: value.double() if torch.is_tensor(value) else value for name, value in options.items()}
    return reference.gated_residual(*(tensor.double() for tensor in floats), *tables, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_matches_reference(shape, dtype, device):
    floats, tables, _ = inputs(*shape, dtype, device)
    actual, low = (gated_residual(*floats, *tables, eps=1e-5, impl=impl) for impl in ("triton", "reference"))
    assert_within_budget(actual, low, exact(floats, tables, eps=1e-5))


@pytest.mark.parametrize("stream", [None, torch.float32], ids=["same", "fp32-stream"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (37, 48), (5, 1000)], ids=str)
def test_plain_gate_and_shifted_norm_match_reference(shape, dtype, stream, device):
    """The branches of Stable Diffusion 3: no norm behind them, and a LayerNorm with a shift before the next."""
    floats, tables, following = inputs(*shape, dtype, device, stream)
    plain = [gated_residual(*floats, *tables, eps=None, impl=impl) for impl in ("triton", "reference")]
    assert_within_budget(*plain, exact(floats, tables, eps=None))
    shift = following.as_strided(following.shape, following.stride(), 0)
    options = {"eps": None, "next_multiplier": following, "next_eps": 1e-6, "next_center": True, "next_shift": shift}
    actual, low = (gated_residual(*floats, *tables, **options, impl=impl) for impl in ("triton", "reference"))
    assert (actual[0].dtype, actual[1].dtype) == (stream or dtype, dtype)
    for one, other, value in zip(actual, low, exact(floats, tables, **options), strict=True):
        assert_within_budget(one, other, value)
    assert torch.equal(actual[0], plain[0])


def test_reference_is_torchs_own():
    (x, y, multiplier), (row, frame), _ = inputs(9, 48, torch.float32, "cpu")
    expected = x + functional.rms_norm(y, (48,), eps=1e-5) * multiplier[row[frame.long()].long()]
    torch.testing.assert_close(reference.gated_residual(x, y, multiplier, row, frame, eps=1e-5), expected)
    gate = multiplier[row[frame.long()].long()]
    plain, normed = reference.gated_residual(
        x, y, multiplier, row, frame, eps=None, next_multiplier=multiplier, next_eps=1e-6, next_center=True,
        next_shift=multiplier,
    )  # fmt: skip
    torch.testing.assert_close(plain, x + y * gate)
    torch.testing.assert_close(normed, functional.layer_norm(plain, (48,), eps=1e-6) * gate + gate)


@pytest.mark.parametrize("center", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("stream", [None, torch.float32], ids=["same", "fp32-stream"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_and_next_norm_match_reference(shape, dtype, stream, center, device):
    floats, tables, following = inputs(*shape, dtype, device, stream)
    options = {"eps": 1e-5, "next_multiplier": following, "next_eps": 1e-6, "next_center": center}
    actual, low = (gated_residual(*floats, *tables, **options, impl=impl) for impl in ("triton", "reference"))
    assert (actual[0].dtype, actual[1].dtype) == (stream or dtype, dtype)
    for one, plain, value in zip(actual, low, exact(floats, tables, **options), strict=True):
        assert_within_budget(one, plain, value)


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (37, 48), (5, 1000)], ids=str)
@pytest.mark.parametrize("joint", [False, True], ids=["normed", "plain"])
def test_fused_equals_one_after_the_other(joint, shape, dtype, kind, device):
    """Fusing is a choice of speed: the norm reads the rounded sum, and quantizes it as norm_modulate does."""
    (x, y, multiplier), tables, following = inputs(*shape, dtype, device)
    eps, shift = (None, multiplier) if joint else (1e-5, None)
    new, *rest = gated_residual(
        x, y, multiplier, *tables, eps=eps, next_multiplier=following, next_eps=1e-6, next_center=joint,
        next_shift=shift, quantize=kind, impl="triton",
    )  # fmt: skip
    expected = gated_residual(x, y, multiplier, *tables, eps=eps, impl="triton")
    after = norm_modulate(
        expected, following, *tables, eps=1e-6, center=joint, shift=shift, quantize=kind, impl="triton"
    )
    actual = (new, *rest)
    separate = (expected, after) if kind is None else (expected, *after)
    for one, other in zip(actual, separate, strict=True):
        if device == "cpu":
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        else:  # the two are compiled apart, and may add in another order: neighbours in the format
            step = {torch.int8: 1.0, torch.float8_e4m3fn: 2**-9}.get(one.dtype, 1e-3)
            torch.testing.assert_close(one.float(), other.float(), rtol=0.15 if kind == "fp8" else 0.02, atol=step)


def test_next_eps_is_eps_unless_given(device):
    floats, tables, following = inputs(5, 48, torch.float32, device)
    for impl in ("triton", "reference"):
        default = gated_residual(*floats, *tables, eps=0.1, next_multiplier=following, impl=impl)
        same = gated_residual(*floats, *tables, eps=0.1, next_multiplier=following, next_eps=0.1, impl=impl)
        assert all(torch.equal(one, other) for one, other in zip(default, same, strict=True))


def test_a_token_does_not_depend_on_its_pack(device):
    (x, y, multiplier), (row, frame), following = inputs(19, 48, torch.bfloat16, device)
    options = {"eps": 1e-5, "next_multiplier": following, "quantize": "int8", "impl": "triton"}
    whole = gated_residual(x, y, multiplier, row, frame, **options)
    part = gated_residual(x[5:12], y[5:12], multiplier, row, frame[5:12], **options)
    for all_tokens, some in zip(whole, part, strict=True):
        assert torch.equal(all_tokens[5:12], some)


def test_all_is_written_and_nothing_else_and_inputs_stay(device):
    (x, y, multiplier), tables, following = inputs(11, 48, torch.float32, device)
    before = x.clone(), y.clone()
    new, modulated = torch.full((2, 13, 48), torch.nan, device=device)
    kernel.launch(
        x, y, multiplier, following, *tables, new[1:12], modulated[1:12], None,
        eps=1e-5, next_eps=1e-5, next_center=False, quantize=None,
    )  # fmt: skip
    expected = gated_residual(x, y, multiplier, *tables, eps=1e-5, next_multiplier=following, impl="reference")
    for actual, value in zip((new, modulated), expected, strict=True):
        torch.testing.assert_close(actual[1:12], value)
        assert actual[[0, 12]].isnan().all()
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_bad_calls_say_what_is_allowed(device):
    (x, y, multiplier), tables, following = inputs(4, 48, torch.float32, device)
    with pytest.raises(ShapeError, match=r"y has shape \(3, 48\); expected \(4, 48\)"):
        gated_residual(x, y[:3], multiplier, *tables, eps=1e-5)
    with pytest.raises(ShapeError, match="next_multiplier is bfloat16; allowed: float32"):
        gated_residual(x, y, multiplier, *tables, eps=1e-5, next_multiplier=following.bfloat16())
    with pytest.raises(ConfigError, match="give next_multiplier too"):
        gated_residual(x, y, multiplier, *tables, eps=1e-5, quantize="int8")
    with pytest.raises(ConfigError, match="give next_multiplier too"):
        gated_residual(x, y, multiplier, *tables, eps=1e-5, next_shift=following)
    with pytest.raises(ConfigError, match="the norm after the sum needs one; give next_eps"):
        gated_residual(x, y, multiplier, *tables, eps=None, next_multiplier=following)
    with pytest.raises(ShapeError, match="rows of next_shift are 48 values apart"):
        gated_residual(x, y, multiplier, *tables, eps=1e-5, next_multiplier=following, next_shift=x.new_zeros(3, 48))
    with pytest.raises(ConfigError, match="give next_multiplier too"):
        gated_residual(x, y, multiplier, *tables, eps=1e-5, next_center=True)


def test_specializations_are_named_apart():
    shape = ModelShape(name="published", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                       token_width=64, softcap=30.0)  # fmt: skip
    old, new = ({item.name for item in kernel.specializations(shape, "bf16", capability)} for capability in (87, 90))
    assert old == {f"gated_residual_bf16_3840{suffix}" for suffix in ("", "_norm", "_center", "_norm_int8")}
    assert new - old == {"gated_residual_bf16_3840_norm_fp8"}

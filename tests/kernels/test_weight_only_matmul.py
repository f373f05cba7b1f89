"""Four-bit weights: what packing keeps, and products with them against fp64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.weight_only_matmul import kernel, reference  # noqa: E402
from framert.kernels.weight_only_matmul.api import pack_int4, weight_only_matmul  # noqa: E402
from framert.kernels.weight_only_matmul.packing import unpack_int4  # noqa: E402
from framert.runtime.errors import ConfigError, ShapeError  # noqa: E402

SHAPES = [(1, 16, 128), (5, 24, 64), (64, 64, 256), (65, 130, 288), (130, 40, 100), (0, 16, 64)]


def operands(m, n, k, group, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator) * torch.logspace(-1, 1, m)[:, None]
    weight = torch.randn(n, k, generator=generator) / k**0.5
    packed, scale = pack_int4(weight.to(dtype), group)
    return a.to(dtype).to(device), packed.to(device), scale.to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("k", [64, 128, 288])
def test_packing_rounds_to_the_nearest_of_sixteen_levels(group, k, dtype):
    weight = torch.randn(7, k, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    packed, scale = pack_int4(weight, group)
    groups = -(-k // group)
    assert (packed.shape, packed.dtype) == ((7, groups * group // 2), torch.uint8)
    assert (scale.shape, scale.dtype) == ((7, groups), dtype)
    unpacked = unpack_int4(packed, scale, group)
    assert unpacked.shape == (7, groups * group)
    assert not unpacked[:, k:].any()
    assert not unpacked[3].any()
    step = scale.float().abs().repeat_interleave(group, dim=1)[:, :k]
    error = (unpacked[:, :k] - weight.float()).abs()
    # half a step; a whole one where the level would be +8, at the far end from the largest
    beyond = (weight.float() / torch.where(step > 0, step, 1)).abs() > 7.5
    assert (error <= torch.where(beyond, 1.01, 0.5001) * step).all()
    assert (error[~beyond] <= 0.5001 * step[~beyond]).all()


def test_packing_keeps_weights_that_fit(device):
    """Every nibble at every place of a group, so that a swap of halves or of bytes would show."""
    levels = torch.randint(-8, 8, (5, 256), generator=torch.Generator().manual_seed(1))
    levels[:, ::64] = -8
    weight = levels.float() * torch.tensor([1.0, 0.5, 2.0, -0.25, 4.0])[:, None]
    packed, scale = pack_int4(weight, 64)
    assert torch.equal(unpack_int4(packed, scale, 64), weight)
    eye = torch.eye(256, dtype=torch.float16, device=device)
    product = weight_only_matmul(eye, packed.to(device), scale.to(device), group=64, impl="triton")
    assert torch.equal(product.T.float().cpu(), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_within_budget_of_fp64(shape, group, dtype, device):
    a, packed, scale = operands(*shape, group, dtype, device)
    for out_dtype in (dtype, torch.float32):
        actual = weight_only_matmul(a, packed, scale, group=group, out_dtype=out_dtype, impl="triton")
        exact = reference.weight_only_matmul(a.double(), packed, scale, group=group, out_dtype=torch.float64)
        low = reference.weight_only_matmul(a, packed, scale, group=group, out_dtype=out_dtype)
        assert_within_budget(actual, low, exact)


@pytest.mark.parametrize("m", [20, 100])
def test_a_row_does_not_depend_on_the_others(m, device):
    a, packed, scale = operands(m, 40, 288, 64, torch.float16, device)
    options = {"group": 64, "out_dtype": torch.float32, "impl": "triton"}
    whole = weight_only_matmul(a, packed, scale, **options)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(3)).to(device)
    shuffled = weight_only_matmul(a[order], packed, scale, **options)
    if device == "cuda":
        assert torch.equal(shuffled, whole[order])
    else:  # the interpreter's products are BLAS's, whose order may follow the place of a row
        torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=1e-5)
    loud = a.clone()
    loud[1:] = 60000
    assert torch.equal(weight_only_matmul(loud, packed, scale, **options)[0], whole[0])


def test_every_element_is_written_and_nothing_beside(device):
    a, packed, scale = operands(70, 50, 64, 64, torch.bfloat16, device)
    space = torch.full((72, 50), float("nan"), dtype=torch.bfloat16, device=device)
    kernel.weight_only_matmul(a, packed, scale, space[1:71], 64)
    assert space[1:71].isfinite().all()
    assert space[[0, 71]].isnan().all()


def test_auto_is_the_reference_on_the_processor():
    a, packed, scale = operands(5, 16, 128, 128, torch.bfloat16, "cpu")
    expected = weight_only_matmul(a, packed, scale, group=128, impl="reference")
    assert torch.equal(weight_only_matmul(a, packed, scale, group=128), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"group": 32}, ConfigError, "group is 32; choose one of 64, 128"),
        ({"out_dtype": torch.int8}, ConfigError, "out_dtype is torch.int8; choose one of torch.bfloat16"),
        ({"a": torch.ones(2, 128, dtype=torch.int8)}, ShapeError, r"a is \(2, 128\) torch.int8"),
        (
            {"a": torch.ones(2, 192).half()},
            ShapeError,
            r"packed is \(16, 64\).*k = 192 in groups of 128 needs \(n, 128",
        ),
        ({"packed": torch.ones(16, 64)}, ShapeError, r"packed is \(16, 64\) torch.float32"),
        ({"scale": torch.ones(16, 2)}, ShapeError, r"scale is \(16, 2\) torch.float32; give \(16, 1\)"),
        ({"a": torch.ones(128, 2).half().T}, ShapeError, "a must be contiguous"),
        ({"a": torch.ones(2, 128), "impl": "triton"}, ShapeError, "a is torch.float32; triton takes bfloat16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_calls_say_what_is_allowed(change, error, message, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    arguments = {
        "a": torch.ones(2, 128).half(),
        "packed": torch.ones(16, 64, dtype=torch.uint8),
        "scale": torch.ones(16, 1).half(),
        "group": 128,
    }
    with pytest.raises(error, match=message):
        weight_only_matmul(**(arguments | change))


@pytest.mark.parametrize(
    ("weight", "group", "error", "message"),
    [
        (torch.ones(2, 64), 32, ConfigError, "group is 32; choose one of 64, 128"),
        (torch.ones(64), 64, ShapeError, r"weight is \(64,\)"),
        (torch.ones(2, 64).int(), 64, ShapeError, "float dtype"),
        (torch.ones(0, 64), 64, ShapeError, r"weight is \(0, 64\)"),
    ],
)
def test_bad_weights_are_refused(weight, group, error, message):
    with pytest.raises(error, match=message):
        pack_int4(weight, group)

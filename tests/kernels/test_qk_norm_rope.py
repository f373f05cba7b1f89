"""Norm and rotation of queries and keys against fp64 and against the model's own, in place and into buffers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.qk_norm_rope import kernel, reference  # noqa: E402
from framert.kernels.qk_norm_rope.api import qk_norm_rope  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.runtime.errors import ConfigError, ShapeError  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
POSITIONS = 40


def inputs(tokens, heads, kv_heads, head_dim, dtype, device, weights=None):
    """A projection with a mean and tokens of different magnitudes, norms away from identity, any positions."""
    generator = torch.Generator().manual_seed(tokens + heads + head_dim)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=generator) + 0.3
    qkv *= torch.logspace(-3, 2, max(tokens, 1))[:tokens, None]
    norms = [
        part.to(weights or dtype).to(device)
        for count in (heads, kv_heads)
        for part in torch.randn(2, count * head_dim, generator=generator)
    ]
    position = torch.randint(POSITIONS, (tokens, 3), generator=generator).int().to(device)
    angle = torch.arange(POSITIONS)[:, None] * 10000.0 ** (-6 / head_dim * torch.arange(head_dim // 6))
    return qkv.to(dtype).to(device), *norms, position, angle.cos().to(device), angle.sin().to(device)


def exact(arguments, **options):
    """The reference in fp64 on the same inputs."""
    wide = [tensor if tensor.dtype == torch.int32 else tensor.double() for tensor in arguments]
    return reference.qk_norm_rope(*wide, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [48, 72, 96, 120, 6])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_kernel_matches_reference(tokens, head_dim, heads, dtype, device):
    arguments = inputs(tokens, *heads, head_dim, dtype, device)
    options = {"heads": heads[0], "kv_heads": heads[1], "eps": 1e-5}
    actual, low = (qk_norm_rope(*arguments, **options, impl=impl) for impl in ("triton", "reference"))
    assert actual[0].shape == (tokens, heads[0], head_dim)
    assert actual[1].shape == (tokens, heads[1], head_dim)
    for one, plain, value in zip(actual, low, exact(arguments, **options), strict=True):
        assert_within_budget(one, plain, value)


@pytest.mark.parametrize("weights", DTYPES, ids=str)
def test_published_width_and_weights_of_their_own_dtype(weights, device):
    arguments = inputs(3, 32, 8, 120, torch.bfloat16, device, weights)
    options = {"heads": 32, "kv_heads": 8, "eps": 1e-5}
    actual, low = (qk_norm_rope(*arguments, **options, impl=impl) for impl in ("triton", "reference"))
    for one, plain, value in zip(actual, low, exact(arguments, **options), strict=True):
        assert_within_budget(one, plain, value)


def test_reference_is_the_models_own(device):
    """The same numbers as the exported model's attention and its rotary table."""
    from framert.export.models.nextdit import NextDiT, NextDiTConfig

    config = NextDiTConfig(
        hidden_size=96, depth=1, num_heads=4, num_kv_heads=2, caption_channels=32, in_channels=4, patch=2,
        multiple_of=32, ffn_dim_multiplier=None, norm_eps=1e-5,
        rotary_max_length=POSITIONS, rotary_max_length_t=POSITIONS,
    )  # fmt: skip
    torch.manual_seed(0)
    model = NextDiT(config).double()
    attention = model.blocks()[0].attention
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x, position = torch.randn(9, 96).double(), torch.randint(POSITIONS, (9, 3)).int()
    with torch.no_grad():
        query, key, value = attention.project(x, *model.rotary(position))
        qkv = torch.cat([layer(x) for layer in (attention.wq, attention.wk, attention.wv)], 1)
        table = model.rotary(torch.arange(POSITIONS).repeat(3, 1).T)  # every axis at the same place
        actual = reference.qk_norm_rope(
            qkv, attention.q_norm.weight, attention.q_norm.bias, attention.k_norm.weight, attention.k_norm.bias,
            position, *(angle[:, : config.head_dim // 6] for angle in table), heads=4, kv_heads=2, eps=1e-5,
        )  # fmt: skip
    torch.testing.assert_close(actual[0], query, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(actual[1], key, rtol=1e-10, atol=1e-12)
    assert torch.equal(qkv[:, 6 * 24 :].view(9, 2, 24), value)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_in_place_leaves_the_value_alone(impl, device):
    qkv, *rest = inputs(9, 4, 2, 24, torch.bfloat16, device)
    options = {"heads": 4, "kv_heads": 2, "eps": 1e-5, "impl": impl}
    query, key = qk_norm_rope(qkv, *rest, **options)
    value = qkv[:, 144:].clone()
    heads = qkv.view(9, 8, 24)
    results = qk_norm_rope(qkv, *rest, **options, q_out=heads[:, :4], k_out=heads[:, 4:6])
    assert results[0].data_ptr() == qkv.data_ptr()
    assert torch.equal(heads[:, :4], query)
    assert torch.equal(heads[:, 4:6], key)
    assert torch.equal(qkv[:, 144:], value)


def test_all_is_written_and_nothing_else(device):
    arguments = inputs(5, 3, 2, 30, torch.float32, device)
    before = arguments[0].clone()
    space = torch.full((7, 7, 30), torch.nan, device=device)  # heads 1 to 3 and 5 to 6 of tokens 1 to 5
    query, key = space[1:6, 1:4], space[1:6, 5:7]
    qk_norm_rope(*arguments, heads=3, kv_heads=2, eps=1e-5, impl="triton", q_out=query, k_out=key)
    expected = qk_norm_rope(*arguments, heads=3, kv_heads=2, eps=1e-5, impl="reference")
    for actual, value in zip((query, key), expected, strict=True):
        torch.testing.assert_close(actual, value)
        actual.fill_(torch.nan)
    assert space.isnan().all()
    assert torch.equal(arguments[0], before)


def test_a_token_does_not_depend_on_its_pack(device):
    qkv, *norms, position, cosine, sine = inputs(19, 4, 2, 48, torch.bfloat16, device)
    options = {"heads": 4, "kv_heads": 2, "eps": 1e-5, "impl": "triton"}
    whole = qk_norm_rope(qkv, *norms, position, cosine, sine, **options)
    part = qk_norm_rope(qkv[5:12], *norms, position[5:12], cosine, sine, **options)
    for all_tokens, some in zip(whole, part, strict=True):
        assert torch.equal(all_tokens[5:12], some)


def test_rotation_by_the_position_of_each_axis(device):
    """A query and a key at the same distance on an axis have the same product wherever they are."""
    qkv, *norms, position, cosine, sine = inputs(2, 1, 1, 48, torch.float32, device)
    qkv[1] = qkv[0]
    products = []
    for shift in ((0, 0, 0), (3, 0, 0), (0, 5, 0), (0, 0, 7)):
        position[:] = torch.tensor([[1, 2, 3], [4, 9, 5]])
        position += torch.tensor(shift, dtype=torch.int32, device=device)
        query, key = qk_norm_rope(qkv, *norms, position, cosine, sine, heads=1, kv_heads=1, eps=1e-5, impl="triton")
        products.append((query[0] * key[1]).sum())
    torch.testing.assert_close(torch.stack(products), products[0].expand(4), rtol=1e-4, atol=1e-4)


def test_bad_calls_say_what_is_allowed(device):
    qkv, *rest, position, cosine, sine = inputs(4, 4, 2, 24, torch.float32, device)
    options = {"heads": 4, "kv_heads": 2, "eps": 1e-5}
    with pytest.raises(ConfigError, match="192 columns, which 5 heads"):
        qk_norm_rope(qkv, *rest, position, cosine, sine, heads=5, kv_heads=2, eps=1e-5)
    with pytest.raises(ShapeError, match="head_dim is 32"):
        qk_norm_rope(qkv, *rest, position, cosine, sine, heads=4, kv_heads=1, eps=1e-5)
    with pytest.raises(ShapeError, match=r"position has shape \(4, 2\); expected \(4, 3\)"):
        qk_norm_rope(qkv, *rest, position[:, :2].contiguous(), cosine, sine, **options)
    with pytest.raises(ShapeError, match=r"cosine has shape \(40, 5\); expected \(any, 4\)"):
        qk_norm_rope(qkv, *rest, position, cosine.new_ones(40, 5), sine, **options)
    with pytest.raises(ShapeError, match=r"q_out has shape \(4, 96\); expected \(4, 4, 24\)"):
        qk_norm_rope(qkv, *rest, position, cosine, sine, **options, q_out=qkv[:, :96])
    wide = inputs(1, 150, 1, 120, torch.float32, device)
    with pytest.raises(ConfigError, match="holds up to 16384"):
        qk_norm_rope(*wide, heads=150, kv_heads=1, eps=1e-5, impl="triton")


def test_specializations_need_a_head_dim_that_three_axes_divide():
    shape = ModelShape(name="published", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                       token_width=64, softcap=30.0)  # fmt: skip
    assert [item.name for item in kernel.specializations(shape, "bf16", 87)] == ["qk_norm_rope_bf16_32_8_120"]
    other = ModelShape(name="joint", hidden=1536, depth=24, heads=24, kv_heads=24, head_dim=64, ffn=6144,
                       token_width=64, softcap=0.0)  # fmt: skip
    assert kernel.specializations(other, "bf16", 87) == []

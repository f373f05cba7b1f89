"""Guidance and solver rows against fp64, in place, with every row of the solver table."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.kernels.update import kernel, reference  # noqa: E402
from framert.kernels.update.api import update  # noqa: E402
from framert.runtime.errors import ConfigError, ShapeError  # noqa: E402

IMPLS = ("triton", "reference")


def inputs(slots, width, branches, dtype, device):
    """Slots fed by any tokens, weights of classifier-free guidance size, rows as solvers have them, some 0."""
    generator = torch.Generator().manual_seed(slots + width + branches)
    tokens = max(1, slots * branches)
    state = torch.randn(2, slots, width, generator=generator)
    weight = 4 * torch.randn(slots, branches, generator=generator)
    weight[:, 1:] *= torch.rand(slots, branches - 1, generator=generator) < 0.7
    rows = torch.randn(slots, 6, generator=generator)
    rows[::3] = torch.tensor([1.0, 0, 0, 0, 0, 0])  # a condition frame's
    return (
        torch.randn(tokens, width, generator=generator).to(dtype).to(device),
        *state.to(device),
        torch.randint(tokens, (slots, branches), generator=generator).int().to(device),
        weight.to(device),
        rows.to(device),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("shape", [(0, 64), (1, 64), (37, 64), (5, 12), (3, 1100)], ids=str)
def test_kernel_matches_reference(shape, branches, dtype, device):
    output, latents, history, index, weight, rows = inputs(*shape, branches, dtype, device)
    exact = reference.update(output, *(t.double() for t in (latents, history)), index, weight.double(), rows.double())
    results = []
    for impl in IMPLS:
        state = latents.clone(), history.clone()
        velocity = update(output, *state, index, weight, rows, impl=impl)
        results.append((*state, velocity))
    for actual, low, value in zip(*results, exact, strict=True):
        assert_within_budget(actual, low, value)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_entry_of_weight_0_is_not_read(impl, device):
    output, latents, history, index, weight, rows = inputs(9, 64, 3, torch.bfloat16, device)
    index[:] = torch.arange(9)[:, None]
    expected = update(output, latents.clone(), history.clone(), index, weight, rows, impl=impl)
    broken = torch.cat((output, torch.full_like(output[:1], torch.nan)))
    index[weight == 0] = len(output)
    assert torch.equal(update(broken, latents, history, index, weight, rows, impl=impl), expected)
    assert latents.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_broken_token_reaches_only_the_slots_it_feeds(impl, device):
    output, latents, history, index, weight, rows = inputs(6, 64, 2, torch.float32, device)
    index[:] = torch.arange(6)[:, None]
    rows[:] = 1
    output[2] = torch.nan
    velocity = update(output, latents, history, index, weight, rows, impl=impl)
    for tensor in (velocity, latents, history):
        assert tensor[2].isnan().all()
        assert tensor[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_condition_frame_keeps_its_latents(impl, device):
    output, latents, history, index, weight, rows = inputs(7, 64, 2, torch.bfloat16, device)
    rows[:] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    before = latents.clone()
    update(output, latents, history, index, weight, rows, impl=impl)
    assert torch.equal(latents, before)
    assert not history.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_slot_does_not_depend_on_its_pack(impl, device):
    output, latents, history, index, weight, rows = inputs(19, 64, 2, torch.bfloat16, device)
    part = [tensor[5:12].clone() for tensor in (latents, history, index, weight, rows)]
    some = update(output, *part, impl=impl)
    assert torch.equal(update(output, latents, history, index, weight, rows, impl=impl)[5:12], some)
    assert torch.equal(latents[5:12], part[0])
    assert torch.equal(history[5:12], part[1])


def test_all_is_written_and_nothing_else(device):
    output, latents, history, index, weight, rows = inputs(11, 48, 2, torch.float32, device)
    expected = reference.update(output, latents, history, index, weight, rows)
    space = torch.full((3, 13, 48), torch.nan, device=device)
    space[0, 1:12], space[1, 1:12] = latents, history
    returned = update(
        output, space[0, 1:12], space[1, 1:12], index, weight, rows, velocity=space[2, 1:12], impl="triton"
    )
    assert returned.data_ptr() == space[2, 1:12].data_ptr()
    for actual, value in zip(space, expected, strict=True):
        torch.testing.assert_close(actual[1:12], value)
        assert actual[[0, 12]].isnan().all()


def test_bad_calls_say_what_is_allowed(device):
    output, latents, history, index, weight, rows = inputs(4, 48, 2, torch.float32, device)
    with pytest.raises(ShapeError, match="latents is bfloat16; allowed: float32"):
        update(output, latents.bfloat16(), history, index, weight, rows)
    with pytest.raises(ShapeError, match=r"guidance_weight has shape \(4, 1\); expected \(4, 2\)"):
        update(output, latents, history, index, weight[:, :1].contiguous(), rows)
    with pytest.raises(ShapeError, match=r"update has shape \(4, 5\); expected \(4, 6\)"):
        update(output, latents, history, index, weight, rows[:, :5].contiguous())
    with pytest.raises(ConfigError, match="four different buffers"):
        update(output, latents, history, index, weight, rows, velocity=history)


def test_specialization_is_of_the_model():
    shape = ModelShape(name="published", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                       token_width=64, softcap=30.0)  # fmt: skip
    (only,) = kernel.specializations(shape, "bf16", 87)
    assert (only.name, only.constants["WIDTH"], only.constants["BRANCHES"]) == ("update_bf16_64x4", 64, 4)

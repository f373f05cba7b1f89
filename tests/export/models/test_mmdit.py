"""The two-stream transformer: diffusers' own class on random weights, and one sequence alone as in a ragged pack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from framert.export.models.joint_attention import grid_positions, picture_tokens
from framert.export.models.mmdit import MMDiT
from framert.export.models.mmdit_config import MMDiTConfig
from framert.runtime.errors import CheckpointError

diffusers = pytest.importorskip("diffusers")

SHAPE = {
    "sample_size": 16, "patch_size": 2, "in_channels": 16, "num_layers": 3, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": 40, "caption_projection_dim": 64, "pooled_projection_dim": 24,
    "out_channels": 16, "pos_embed_max_size": 12,
}  # fmt: skip
CONFIGS = {
    "sd3": SHAPE,
    "sd3.5-medium": {**SHAPE, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"},
    "univg": {**SHAPE, "in_channels": 33, "qk_norm": "rms_norm"},
}


def models(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, MMDiT]:
    """Return diffusers' model with random weights, norms and gates included, and ours with the same."""
    torch.manual_seed(7)
    theirs = diffusers.SD3Transformer2DModel(**CONFIGS[name]).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = MMDiT(MMDiTConfig.from_checkpoint(theirs.config))
    ours.load_state_dict(theirs.state_dict())  # strict: every name and every shape
    return theirs.to(dtype), ours.to(dtype).eval().requires_grad_(False)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [(16, 16), (24, 10), (2, 6)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_velocity_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    theirs, ours = models(name)
    config, generator = ours.config, torch.Generator().manual_seed(3)
    picture = torch.randn(config.out_channels, *size, generator=generator)
    condition = torch.randn(config.condition_channels, *size, generator=generator)
    text, pooled = torch.randn(9, 40, generator=generator), torch.randn(24, generator=generator)
    for given in (pooled, None):
        exact = theirs(
            torch.cat((picture, condition))[None],
            encoder_hidden_states=text[None],
            pooled_projections=torch.zeros(1, 24) if given is None else given[None],
            timestep=torch.tensor([713.5]),
        ).sample[0]
        found = ours.velocity(picture, 713.5, text, given, condition if config.condition_channels else None)
        assert found.shape == exact.shape
        assert relative(found, exact) <= 1e-5


@dataclass(frozen=True)
class Member:
    """One sequence of a pack: its side in tokens, words, and noise level."""

    size: tuple[int, int]
    words: int
    level: float


RAGGED = (Member((3, 5), 7, 900.0), Member((1, 1), 0, 20.0), Member((6, 2), 1, 444.0), Member((4, 4), 12, 1.0))


def pack(model: MMDiT, members: Sequence[Member]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return the denoiser's inputs for members with one branch each, and what each member alone is made of.

    The arena holds the texts in another order, with rows between them that nobody reads.
    """
    config, generator = model.config, torch.Generator().manual_seed(5)
    lists: dict[str, list[Tensor]] = {}
    own: list[dict[str, Tensor]] = []
    arena = torch.full((40, config.hidden_size), float("nan"))
    tokens = words = 0
    end = len(arena)
    for number, member in enumerate(members):
        count = member.size[0] * member.size[1]
        sides = [config.patch * side for side in member.size]
        given = {
            "picture": torch.randn(config.out_channels, *sides, generator=generator),
            "condition": torch.randn(config.condition_channels, *sides, generator=generator),
            "hidden_states": torch.randn(member.words, config.text_width, generator=generator),
            "pooled": torch.randn(config.pooled_width, generator=generator),
        }
        own.append(given)
        text, modulation = model.condition(given["hidden_states"], torch.tensor([member.level]), given["pooled"])
        end -= member.words + 1
        arena[end : end + member.words] = text
        add = {
            "latents": picture_tokens(given["picture"], config.patch),
            "history": torch.randn(count, config.token_width, generator=generator),
            "conditions": picture_tokens(given["condition"], config.patch),
            "source": tokens + torch.arange(count),
            "condition_source": tokens + torch.arange(count),
            "position": grid_positions(*member.size, config.positions),
            "frame": torch.full((count,), number),
            "row": torch.tensor([number]),
            "modulation": modulation,
            "q_range": torch.tensor([[tokens, count]]),
            "kv_range": torch.tensor([[tokens, count]]),
            "text_source": end + torch.arange(member.words),
            "text_frame": torch.full((member.words,), number),
            "text_range": torch.tensor([[words, member.words]]),
            "guidance_index": (tokens + torch.arange(count)).unsqueeze(1).expand(-1, 2),
            "guidance_weight": torch.tensor([[1.0, 0.0]]).expand(count, -1),
            "update": torch.tensor([[1.0, -0.1, 0.3, 0.5, 0.2, -0.7]]).expand(count, -1),
        }
        for name, value in add.items():
            lists.setdefault(name, []).append(value)
        tokens, words = tokens + count, words + member.words
    floats = {"latents", "history", "conditions", "modulation", "guidance_weight", "update"}
    tables = {name: torch.cat(parts) for name, parts in lists.items()}
    tables = {name: value if name in floats else value.int() for name, value in tables.items()} | {"text": arena}
    if not config.condition_channels:
        del tables["conditions"], tables["condition_source"]
    return tables, own


@pytest.mark.parametrize("name", CONFIGS)
def test_a_ragged_pack_equals_diffusers_one_by_one(name: str) -> None:
    theirs, ours = models(name)
    tables, own = pack(ours, RAGGED)
    latents, history, velocity = ours.denoise(**tables)
    begin = 0
    for member, given in zip(RAGGED, own, strict=True):
        exact = theirs(
            torch.cat((given["picture"], given["condition"]))[None],
            encoder_hidden_states=given["hidden_states"][None],
            pooled_projections=given["pooled"][None],
            timestep=torch.tensor([member.level]),
        ).sample[0]
        count = member.size[0] * member.size[1]
        assert relative(velocity[begin : begin + count], picture_tokens(exact, ours.config.patch)) <= 1e-5
        begin += count
    assert torch.equal(latents, 1.0 * tables["latents"] - 0.1 * velocity + 0.3 * tables["history"])
    assert torch.equal(history, 0.5 * tables["latents"] + 0.2 * velocity - 0.7 * tables["history"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_neighbours_nan_stays_with_it(name: str) -> None:
    _, ours = models(name)
    tables, _ = pack(ours, RAGGED)
    clean = ours.denoise(**tables)[2]
    begin, count = tables["q_range"][2].tolist()
    tables["latents"][begin : begin + count] = float("nan")
    dirty = ours.denoise(**tables)[2]
    assert dirty[begin : begin + count].isnan().all()
    others = torch.cat((dirty[:begin], dirty[begin + count :]))
    assert torch.equal(others, torch.cat((clean[:begin], clean[begin + count :])))


def test_branches_are_summed_with_their_weights() -> None:
    _, ours = models("univg")
    tables, _ = pack(ours, (Member((2, 3), 4, 500.0), Member((2, 3), 2, 500.0)))
    alone = ours.denoise(**tables)[2]
    slots = {"latents", "history", "guidance_index", "guidance_weight", "update"}
    tables |= {name: tables[name][:6] for name in slots}
    tables["source"] = torch.arange(6).repeat(2).int()
    with pytest.raises(AssertionError):  # both branches read the first picture now
        torch.testing.assert_close(ours.denoise(**tables)[2], alone[:6] * 4 - alone[6:] * 3)
    tables["guidance_index"] = torch.stack((torch.arange(6), 6 + torch.arange(6)), dim=1).int()
    tables["guidance_weight"] = torch.tensor([[4.0, -3.0]]).expand(6, -1)
    guided = ours.denoise(**tables)[2]
    parts = []
    for weight in ([1.0, 0.0], [0.0, 1.0]):
        tables["guidance_weight"] = torch.tensor([weight]).expand(6, -1)
        parts.append(ours.denoise(**tables)[2])
    torch.testing.assert_close(guided, 4 * parts[0] - 3 * parts[1])
    torch.testing.assert_close(parts[0], alone[:6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed_max_size": None}, "lacks pos_embed_max_size"),
        ({"caption_projection_dim": 48}, "caption_projection_dim is 48; it must be 64"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'; supported"),
        ({"in_channels": 32}, "in_channels is 32 and out_channels 16; .* 33 in"),
        ({"dual_attention_layers": [3]}, "layers beyond the 3"),
    ],
    ids=["no table", "caption width", "qk_norm", "channels", "dual"],
)
def test_configurations_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        MMDiTConfig.from_checkpoint({**SHAPE, **change})

"""Profiles: which sizes an engine is made for, and which are refused."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from framert.runtime.bundle import GRAPHS
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest, ModelSpec, ScheduleSpec, TensorSpec
from framert.runtime.profiles import MAX_PROFILES, Capacity, logit_bytes, plan_profiles, shapes, to_json

# The published configuration.
MODEL = ModelSpec(
    hidden_size=3840, depth=16, heads=32, kv_heads=8, head_dim=120, softcap=30.0, patch=2, latent_channels=16,
    vae_factor=8, scaling_factor=1.5305, text_width=2048, max_positions=128, max_frames=128,
)  # fmt: skip
SCHEDULE = ScheduleSpec(
    num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)
MANIFEST = Manifest(
    family="onediffusion", native_side=512, model=MODEL, schedule=SCHEDULE, prompt_tokens=300, guidance_branches=4,
    target={"kind": "onnx"}, graphs={}, files={},
)  # fmt: skip
SMALL = replace(MANIFEST, native_side=64, model=replace(MODEL, heads=6, kv_heads=2, head_dim=48, patch=1))


@pytest.mark.parametrize("plugin", [False, True])
@pytest.mark.parametrize("manifest", [MANIFEST, SMALL], ids=["published", "small"])
@pytest.mark.parametrize("capacity", [Capacity(), Capacity(tokens=(64, 100, 300), sequences=2, frames=3, side=64)])
def test_every_profile_is_ordered_and_names_the_same_axes(manifest: Manifest, capacity: Capacity, plugin: bool) -> None:
    table = plan_profiles(manifest, capacity, plugin=plugin)
    assert tuple(table) == GRAPHS
    for graph, profiles in table.items():
        assert 1 <= len(profiles) <= MAX_PROFILES
        for profile in profiles:
            assert profile.keys() == profiles[0].keys()
            for axis, (least, best, most) in profile.items():
                assert 1 <= least <= best <= most, (graph, axis)
    assert ("longest" in table["denoiser"][0]) is not plugin


def test_buckets_follow_the_native_picture_as_far_as_attention_fits() -> None:
    def tokens(manifest: Manifest, **given: Any) -> list[int]:
        table = plan_profiles(manifest, Capacity(**given), plugin=given.pop("plugin", False))
        return [profile["tokens"][2] for profile in table["denoiser"]]

    assert tokens(SMALL) == [128, 256, 1024, 1024]  # one more for many short sequences
    assert tokens(SMALL, sequences=3) == [128, 256, 1024]
    assert tokens(MANIFEST) == [2048, 4096, 4096]  # 16384 do not fit
    assert tokens(MANIFEST, attention_gib=50) == [2048, 4096, 16384, 16384]
    plugin = plan_profiles(MANIFEST, Capacity(), plugin=True)["denoiser"]
    assert [profile["tokens"][2] for profile in plugin] == [2048, 4096, 16384]
    for smaller, larger in pairwise(plugin):
        assert smaller["tokens"][2] < larger["tokens"][2]


def test_logits_of_a_profile() -> None:
    few, many = plan_profiles(MANIFEST, Capacity(tokens=(4096,)), plugin=False)["denoiser"]
    assert (few["sequences"], few["longest"]) == ((1, 2, 3), (1, 2048, 2048))
    assert (many["sequences"], many["longest"]) == ((1, 8, 8), (1, 1024, 1024))
    assert logit_bytes(MODEL, few) == 3 * 32 * 2048 * 2048 * 8
    tiny = plan_profiles(MANIFEST, Capacity(tokens=(64,), sequences=1), plugin=False)["denoiser"][0]
    assert logit_bytes(MODEL, tiny) == 32 * 32 * 300 * 8  # the text is longer than the pictures


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": (8192,)}, "8192 tokens do not fit without a plugin: the logits of 3 sequences of 4096 tokens "
         "take 12 GiB, and 4 GiB are allowed"),
        ({"tokens": (4096,), "sequences": 64}, "the logits of 64 sequences of 1024 tokens"),
        ({"attention_gib": 0.001}, "2048 tokens do not fit without a plugin"),
        ({"tokens": (10, 20, 30, 40, 50, 60), "sequences": 8}, "6 token buckets make 7 profiles, and 6 are allowed"),
        ({"tokens": ()}, "token buckets are (); give at least one"),
        ({"tokens": (512, 256)}, "token buckets are (512, 256); give at least one, each larger than the one before"),
        ({"tokens": (0,)}, "a token bucket is 0; give whole numbers of at least 2"),
        ({"tokens": (64.0,)}, "a token bucket is 64.0"),
        ({"sequences": 0}, "sequences is 0; give a whole number of at least 1"),
        ({"frames": True}, "frames is True"),
        ({"rows": -1}, "rows is -1"),
        ({"text": 0}, "text is 0; give a whole number"),
        ({"text": 299}, "text is 299, less than one prompt's 300 tokens"),
        ({"side": 100}, "side is 100; give a multiple of 16 pixels"),
        ({"side": 4096}, "side is 4096 pixels; this bundle's model ends at 2048"),
        ({"attention_gib": float("nan")}, "attention_gib is nan"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sizes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_profiles(MANIFEST, Capacity(**given), plugin=False)


def test_shapes_of_the_inputs_with_free_axes() -> None:
    inputs = {
        "latents": TensorSpec(dtype="float32", shape=("slots", 64)),
        "text_k": TensorSpec(dtype="float32", shape=(16, "capacity", 8, 120)),
        "fixed": TensorSpec(dtype="int32", shape=(3,)),
    }
    assert shapes(inputs, {"slots": (1, 2, 3), "capacity": (4, 5, 6)}) == {
        "latents": ((1, 64), (2, 64), (3, 64)),
        "text_k": ((16, 4, 8, 120), (16, 5, 8, 120), (16, 6, 8, 120)),
    }


def test_the_table_as_the_bundle_holds_it() -> None:
    table = to_json(plan_profiles(SMALL, Capacity(), plugin=False))
    assert table["text_encoder"] == [{"length": [1, 32, 300]}]
    assert table["vae_decoder"][0]["latent_height"] == [1, 8, 128]
    assert len(table["denoiser"]) == 4

"""Profiles: which sizes an engine is made for, and which are refused."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from framert.runtime.bundle import GRAPHS
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Graph, Manifest, ModelSpec, ScheduleSpec, TensorSpec, TokenizerSpec
from framert.runtime.profiles import MAX_PROFILES, Capacity, logit_bytes, plan_profiles, shapes, to_json

# The published configuration.
MODEL = ModelSpec(
    hidden_size=3840, depth=16, heads=32, kv_heads=8, head_dim=120, softcap=30.0, patch=2, latent_channels=16,
    vae_factor=8, scaling_factor=1.5305, text_width=2048, max_positions=128, max_frames=128,
)  # fmt: skip
SCHEDULE = ScheduleSpec(
    num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)


def graph(inputs: dict[str, tuple[int | str, ...]], **outputs: tuple[int | str, ...]) -> Graph:
    specs = [{name: TensorSpec(dtype="", shape=shape) for name, shape in side.items()} for side in (inputs, outputs)]
    return Graph(files=(), precision="float32", inputs=specs[0], outputs=specs[1])


AUTOENCODER = {
    "vae_encoder": graph({"pixels": (1, 3, "height", "width")}),
    "vae_decoder": graph({"latents": (1, 16, "latent_height", "latent_width")}),
}
ONE_STREAM = {
    "text_encoder": graph({"input_ids": (1, "length")}, hidden_states=("length", 2048)),
    "vae_encoder": AUTOENCODER["vae_encoder"],
    "conditioner": graph({"hidden_states": ("length", 2048), "noise_level": ("rows",)}),
    "denoiser": graph({"text_k": (16, "capacity", 8, 120), "text_range": ("sequences", 2)}),
    "vae_decoder": AUTOENCODER["vae_decoder"],
}
MANIFEST = Manifest(
    family="onediffusion", native_side=512, model=MODEL, schedule=SCHEDULE, prompt_tokens=300, guidance_branches=4,
    target={"kind": "onnx"}, graphs=ONE_STREAM, files={},
)  # fmt: skip
# Stable Diffusion 3 as it is published, and UniVG on it.
TWO_STREAMS = replace(
    MANIFEST,
    family="univg",
    native_side=1024,
    model=replace(MODEL, heads=24, kv_heads=24, head_dim=64, softcap=0.0, max_positions=192, max_frames=1),
    prompt_tokens=256,
    guidance_branches=3,
    graphs=ONE_STREAM
    | {
        "text_encoder": graph(
            {"input_ids": (1, "length"), "clip_ids": (1, 77), "clip_2_ids": (1, 77)},
            hidden_states=("text_length", 4096), pooled=(2048,),
        ),
        "denoiser": graph({"text": ("capacity", 1536), "text_source": ("text_tokens",)}),
    },
    tokenizers={name: TokenizerSpec(file="", max_tokens=77) for name in ("input_ids", "clip_ids", "clip_2_ids")},
)  # fmt: skip
UNIVG = replace(
    TWO_STREAMS,
    model=replace(TWO_STREAMS.model, condition_channels=17),
    graphs={"image_encoder": graph({"pixels": (1, 3, 224, 224)}), **TWO_STREAMS.graphs}
    | {
        "text_encoder": graph(
            {"input_ids": (1, "length"), "feature": ("features", 4096)}, hidden_states=("length", 4096)
        )
    },
    tokenizers={},
)
SMALL = replace(MANIFEST, native_side=64, model=replace(MODEL, heads=6, kv_heads=2, head_dim=48, patch=1))


@pytest.mark.parametrize("plugin", [False, True])
@pytest.mark.parametrize(
    "manifest",
    [MANIFEST, SMALL, replace(TWO_STREAMS, native_side=64), replace(UNIVG, native_side=64)],
    ids=["published", "small", "sd3", "univg"],
)
@pytest.mark.parametrize("capacity", [Capacity(), Capacity(tokens=(64, 100, 300), sequences=2, frames=3, side=64)])
def test_every_profile_is_ordered_and_names_the_same_axes(manifest: Manifest, capacity: Capacity, plugin: bool) -> None:
    table = plan_profiles(manifest, capacity, plugin=plugin)
    assert tuple(table) == tuple(manifest.graphs)
    assert set(table) >= set(GRAPHS)
    for graph, profiles in table.items():
        assert 1 <= len(profiles) <= MAX_PROFILES
        for profile in profiles:
            assert profile.keys() == profiles[0].keys()
            for axis, (least, best, most) in profile.items():
                assert (axis != "features") <= least <= best <= most, (graph, axis)
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


def test_text_that_is_carried_is_part_of_a_sequence() -> None:
    """Three branches of a native picture with the longest prompts, and padding; the second profile is for many."""
    table = plan_profiles(UNIVG, Capacity(attention_gib=20), plugin=False)
    few, many = table["denoiser"]
    assert (few["tokens"], few["sequences"], few["longest"]) == ((1, 12288, 12288), (1, 2, 4), (1, 4160, 4096 + 256))
    assert (few["text_tokens"], few["condition_rows"]) == ((1, 128, 4 * 256), (1, 6145, 12289))
    assert (many["sequences"], many["longest"][2], many["text_tokens"][2]) == ((1, 8, 8), 3072 + 256, 8 * 256)
    assert "text_longest" not in few
    assert table["image_encoder"] == [{}]
    assert table["text_encoder"] == [{"length": (1, 32, 256), "features": (0, 1, 8)}]
    table = plan_profiles(TWO_STREAMS, Capacity(attention_gib=12), plugin=False)
    few, many = table["denoiser"]
    assert (few["tokens"][2], few["sequences"][2], few["longest"][2]) == (8192, 3, 4096 + 77 + 256)
    assert "condition_rows" not in few
    assert table["conditioner"][0]["length"] == (1, 32, 333)
    assert "longest" not in plan_profiles(TWO_STREAMS, Capacity(), plugin=True)["denoiser"][0]
    with pytest.raises(ConfigError, match=r"3 sequences of 4429 tokens take 10.5 GiB, .* \(--attention-gib 11\)"):
        plan_profiles(TWO_STREAMS, Capacity(), plugin=False)
    with pytest.raises(ConfigError, match="text is 300, less than one prompt's 333 tokens"):
        plan_profiles(TWO_STREAMS, Capacity(text=300), plugin=False)


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

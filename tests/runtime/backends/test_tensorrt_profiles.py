"""Which profile takes a call, what it is padded to, and how sizes are refused."""

import re

import numpy as np
import pytest

from framert.runtime import tables
from framert.runtime.arena import Arena
from framert.runtime.backends.tensorrt.limits import EngineLimits
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.shapes import CallSizes
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Graph, Manifest, ModelSpec, ScheduleSpec, TensorSpec
from framert.runtime.profiles import Capacity, plan_profiles
from framert.runtime.tables import BranchRows

PLUGIN = [
    {"tokens": (1, n, n), "slots": (1, n // 2, n), "sequences": (1, 2, 40), "frames": (1, 4, 64), "rows": (1, 8, 64),
     "capacity": (1, 64, 512)}
    for n in (256, 1024)
]  # fmt: skip
PADDED = [
    {**PLUGIN[0], "sequences": (1, 2, 3), "longest": (1, 128, 128), "text_longest": (1, 64, 300)},
    {**PLUGIN[1], "sequences": (1, 2, 3), "longest": (1, 512, 512), "text_longest": (1, 64, 300)},
    {**PLUGIN[1], "sequences": (1, 8, 8), "longest": (1, 256, 256), "text_longest": (1, 64, 300)},
]

MODEL = ModelSpec(
    hidden_size=3840, depth=16, heads=32, kv_heads=8, head_dim=120, softcap=30.0, patch=2, latent_channels=16,
    vae_factor=8, scaling_factor=1.5305, text_width=2048, max_positions=128, max_frames=128,
)  # fmt: skip
SCHEDULE = ScheduleSpec(
    num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)


def manifest(prompt_tokens=300, **denoiser):
    """A manifest of the published size. denoiser: further inputs of it."""

    def graph(inputs, **outputs):
        given, made = ({name: TensorSpec(dtype="", shape=shape) for name, shape in side.items()}
                       for side in (inputs, outputs))  # fmt: skip
        return Graph(files=(), precision="float32", inputs=given, outputs=made)

    graphs = {"text_encoder": graph({"input_ids": (1, "length")}, hidden_states=("length", 8)),
              "denoiser": graph(denoiser)}  # fmt: skip
    return Manifest(
        family="any", native_side=512, model=MODEL, schedule=SCHEDULE, prompt_tokens=prompt_tokens, graphs=graphs,
        guidance_branches=4, target={"kind": "onnx"}, files={},
    )  # fmt: skip


TEXT = 60  # tokens of the longest prompt, where text is carried
JOINT = manifest(TEXT, text_source=("text_tokens",))
CARRIED = plan_profiles(JOINT, Capacity(tokens=(256, 1024), attention_gib=64.0), plugin=False)["denoiser"]
CARRIED_PLUGIN = plan_profiles(JOINT, Capacity(tokens=(256, 1024), sequences=40), plugin=True)["denoiser"]


def profiles(denoiser):
    side = {"height": (16, 64, 512), "width": (16, 64, 512)}
    table = {
        "denoiser": denoiser,
        "vae_encoder": [side],
        "vae_decoder": [{f"latent_{name}": (2, 8, 64) for name in side}],
    }
    return Profiles(table, rebuild)


def rebuild(axis="", size=0):
    return f"build it again{f' for {size} {axis}' if axis else ''}"


class Member:
    conditions = None

    def __init__(self, frames, height, width, branches, text=5):
        self.frames, self.height, self.width = frames, height, width
        self.branches = tuple(BranchRows(0, text, 0, 1.0) for _ in range(branches))


def packed(sizes, *members, carried=False):
    count = sum(tables.token_count(member) for member in members)
    layout = tables.Layout(carries_text=carried)
    return tables.build(members, guidance_branches=4, tokens=sizes.padded(count), layout=layout)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ({"tokens": 1}, 0),
        ({"tokens": 256, "sequences": 3, "longest": 128}, 0),
        ({"tokens": 256, "sequences": 2, "longest": 129}, 1),
        ({"tokens": 257, "sequences": 2, "longest": 300}, 1),
        ({"tokens": 64, "sequences": 4, "longest": 16}, 2),
    ],
)
def test_the_smallest_profile_that_takes_a_call(sizes, chosen):
    assert profiles(PADDED).choose("denoiser", sizes) == chosen


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"tokens": 1025}, "1025 model tokens, guidance branches counted, and is built for 1 to 1024; build it again "
         "for 1025 tokens"),
        ({"tokens": 0}, "0 model tokens, guidance branches counted, and is built for 1 to 1024; build it again"),
        ({"tokens": 64, "sequences": 9}, "9 sequences, one for each guidance branch and one for padding, and is built "
         "for 1 to 8; build it again for 9 sequences"),
        ({"tokens": 1024, "sequences": 5, "longest": 400, "frames": 2},
         "asked for 1024 tokens, 5 sequences, 400 longest, 2 frames, and is built for up to 256 tokens, 3 sequences, "
         "128 longest, 64 frames; or 1024 tokens, 3 sequences, 512 longest, 64 frames; or 1024 tokens, 8 sequences, "
         "256 longest, 64 frames; build it again for 1600 tokens"),
    ],
    ids=["tokens", "none", "sequences", "together"],
)  # fmt: skip
def test_refusals_say_what_is_allowed(sizes, says):
    with pytest.raises(BackendError) as caught:
        profiles(PADDED).choose("denoiser", sizes)
    assert str(caught.value) == f"denoiser was asked for {says.removeprefix('asked for ')}"


@pytest.mark.parametrize("made", [manifest(), JOINT], ids=["text apart", "text carried"])
@pytest.mark.parametrize(("tokens", "sequences", "longest"), [(1024, 5, 400), (600, 8, 330), (1024, 4, 512)])
def test_what_a_refused_combination_says_to_build_takes_it(tokens, sequences, longest, made):
    """By the builder's own rule, for a model of the published size."""
    asked = []

    def built(*buckets):
        capacity = Capacity(tokens=buckets, attention_gib=64.0)
        table = plan_profiles(made, capacity, plugin=False)
        return Profiles(table, lambda **more: asked.append(more) or "")

    call = {"tokens": tokens, "sequences": sequences, "longest": longest}
    with pytest.raises(BackendError):
        built(256, 1024).choose("denoiser", call)
    (more,) = asked
    assert more["axis"] == "tokens"
    assert built(256, 1024, more["size"]).choose("denoiser", call) == 3


@pytest.mark.parametrize("table", [PLUGIN, PADDED], ids=["plugin", "padded"])
def test_buckets_are_fine_and_end_with_the_largest_profile(table):
    sizes = CallSizes(profiles(table), 300)
    assert [sizes.padded(count) for count in (1, 64, 65, 256, 257, 1000, 1024)] == [64, 64, 128, 256, 264, 1024, 1024]
    assert all(sizes.padded(count) <= 1.06 * count for count in range(256, 1025))
    with pytest.raises(BackendError, match=re.escape("is built for 1 to 1024")):
        sizes.padded(1025)


def test_a_bucket_larger_than_the_profile_is_the_profile():
    table = [{**PLUGIN[0], "tokens": (1, 250, 250), "slots": (1, 125, 250)}]
    sizes = CallSizes(profiles(table), 300)
    assert (sizes.padded(200), sizes.padded(250)) == (250, 250)


def test_keys_hold_what_shapes_follow_from():
    sizes = CallSizes(profiles(PADDED), 300)
    key = sizes.key(packed(sizes, Member(1, 10, 10, 2)))  # 200 tokens, 56 of padding
    assert (key.profile, key.tokens, key.slots, key.sequences) == (0, 256, 256, 3)
    assert (key.longest, key.text_longest, key.frames) == (128, 64, 64)
    lengths = sizes.lengths(key)
    assert (lengths["slots"], lengths["longest"], lengths["frames"]) == (256, 128, 64)
    same = sizes.key(packed(sizes, Member(1, 10, 11, 2, text=60)))
    assert same == key  # another request of the bucket runs in the same captured call
    assert sizes.key(packed(sizes, Member(1, 10, 10, 2, text=65))).text_longest == 128
    assert sizes.key(packed(sizes, Member(1, 10, 20, 1))).profile == 1  # one sequence longer than half the bucket


def test_a_plugins_keys_are_padded_in_sequences_and_have_no_windows():
    sizes = CallSizes(profiles(PLUGIN), 300)
    few, many = (sizes.key(packed(sizes, *[Member(1, 2, 2, 2)] * count)) for count in (3, 12))
    assert (few.sequences, few.longest, few.text_longest) == (16, 0, 0)
    assert many.sequences == 40  # of the profile; 64 would be next
    assert "longest" not in sizes.lengths(few)


def test_a_text_that_is_carried_is_part_of_its_sequence():
    sizes = CallSizes(profiles(CARRIED), TEXT)
    few = sizes.key(packed(sizes, Member(1, 10, 10, 2), carried=True))  # 200 tokens, 56 of padding
    assert (few.profile, few.tokens, few.sequences, few.text_tokens) == (0, 256, 3, 64)
    assert (few.longest, few.text_longest) == (128, 0)
    assert set(sizes.lengths(few).items()) >= {("text_tokens", 64), ("longest", 128)}
    longest = sizes.key(packed(sizes, Member(1, 10, 10, 2, text=TEXT), carried=True))
    assert (longest.text_tokens, longest.longest) == (128, 188)  # 100 tokens and 60; 192 the profile has not
    assert longest.profile == 0
    plugin = CallSizes(profiles(CARRIED_PLUGIN), TEXT)
    key = plugin.key(packed(plugin, Member(1, 10, 10, 2), carried=True))
    assert (key.text_tokens, key.longest, key.sequences) == (64, 0, 16)
    # A sequence alone: its part of the bucket is the picture's, whatever the prompt's length will be.
    sizes.check([128], 1)
    with pytest.raises(BackendError, match="573 model tokens of one sequence, its text counted, and is built for 1 to"):
        profiles(CARRIED).choose("denoiser", {"longest": 572 + 1})


@pytest.mark.parametrize("text", [5, TEXT])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("table", [PLUGIN, PADDED, CARRIED], ids=["plugin", "padded", "carried"])
def test_what_check_allows_has_a_key_and_the_reverse(table, seed, text):
    """The check at submission knows no tables, and must agree with what the tables need.

    Where text is carried it knows no prompts either: it may then refuse what shorter ones would have let through.
    """
    sizes, carried = CallSizes(profiles(table), TEXT), table is CARRIED
    draw = np.random.default_rng(seed)
    seen = set()
    for _ in range(40):
        members = [
            Member(int(draw.integers(1, 4)), *draw.integers(1, 16, 2).tolist(), int(draw.integers(1, 4)), text)
            for _ in range(draw.integers(1, 6))
        ]
        lengths = [tables.slot_count(member) for member in members for _ in member.branches]
        frames = sum(member.frames * len(member.branches) for member in members)
        outcomes = []
        for attempt in (
            lambda lengths=lengths, frames=frames: sizes.check(lengths, frames),
            lambda members=members: sizes.key(packed(sizes, *members, carried=carried)),
        ):
            try:
                attempt()
                outcomes.append(True)
            except BackendError:
                outcomes.append(False)
        told = [(m.frames, m.height, m.width, len(m.branches)) for m in members]
        assert outcomes[0] <= outcomes[1], told
        assert outcomes[0] == outcomes[1] or (carried and text < TEXT), told
        seen.add(outcomes[0])
    assert seen == {True, False}


def test_limits_of_pictures_and_arenas():
    limits = EngineLimits(profiles(PLUGIN), CallSizes(profiles(PLUGIN), 300), 8)
    assert (limits.text, limits.rows) == (512, 64)
    limits.check_size(512, 512, encodes=True)
    with pytest.raises(BackendError, match="vae_encoder was asked for 528 pixels wide"):
        limits.check_size(512, 528, encodes=True)
    with pytest.raises(BackendError, match="vae_decoder was asked for 66 latent pixels high"):
        limits.check_size(528, 512, encodes=False)


def test_an_arena_grows_to_its_limit_and_makes_room_within():
    arena = Arena(64, limit=100)
    spans = [arena.acquire(number, 30) for number in range(3)]
    assert arena.required == 100  # not 128
    arena.capacity = 100
    for span in spans:
        span.fresh = False
        arena.release(span)
    fourth = arena.acquire("new", 40)  # evicts what nobody holds
    assert (fourth.begin, arena.required) == (0, 100)
    arena.acquire("beyond", 70)
    assert arena.required == 110  # which the store refuses
    assert Arena(1024, limit=300).capacity == 300

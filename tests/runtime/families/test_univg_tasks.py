"""Every task of UniVG: its prompt, what it is shown, where it paints, what it returns; and every way to ask wrongly."""

import numpy as np
import pytest
from PIL import Image

from framert.runtime.colors import COLORS
from framert.runtime.errors import ConfigError, ShapeError, TaskError
from framert.runtime.families import find_family
from framert.runtime.families.onediffusion.task_table import TASKS as FRAME_TASKS
from framert.runtime.families.univg.family import painted
from framert.runtime.families.univg.plan import canvas
from framert.runtime.families.univg.task_table import TASKS
from framert.runtime.images import fit
from framert.runtime.job import prepare
from framert.runtime.pipeline import Pipeline
from framert.runtime.request import Request
from framert.runtime.task import EXTRAS
from framert.runtime.tokenizer import PromptTruncatedWarning

HOLE = np.zeros((48, 64), bool)
HOLE[16:24, 40:56] = True
BOXES = {"red cube": (0, 0, 16, 24), "blue ball": (30, 30.4, 64, 64)}
SMALL = (0, 0, 6, 9)
GIVEN = "given"


@pytest.fixture(scope="session")
def manifest(open_bundle):
    return open_bundle().manifest


@pytest.fixture(scope="session")
def plain(open_bundle):
    return open_bundle(conditions=False, references=False).manifest


@pytest.fixture
def wide():
    return Image.fromarray(np.random.default_rng(4).integers(0, 256, (48, 64, 3), dtype=np.uint8))


# task, images, arguments -> prompt, output, size, image guidance, where it paints
EXPECTED = [
    ("text_to_image", 0, {}, "<t2i> x", None, (64, 64), None, None),
    ("inpaint", 1, {"hole": HOLE}, "<inpaint> x", None, (80, 48), 1.5, "hole"),
    ("outpaint", 1, {"extend": (0, 0, 32, 0)}, "<outpaint> x", None, (96, 48), 1.5, "canvas"),
    ("edit", 1, {}, "<ie> x", None, (80, 48), 1.5, "nowhere"),
    ("identity", 2, {"captions": ["a", ""]}, "<p> a <p> x", None, (80, 48), None, None),
    ("identity", 1, {}, "<p> x", None, (80, 48), None, None),
    ("layout_to_image", 0, {"boxes": BOXES}, "<lg> <red: red cube> <lime: blue ball> x", None, (64, 64), 1.5,
     "everywhere"),
    ("layout_to_image", 0, {"boxes": BOXES, "colors": {"blue ball": "cyan", "red cube": "#FFD700"}},
     "<lg> <gold: red cube> <cyan: blue ball> x", None, (64, 64), 1.5, "everywhere"),
    ("image_to_depth", 1, {}, "<depth> x", "depth", (80, 48), 1.0, "everywhere"),
    ("image_to_pose", 1, {}, "<pose> x", None, (80, 48), 1.0, "everywhere"),
    ("segment", 1, {}, "<seg> x", "masks", (80, 48), 1.0, "everywhere"),
]  # fmt: skip


def conditions_of(job):
    """What a pipeline shows a job's tokens as (17, h, w), with latents of a picture as mean colours; or None."""

    class Components:
        def encode(self, pixels, seconds):
            blocks = pixels.reshape(pixels.shape[0] // 8, 8, pixels.shape[1] // 8, 8, 3).mean((1, 3))
            return np.concatenate([blocks, np.zeros((*blocks.shape[:2], 13))], axis=2).transpose(2, 0, 1)

    found = job.family.start(job, Components(), {}).conditions
    if found is None:
        return None
    _, _, h, w = job.shape
    return found.reshape(h // 2, w // 2, 2, 2, 17).transpose(4, 0, 2, 1, 3).reshape(17, h, w)


@pytest.mark.parametrize(
    ("task", "images", "arguments", "prompt", "output", "size", "image_guidance", "where"),
    EXPECTED,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(EXPECTED)],
)
def test_every_task_is_composed(
    manifest, wide, task, images, arguments, prompt, output, size, image_guidance, where
):  # fmt: skip
    job = prepare(Request(task=task, images=[wide] * images, prompt=" x ", **arguments), manifest)
    composition = job.composition
    assert (composition.prompt, composition.output) == (prompt, output)
    assert (composition.mask, composition.kinds) == ((1,), ("picture",))
    assert (job.size, job.settings.get("image_guidance")) == (size, image_guidance)
    shown = conditions_of(job)
    assert (shown is None) == (where is None)
    if where is None:
        return
    mask = shown[16]
    assert set(np.unique(mask)) <= {0, 1}
    if where in ("everywhere", "nowhere"):
        assert (mask == (where == "everywhere")).all()
    elif where == "hole":
        # 64 x 48 is cropped to 64 x 38 and scaled to 80 x 48: pixel rows 13 to 24, columns 49 to 70
        np.testing.assert_array_equal(np.argwhere(mask), [(row, column) for row in (1, 2, 3) for column in (6, 7, 8)])
    else:  # the canvas is 96 x 48, as the result, and new from column 64 on
        np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(12) >= 8, mask.shape))


def test_the_table_above_misses_no_task():
    assert {row[0] for row in EXPECTED} == set(TASKS)


def test_rows_are_consistent():
    for name, row in TASKS.items():
        assert row.name == name
        assert set(row.extras) <= set(EXTRAS)
        assert (row.image_guidance is not None) == (row.shown not in ("nothing", "references"))


@pytest.mark.parametrize("name", sorted(set(TASKS) & set(FRAME_TASKS)))
def test_a_task_of_both_families_takes_and_returns_the_same(name):
    ours, theirs = TASKS[name], FRAME_TASKS[name]
    for field in ("images", "prompt_required", "needs", "takes", "output", "size_rule", "summary"):
        assert getattr(ours, field) == getattr(theirs, field), field


def test_what_a_bundle_can_do_follows_from_its_manifest(manifest, plain, open_bundle):
    family = find_family("univg")
    assert set(family.tasks()) == set(family.tasks(manifest)) == set(TASKS)
    assert set(family.tasks(open_bundle(references=False).manifest)) == set(TASKS) - {"identity"}
    assert set(family.tasks(plain)) == {"text_to_image"}
    assert family.tasks(plain)["text_to_image"].token == ""


def test_the_hole_is_grey_in_what_is_shown(manifest, wide):
    job = prepare(Request(task="inpaint", images=[wide], hole=HOLE, size=(64, 48)), manifest)
    seen = np.asarray(job.composition.images[0])
    assert (seen[HOLE] == 128).all()
    np.testing.assert_array_equal(seen[~HOLE], np.asarray(wide)[~HOLE])
    shown = conditions_of(job)
    np.testing.assert_array_equal(np.argwhere(shown[16]), [(2, 5), (2, 6)])  # rows 16 to 23, columns 40 to 55
    np.testing.assert_allclose(shown[:3, 2, 5:7], 128 / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 64), (200, 100), (33, 97)])
def test_every_latent_pixel_that_sees_grey_is_painted(shape):
    """The map is cropped and resized as the picture is, so nothing of a hole is ever shown as if it were known."""
    where = np.zeros(shape, bool)
    where[shape[0] // 3 : shape[0] // 2, shape[1] // 2 : shape[1] // 2 + 5] = True
    black = Image.fromarray(np.where(where[..., None], 128, 0).astype(np.uint8).repeat(3, axis=2))
    pixels = fit(black, (64, 32))[..., 0]
    grey = (pixels > -1).reshape(4, 8, 8, 8).any((1, 3))
    np.testing.assert_array_equal(painted(where, (64, 32), (4, 8)), grey)
    assert grey.any()


def test_the_canvas_is_grey_and_new_where_it_is_extended(wide):
    made, new = canvas(wide, [3, 5, 0, 2])
    assert (made.size, new.shape) == ((67, 55), (55, 67))
    np.testing.assert_array_equal(np.asarray(made)[~new].reshape(48, 64, 3), np.asarray(wide))
    assert (np.asarray(made)[new] == 128).all()
    assert not new[5:53, 3:].any()


def test_boxes_are_drawn_in_their_colours_at_the_result_s_size(manifest):
    boxes = {"a": (0, 0, 32, 16), "b": (16, 0, 48, 48), "c": (63, 63, 64, 64)}
    job = prepare(Request(task="layout_to_image", boxes=boxes, size=(64, 64)), manifest)
    drawn = np.asarray(job.composition.images[0])
    expected = np.zeros((64, 64, 3), np.uint8)
    for (left, top, right, bottom), color in zip(boxes.values(), COLORS.values(), strict=False):
        expected[top:bottom, left:right] = color
    np.testing.assert_array_equal(drawn, expected)


def test_a_segment_is_one_mask_named_by_the_prompt(pipe, wide):
    result = pipe.run("segment", images=[wide], prompt=" the red cube", steps=1, size=(32, 16))
    assert set(result.masks) == {"the red cube"}
    white = result.pixels[0].astype(float).mean(-1)
    np.testing.assert_array_equal(result.masks["the red cube"], white > 0.5)
    assert 0 < result.masks["the red cube"].mean() < 1


def test_depth_is_the_mean_of_its_picture(pipe, wide):
    result = pipe.run("image_to_depth", images=[wide], steps=1, size=(32, 16))
    np.testing.assert_allclose(result.depth, result.pixels[0].mean(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "images", "arguments"), [row[:3] for row in EXPECTED], ids=lambda value: str(value)[:16]
)
def test_settings_repeat_a_result(pipe, wide, task, images, arguments, tmp_path):
    given = {"images": [wide] * images} | {name: value for name, value in arguments.items() if name == "hole"}
    first = pipe.run(
        task, prompt="a cube", steps=2, size=(64, 64), seed=3, negative_prompt="red", **(given | arguments)
    )
    first.save(tmp_path / "out.png")
    stored = {name: value for name, value in first.settings.items() if name != "full_prompt"}
    again = pipe.run(**stored, **given)
    np.testing.assert_array_equal(again.latents, first.latents)
    assert again.settings == first.settings


def test_raw_prompts_with_and_without_a_picture(pipe, wide):
    alone = pipe.generate(prompt="<t2i> a cube", steps=1, size=(32, 32))
    np.testing.assert_array_equal(
        alone.latents, pipe.run("text_to_image", prompt="a cube", steps=1, size=(32, 32)).latents
    )
    seen = pipe.generate(prompt="<depth>", images=[wide], steps=1, guidance=2.0, image_guidance=1.0)
    task = pipe.run("image_to_depth", images=[wide], steps=1)
    np.testing.assert_array_equal(seen.latents, task.latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": [0, 1]}, r"mask is \[0, 1\]; this bundle makes one picture at a time: give mask=\[1\]"),
        ({"mask": None}, "mask is None"),
        ({"images": [GIVEN, GIVEN]}, "2 images were given and this bundle is shown at most 1"),
        ({"multiview": True}, "cameras or multiview was given"),
        ({"prompt": 3}, "the prompt is a int"),
        ({"images": "picture.png"}, "images is a str"),
    ],
)
def test_bad_raw_calls_are_named_in_one_line(pipe, wide, arguments, message):
    given = {name: [wide] * 2 if value == [GIVEN, GIVEN] else value for name, value in arguments.items()}
    with pytest.raises(TaskError, match=message) as caught:
        pipe.generate(**({"prompt": "x"} | given))
    assert "\n" not in str(caught.value)


def test_a_plain_bundle_is_shown_nothing(univg, open_bundle, wide):
    bundle = open_bundle(conditions=False, references=False)
    pipe = Pipeline(bundle, univg.NumpyBackend(bundle))
    with pytest.raises(TaskError, match="1 images were given and this bundle is shown at most 0"):
        pipe.generate(prompt="x", images=[wide])
    with pytest.raises(
        TaskError, match=r"'edit' is a task of univg, and this bundle lacks what it takes; the tasks are"
    ):
        pipe.run("edit", images=[wide], prompt="x")


@pytest.mark.parametrize(
    ("task", "images", "arguments", "error", "message"),
    [
        ("text_to_image", 0, {}, TaskError, "needs a prompt"),
        ("text_to_image", 1, {"prompt": "x"}, TaskError, "1 images were given and text_to_image takes 0"),
        ("edit", 0, {"prompt": "x"}, TaskError, "0 images were given and edit takes 1"),
        ("edit", 1, {"prompt": "<ie> x"}, TaskError, "the prompt holds <ie>"),
        ("edit", 1, {"prompt": "x", "hole": HOLE}, TaskError, "edit does not take hole.*hole is for inpaint"),
        ("edit", 1, {"prompt": "x", "cameras": 1}, TaskError, "cameras is for no task of this bundle"),
        ("segment", 1, {}, TaskError, "segment needs a prompt"),
        ("inpaint", 1, {}, TaskError, "inpaint needs hole"),
        ("inpaint", 1, {"hole": HOLE.T}, TaskError, "48 x 64 pixels and the picture 64 x 48"),
        ("outpaint", 1, {}, TaskError, r"needs extend.*--extend"),
        ("outpaint", 1, {"extend": (1, 2, 3)}, TaskError, "whole numbers of pixels: left, top, right, bottom"),
        ("outpaint", 1, {"extend": (1, 2, 3, -4)}, TaskError, "give four whole numbers"),
        ("outpaint", 1, {"extend": (1.5, 0, 0, 0)}, TaskError, "give four whole numbers"),
        ("outpaint", 1, {"extend": "1234"}, TaskError, "give four whole numbers"),
        ("outpaint", 1, {"extend": 8}, TaskError, "give four whole numbers"),
        ("outpaint", 1, {"extend": (0, 0, 0, 0)}, TaskError, "nothing would be painted"),
        ("outpaint", 1, {"extend": (0, 0, 10**9, 0)}, TaskError, "canvas of 1000000064x48"),
        ("layout_to_image", 0, {}, TaskError, "needs boxes.*--box"),
        ("layout_to_image", 0, {"boxes": [1]}, TaskError, r"boxes is \[1\]"),
        ("layout_to_image", 0, {"boxes": {"a": (1, 2, 3)}}, TaskError, "give four numbers: left, top, right, bottom"),
        ("layout_to_image", 0, {"boxes": {"a": (1, 2, float("nan"), 4)}}, TaskError, "give four numbers"),
        ("layout_to_image", 0, {"boxes": {"a": "1234"}}, TaskError, "give four numbers"),
        ("layout_to_image", 0, {"boxes": {"a": (8, 0, 8, 9)}}, TaskError, "left before right"),
        ("layout_to_image", 0, {"boxes": {"a": (-1, 0, 8, 9)}}, TaskError, "from 0"),
        ("layout_to_image", 0, {"boxes": {"a": (0, 0, 65, 9)}}, TaskError, "beyond the result's 64x64 pixels"),
        ("layout_to_image", 0, {"boxes": {"a>": SMALL}}, TaskError, "without < >"),
        ("layout_to_image", 0, {"boxes": {3: SMALL}}, TaskError, "without < >"),
        ("layout_to_image", 0, {"boxes": {"a": SMALL, " a": SMALL}}, TaskError, "names a thing twice"),
        ("layout_to_image", 0, {"boxes": dict.fromkeys(map(str, range(21)), SMALL)}, TaskError, "there are 20 colours"),
        ("layout_to_image", 0, {"boxes": {"a": SMALL}, "colors": {"b": "red"}}, TaskError, "same things in both"),
        ("layout_to_image", 0, {"boxes": {"a": SMALL}, "colors": {"a": "rd"}}, TaskError, "did you mean red"),
        ("identity", 4, {"prompt": "x"}, TaskError, "takes 1 to 3"),
        ("identity", 1, {"prompt": "a <p>"}, TaskError, "the prompt holds <p>"),
        ("identity", 1, {"prompt": "x", "captions": ["a", "b"]}, TaskError, "2 captions were given for 1 images"),
        ("edit", 1, {"prompt": "x", "image_guidance": -1}, ConfigError, "image_guidance is -1; give a number from 0"),
        ("edit", 1, {"prompt": "x", "image_guidance": "2"}, ConfigError, "image_guidance is '2'"),
        ("edit", 1, {"prompt": "x", "guidance": float("nan")}, ConfigError, "guidance is nan"),
        ("text_to_image", 0, {"prompt": "x", "image_guidance": 2.0}, ConfigError, "shows no picture to be guided by"),
        ("identity", 1, {"prompt": "x", "image_guidance": 2.0}, ConfigError, "shows no picture to be guided by"),
        ("edit", 1, {"prompt": "x", "mask": [1, 0]}, TaskError, "decides its own frames"),
        ("edit", 1, {"prompt": "x", "reuse": 2}, ConfigError, "no frame of this request is given"),
        ("edit", 1, {"prompt": "x", "size": (272, 64)}, Exception, "256"),
        ("edit", 1, {"prompt": "x", "noise": np.zeros((2, 16, 4, 4))}, ShapeError, "noise has shape"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_calls_are_named_in_one_line(manifest, wide, task, images, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        prepare(Request(task=task, images=[wide] * images, **arguments), manifest)
    assert "\n" not in str(caught.value)


def test_too_many_references_for_a_cut_prompt_are_refused(pipe, wide):
    refused = pytest.raises(TaskError, match=r"1 <p> within what the model reads and 2 pictures")
    with refused, pytest.warns(PromptTruncatedWarning):
        pipe.run("identity", images=[wide] * 2, captions=["a " * 30, ""], prompt="x", steps=1)

"""The task table: every task's frames and prompt, raw calls, and every way to ask for the wrong thing."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framert.runtime.cameras import Cameras
from framert.runtime.colors import COLORS, check_legend, hexadecimal
from framert.runtime.errors import ImageError, TaskError
from framert.runtime.families import find_task
from framert.runtime.families.onediffusion.frames import compose
from framert.runtime.families.onediffusion.plan import plan as plan_row
from framert.runtime.families.onediffusion.task_table import TASKS
from framert.runtime.request import Request
from framert.runtime.task import EXTRAS

GOLDEN = Path(__file__).parents[1] / "golden"
COLOR = {"red cube": "cyan", "ball": "gold"}
MASKS = "<#00FFFF cyan mask: red cube> <#FFD700 gold mask: ball>"
BOXES = "<#00FFFF cyan boundingbox: red cube> <#FFD700 gold boundingbox: ball>"


def plan(task, **arguments):
    return plan_row(find_task(task), Request(task=task, **arguments))


def picture(grey: int = 50) -> Image.Image:
    return Image.new("RGB", (40, 30), (grey, grey, grey))


def orbit(views: int) -> Cameras:
    return Cameras.orbit(list(range(views)), [0] * views, [1.5] * views)


HOLE = np.zeros((30, 40), bool)
HOLE[5:10, 20:30] = True

# task, images, arguments -> mask, prompt, output, steps, guidance, size rule
EXPECTED = [
    ("text_to_image", 0, {}, (1,), "[[text2image]] x", None, 50, 4.0, "native"),
    ("image_to_depth", 1, {}, (0, 1), "[[depth2image]] x", "depth", 50, 4.0, "aspect"),
    ("depth_to_image", 1, {}, (1, 0), "[[depth2image]] x", None, 50, 4.0, "aspect"),
    ("image_to_canny", 1, {}, (0, 1), "[[canny2image]] x", None, 50, 4.0, "aspect"),
    ("canny_to_image", 1, {}, (1, 0), "[[canny2image]] x", None, 50, 4.0, "aspect"),
    ("image_to_hed", 1, {}, (0, 1), "[[hed2img]] x", None, 50, 4.0, "aspect"),
    ("hed_to_image", 1, {}, (1, 0), "[[hed2img]] x", None, 50, 4.0, "aspect"),
    ("image_to_pose", 1, {}, (0, 1), "[[pose2image]] x", None, 50, 4.0, "aspect"),
    ("pose_to_image", 1, {}, (1, 0), "[[pose2image]] x", None, 50, 4.0, "aspect"),
    ("image_to_semantic", 1, {"colors": COLOR}, (0, 1), f"[[semanticmap2image]] {MASKS} x", "masks", 50, 4.0, "aspect"),
    ("semantic_to_image", 1, {"colors": COLOR}, (1, 0), f"[[semanticmap2image]] {MASKS} x", None, 50, 4.0, "aspect"),
    ("image_to_boxes", 1, {"colors": COLOR}, (0, 1), f"[[boundingbox2image]] {BOXES} x", "boxes", 50, 4.0, "aspect"),
    ("boxes_to_image", 1, {"colors": COLOR}, (1, 0), f"[[boundingbox2image]] {BOXES} x", None, 50, 4.0, "aspect"),
    ("deblur", 1, {}, (1, 0), "[[deblurring]] x", None, 50, 3.5, "aspect"),
    ("inpaint", 1, {"hole": HOLE}, (1, 0), "[[image_inpainting]] x", None, 50, 3.5, "aspect"),
    ("edit", 1, {}, (1, 0), "[[image_editing]] x", None, 50, 3.5, "aspect"),
    ("identity", 1, {}, (1, 0), "[[faceid]] [[img0]] x [[img1]]", None, 75, 4.0, "aspect"),
    (
        "identity",
        3,
        {"captions": ["a", "b", "c"]},
        (1, 0, 0, 0),
        "[[faceid]] [[img0]] x [[img1]] a [[img2]] b [[img3]] c",
        None,
        75,
        4.0,
        "aspect",
    ),
    (
        "subject",
        1,
        {"item": "toy", "captions": ["on grass"]},
        (1, 0),
        "[[subject_driven]] <item: toy> [[img0]] x [[img1]] on grass",
        None,
        50,
        4.0,
        "aspect",
    ),
    ("image_to_multiview", 1, {"cameras": orbit(3)}, (0, 0, 1, 0, 1, 0), "[[multiview]] x", None, 60, 4.0, "square"),
    ("image_to_multiview", 2, {"cameras": orbit(3)}, (0, 0, 0, 0, 1, 0), "[[multiview]] x", None, 60, 4.0, "square"),
    ("text_to_multiview", 0, {"cameras": orbit(2)}, (1, 0, 1, 0), "[[multiview]] x", None, 60, 4.0, "square"),
    ("camera_pose", 2, {}, (0, 1, 0, 1), "[[multiview]] x", "cameras", 60, 1.0, "square"),
    ("camera_pose", 2, {"cameras": orbit(2)}, (0, 1, 0, 1), "[[multiview]] x", "cameras", 60, 1.0, "square"),
]


@pytest.mark.parametrize(
    ("task", "images", "arguments", "mask", "prompt", "output", "steps", "guidance", "size_rule"),
    EXPECTED,
    ids=[f"{row[0]}-{row[1]}" for row in EXPECTED],
)
def test_every_task_is_composed_as_published(task, images, arguments, mask, prompt, output, steps, guidance, size_rule):
    found = plan(task, images=[picture()] * images, prompt=" x ", **arguments)
    assert (found.prompt, found.mask) == (prompt, mask)
    assert (found.output, found.steps, found.guidance, found.size_rule) == (output, steps, guidance, size_rule)
    multiview = "multiview" in task or task == "camera_pose"
    assert found.multiview == multiview
    assert found.kinds == tuple("rays" if multiview and frame % 2 else "picture" for frame in range(len(mask)))
    assert found.cameras is arguments.get("cameras")
    assert found.colors == {thing: COLORS[color] for thing, color in arguments.get("colors", {}).items()}
    assert len(found.images) == images


def test_the_table_above_misses_no_task():
    assert {row[0] for row in EXPECTED} == set(TASKS)


def test_rows_are_consistent():
    for name, row in TASKS.items():
        assert row.name == name
        assert row.summary
        assert set(row.needs + row.takes) <= set(EXTRAS)
        assert row.multiview == (row.size_rule == "square")


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("pipeline_*.json")))
def test_raw_calls_are_composed_as_recorded(name):
    call = json.loads((GOLDEN / f"{name}.json").read_text())
    cameras = None
    if call.get("is_multiview"):
        cameras = Cameras.orbit(*(call[f"multiview_{part}"] for part in ("azimuths", "elevations", "distances")))
    mask = call.get("denoise_mask", [1])
    images = [GOLDEN / file for file in call["images"]]
    found = compose(prompt=call["prompt"], images=images, mask=mask, cameras=cameras)
    assert found.prompt == call["prompt"]
    assert found.mask == tuple(mask)
    assert found.multiview == bool(call.get("is_multiview"))
    assert found.output == ("cameras" if name == "pipeline_camera_pose" else None)
    for frame, path in zip(found.images, images, strict=True):
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("task", "arguments", "golden"),
    [
        ("text_to_image", {"prompt": "a red cube on a table"}, "text_to_image"),
        ("image_to_depth", {"prompt": "a red cube"}, "image_to_depth"),
        ("semantic_to_image", {"prompt": "a photo of the cat", "colors": {"cat": "cyan"}}, "semantic_map_to_image"),
        (
            "identity",
            {"prompt": "a woman on a table", "captions": ["a woman", "photo of a woman", "the woman"]},
            "identity_three_references",
        ),
        ("image_to_multiview", {"prompt": "a cat on a table", "cameras": orbit(3)}, "image_to_multiview"),
        ("text_to_multiview", {"prompt": "a cat on a table", "cameras": orbit(2)}, "text_to_multiview"),
        ("camera_pose", {"prompt": "a cat"}, "camera_pose"),
    ],
)
def test_tasks_ask_what_the_golden_calls_asked(task, arguments, golden):
    call = json.loads((GOLDEN / f"pipeline_{golden}.json").read_text())
    found = plan(task, images=[GOLDEN / file for file in call["images"]], **arguments)
    assert found.prompt == call["prompt"]
    assert found.mask == tuple(call.get("denoise_mask", [1]))


def test_an_empty_optional_prompt_leaves_the_token_alone():
    assert plan("image_to_depth", images=[picture()]).prompt == "[[depth2image]]"
    assert plan("camera_pose", images=[picture()] * 2, prompt="  ").prompt == "[[multiview]]"


def test_the_hole_is_grey_and_the_rest_is_kept():
    given = picture(50)
    found = np.asarray(plan("inpaint", images=[given], hole=HOLE).images[0])
    np.testing.assert_array_equal(found, np.where(np.stack([HOLE] * 3, axis=-1), 128, 50))
    assert np.asarray(given).max() == 50


@pytest.mark.parametrize(
    ("multiview", "mask", "kinds", "output", "steps", "size_rule"),
    [
        (False, [0, 1, 1], ("picture",) * 3, None, 50, "aspect"),
        (True, [0, 1, 1, 1], ("picture", "rays") * 2, "cameras", 60, "square"),
    ],
)
def test_raw_frames_without_cameras(multiview, mask, kinds, output, steps, size_rule):
    found = compose(prompt="x", images=[picture()], mask=mask, multiview=multiview)
    assert (found.kinds, found.output, found.steps, found.size_rule) == (kinds, output, steps, size_rule)


@pytest.mark.parametrize(
    ("task", "images", "arguments", "message"),
    [
        ("image_to_dpth", 1, {}, "did you mean image_to_depth"),
        ("depth", 1, {}, "image_to_depth"),
        ("", 1, {}, "there is no task ''"),
        (None, 1, {}, "there is no task None"),
        ("qqqqqq", 1, {}, r"use one of them, or generate\(\)"),
        ("text_to_image", 1, {"prompt": "x"}, "1 images were given and text_to_image takes 0"),
        ("image_to_depth", 0, {}, "0 images were given and image_to_depth takes 1"),
        ("image_to_depth", 2, {}, "takes 1"),
        ("identity", 4, {"prompt": "x"}, "takes 1 to 3"),
        ("camera_pose", 1, {}, "at least 2"),
        ("text_to_image", 0, {}, "needs a prompt"),
        ("text_to_image", 0, {"prompt": " \n"}, "needs a prompt"),
        ("edit", 1, {"prompt": ""}, "needs a prompt"),
        ("edit", 1, {"prompt": 5}, "give a string"),
        ("edit", 1, {"prompt": "[[image_editing]] make it blue"}, "leave it out"),
        ("edit", 1, {"prompt": "x", "colors": COLOR}, "edit does not take colors"),
        ("image_to_depth", 1, {"hole": HOLE}, "hole is for inpaint"),
        ("subject", 1, {"prompt": "x", "item": "toy", "cameras": orbit(2)}, "it takes item, captions"),
        ("image_to_semantic", 1, {}, "needs colors.*--color"),
        ("image_to_semantic", 1, {"colors": {}}, "needs colors"),
        ("image_to_semantic", 1, {"colors": ["red"]}, "at least one thing"),
        ("image_to_semantic", 1, {"colors": {"cube": "cyn"}}, "did you mean cyan"),
        ("image_to_semantic", 1, {"colors": {"cube": "zzz"}}, "known are red"),
        ("image_to_semantic", 1, {"colors": {"cube": (1, 2, 3)}}, "known are red"),
        ("image_to_semantic", 1, {"colors": {"a": "cyan", "b": "#00ffff"}}, "cyan for two things"),
        ("image_to_semantic", 1, {"colors": {"cube": "cyan", "cube ": "red"}}, "colors names 'cube' twice"),
        ("image_to_semantic", 1, {"colors": {"a>b": "cyan"}}, "without <"),
        ("image_to_semantic", 1, {"colors": {" ": "cyan"}}, "without <"),
        ("inpaint", 1, {}, "needs hole"),
        ("inpaint", 1, {"hole": HOLE.T}, "30 x 40 pixels and the picture 40 x 30"),
        ("inpaint", 1, {"hole": np.zeros_like(HOLE)}, "no white pixel"),
        ("subject", 1, {"prompt": "x"}, "needs item"),
        ("subject", 1, {"prompt": "x", "item": "<toy>"}, "without <"),
        ("subject", 1, {"prompt": "x", "item": 3}, "without <"),
        ("identity", 2, {"prompt": "x", "captions": ["a"]}, "1 captions were given for 2 images"),
        ("identity", 1, {"prompt": "x", "captions": "a"}, "list of strings"),
        ("identity", 1, {"prompt": "x", "captions": [1]}, "list of strings"),
        ("image_to_multiview", 1, {}, "needs cameras.*orbit"),
        ("image_to_multiview", 1, {"cameras": orbit(1)}, "1 cameras were given for 1 images"),
        ("image_to_multiview", 1, {"cameras": [0, 20]}, "cameras is a list"),
        ("text_to_multiview", 0, {"prompt": "x"}, "needs cameras"),
        ("text_to_multiview", 0, {"cameras": orbit(2)}, "needs a prompt"),
        ("camera_pose", 2, {"cameras": orbit(3)}, "none, or one per image"),
    ],
)
def test_bad_task_calls_are_named_in_one_line(task, images, arguments, message):
    with pytest.raises(TaskError, match=message) as caught:
        plan(task, images=[picture()] * images, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [picture(), "a.png", np.zeros((1, 4, 4, 3), np.uint8), None], ids=type)
def test_images_must_be_a_list(images):
    with pytest.raises(TaskError, match="give a list"):
        plan("image_to_depth", images=images)
    with pytest.raises(TaskError, match="give a list"):
        compose(prompt="x", images=images, mask=[0, 1])


def test_unreadable_pictures_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="missing"):
        plan("image_to_depth", images=[tmp_path / "none.png"])
    with pytest.raises(ImageError, match="missing"):
        plan("inpaint", images=[picture()], hole=tmp_path / "none.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": None}, "mask is None"),
        ({"mask": []}, "give a list"),
        ({"mask": [0, 2]}, "0 .given. or 1"),
        ({"mask": 1}, "give a list"),
        ({"mask": "01"}, "give a list"),
        ({"mask": [[0, 1]]}, "give a list"),
        ({"mask": np.eye(2, dtype=int)}, "give a list"),
        ({"mask": [0.5, 1]}, "give a list"),
        ({"mask": [0, 0]}, "nothing to generate"),
        ({"mask": [0, 1], "images": []}, "0 images were given and mask .0, 1. has 1"),
        ({"mask": [1]}, "1 images were given and mask .1. has 0"),
        ({"mask": [0, 1, 1], "multiview": True}, "alternate picture, rays"),
        ({"mask": [0, 1, 1, 0], "multiview": True}, "given ray frames; give cameras="),
        ({"mask": [0, 0, 1, 0], "cameras": orbit(3)}, "3 cameras were given for the 2 views"),
        ({"mask": [0, 0, 1, 0], "cameras": "orbit"}, "cameras is a str"),
        ({"mask": [0, 1], "prompt": None}, "give a string"),
    ],
)
def test_bad_raw_calls_are_named_in_one_line(arguments, message):
    with pytest.raises(TaskError, match=message) as caught:
        compose(**({"prompt": "x", "images": [picture()]} | arguments))
    assert "\n" not in str(caught.value)


def test_masks_may_be_numpy_arrays_and_booleans():
    assert compose(prompt="x", images=[picture()], mask=np.array([0, 1])).mask == (0, 1)
    assert compose(prompt="x", images=[picture()], mask=[False, True]).mask == (0, 1)


def test_colors_by_name_or_code_keep_their_order():
    assert list(check_legend({" b ": "#00ffff", "a": "Red"}).items()) == [("b", "cyan"), ("a", "red")]
    assert len({hexadecimal(color) for color in COLORS.values()}) == len(COLORS) == 20


def test_find_task_returns_the_row():
    assert find_task("edit") is TASKS["edit"]

"""out.settings, as stored in files, repeat a result: every task of the table, and raw frames."""

import json
from pathlib import Path

import numpy as np
import pytest

import framert
from framert.runtime.families.onediffusion.task_table import TASKS

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = [GOLDEN / f"input_{index}.png" for index in range(3)]
VIEWS = framert.Cameras.orbit([5, 40, 80], [0, 20, -10], [1.5, 1.25, 1.75], focal=1.2)
LEGEND = {"red cube": "cyan", " ball ": "#FFD700"}
HOW = {"steps": 2, "size": (32, 32), "seed": 11, "solver": "heun", "guidance": 3.0, "negative_prompt": "blurry"}
# What a task takes besides a picture and a prompt; the pictures are handed over again, not stored.
ARGUMENTS = {
    "text_to_image": {"images": []},
    **{name: {"colors": LEGEND} for name in TASKS if "semantic" in name or "boxes" in name},
    "inpaint": {"hole": np.eye(100, 112, dtype=bool)},
    "identity": {"images": INPUTS[:2], "captions": ["a cat", ""]},
    "subject": {"item": "toy cat", "captions": ["on grass"]},
    "image_to_multiview": {"cameras": VIEWS},
    "text_to_multiview": {"images": [], "cameras": VIEWS[:2]},
    "camera_pose": {"images": INPUTS[:2]},
}
RAW = {
    "pictures": {"mask": [0, 1], "images": INPUTS[:1]},
    "one view's rays": {"mask": [0, 0, 0, 1], "images": INPUTS[:2], "cameras": VIEWS[:2]},
    "all rays": {"mask": [1, 1, 1, 1], "multiview": True},
}
PICTURES = ("images", "hole")


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


def arguments_of(settings):
    """Return the keywords for run() or generate() that settings of a file stand for."""
    arguments = {name: value for name, value in settings.items() if name not in ("full_prompt", "framert")}
    if "cameras" in arguments:
        arguments["cameras"] = framert.Cameras.from_json(json.dumps(settings))
    return arguments


def assert_repeats(run, arguments, folder):
    out = run(**arguments, **HOW)
    files = out.save(folder / "out.png")
    stored = json.loads(json.dumps(out.settings))
    for file in files:
        if file.suffix == ".json":
            assert json.loads(file.read_text())["settings"] == {**stored, "framert": framert.__version__}
    again = run(**arguments_of(stored), **{name: value for name, value in arguments.items() if name in PICTURES})
    np.testing.assert_array_equal(again.latents, out.latents)
    np.testing.assert_array_equal(again.pixels, out.pixels)
    assert again.settings == out.settings
    for name in ("masks", "boxes"):
        found, expected = getattr(again, name), getattr(out, name)
        assert list(found or ()) == list(expected or ())
    return out


def task_arguments(task):
    return {"task": task, "images": INPUTS[:1], "prompt": "a cat"} | ARGUMENTS.get(task, {})


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_repeated_from_its_settings(task, pipe, tmp_path):
    settings = assert_repeats(pipe.run, task_arguments(task), tmp_path).settings
    assert (settings["task"], settings["prompt"]) == (task, "a cat")
    assert settings["full_prompt"].startswith(TASKS[task].token)
    assert ("colors" in settings, "item" in settings) == (task in ARGUMENTS and "colors" in ARGUMENTS[task],
                                                          task == "subject")  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_raw_frames_are_repeated_from_their_settings(case, pipe, tmp_path):
    settings = assert_repeats(pipe.generate, {"prompt": "[[multiview]] a cat", **RAW[case]}, tmp_path).settings
    assert settings["full_prompt"] == settings["prompt"] == "[[multiview]] a cat"
    assert "task" not in settings


def test_the_task_s_own_values_are_stored_as_numbers(pipe):
    settings = pipe.run("edit", images=INPUTS[:1], prompt="x", size=(32, 32), steps=1).settings
    assert (settings["guidance"], settings["seed"], "noise" in settings) == (3.5, 0, False)


def test_a_given_noise_is_named_and_has_to_be_given_again(pipe):
    noise = np.random.default_rng(0).standard_normal((1, 16, 4, 4), np.float32)
    out = pipe.run("text_to_image", prompt="x", size=(32, 32), steps=1, noise=noise)
    assert out.settings["noise"] == "given"
    again = pipe.run(**arguments_of(out.settings) | {"noise": noise})
    np.testing.assert_array_equal(again.latents, out.latents)
    with pytest.raises(framert.FramertError, match="noise"):
        pipe.run(**arguments_of(out.settings))

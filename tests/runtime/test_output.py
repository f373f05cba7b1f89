"""Results as files: their names, what is in them, and that there are all of them or none."""

import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import framert
from framert.runtime import output
from framert.runtime.cameras import Cameras
from framert.runtime.composition import Composition
from framert.runtime.errors import OutputError
from framert.runtime.result import Result

SETTINGS = {"task": "text_to_image", "prompt": "[[text2image]] a café ☕", "seed": np.int64(7), "size": [8, 6]}


def make(pictures=1, seed=7, **rest):
    colors = np.random.default_rng(seed).integers(0, 256, (pictures, 6, 8, 3), dtype=np.uint8)
    values = {"depth": None, "masks": None, "boxes": None, "cameras": None} | rest
    return Result(
        images=[Image.fromarray(array) for array in colors],
        pixels=colors.astype(np.float32) / 255,
        latents=np.zeros((pictures, 16, 1, 1), np.float32),
        timings={"total": 1.0},
        settings=SETTINGS | {"seed": np.int64(seed)},
        **values,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse_to_flush(monkeypatch, number=errno.ENOSPC):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


def test_one_picture_is_exact_and_says_how_to_repeat_it(tmp_path):
    result = make()
    assert result.save(tmp_path / "out.png") == [tmp_path / "out.png"]
    assert names(tmp_path) == ["out.png"]
    with Image.open(tmp_path / "out.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.images[0]))
        settings = json.loads(picture.text["framert"])
    assert settings.pop("framert") == framert.__version__
    assert settings == {**SETTINGS, "seed": 7}


def test_extra_settings_join_the_others(tmp_path):
    output.write([make()], tmp_path / "out.png", extra={"bundle": "blocks"})
    with Image.open(tmp_path / "out.png") as picture:
        assert json.loads(picture.text["framert"])["bundle"] == "blocks"


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_other_formats_keep_settings_in_exif(tmp_path, suffix):
    result = make()
    (file,) = result.save(tmp_path / f"out{suffix}")
    with Image.open(file) as picture:
        assert json.loads(picture.getexif()[output.IMAGE_DESCRIPTION])["seed"] == 7
        error = np.abs(np.asarray(picture, np.float32) - np.asarray(result.images[0], np.float32))
    assert error.max() == 0 if suffix == ".webp" else error.mean() < 25  # noise is what JPEG is worst at


def test_settings_too_long_for_exif_are_left_out(tmp_path):
    result = make()
    result.settings["prompt"] = "word " * 20_000
    (file,) = result.save(tmp_path / "out.jpg")
    with Image.open(file) as picture:
        assert not picture.getexif()


def test_pictures_are_numbered_over_all_results(tmp_path):
    first, second = make(2, seed=1), make(1, seed=2)
    files = output.write([first, second], tmp_path / "out.png")
    assert [[path.name for path in item.all] for item in files] == [["out-0.png", "out-1.png"], ["out-2.png"]]
    for file, image, seed in zip(
        [path for item in files for path in item.pictures], first.images + second.images, [1, 1, 2], strict=True
    ):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(image))
            assert json.loads(picture.text["framert"])["seed"] == seed


def test_depth_is_an_array_beside_the_picture(tmp_path):
    depth = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    make(depth=depth).save(tmp_path / "out.jpg")
    assert names(tmp_path) == ["out.jpg", "out.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), depth)


def test_masks_are_pictures_named_after_their_things(tmp_path):
    things = ["red cube", "Red  cube!", "../x", "☕", "a" * 300]
    masks = {thing: np.arange(48).reshape(6, 8) % 5 == index for index, thing in enumerate(things)}
    make(masks=masks).save(tmp_path / "out.jpg")
    expected = ["out-red-cube.png", "out-red-cube-2.png", "out-x.png", "out-thing.png", f"out-{'a' * 60}.png"]
    assert names(tmp_path) == sorted([*expected, "out.jpg"])
    for thing, name in zip(things, expected, strict=True):
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), masks[thing] * np.uint8(255))


def test_boxes_and_cameras_are_json(tmp_path):
    cameras = Cameras.orbit([0, 20], [10, 10], [3, 3])
    make(pictures=2, boxes={"cube": (1, 2, 3, 4), "ball": None}, cameras=cameras).save(tmp_path / "out.png")
    assert names(tmp_path) == ["out-0.png", "out-1.png", "out.json"]
    text = (tmp_path / "out.json").read_text()
    content = json.loads(text)
    assert content["pictures"] == ["out-0.png", "out-1.png"]
    assert content["boxes"] == {"cube": [1, 2, 3, 4], "ball": None}
    assert content["settings"]["seed"] == 7
    np.testing.assert_array_equal(Cameras.from_json(text).camera_to_world, cameras.camera_to_world)


def test_arrays_and_json_of_several_results_carry_the_number_of_the_result(tmp_path):
    result = make(depth=np.zeros((6, 8), np.float32), masks={"cube": np.ones((6, 8), bool)}, boxes={"cube": None})
    output.write([result, result], tmp_path / "out.png")
    each = ["out-{}.png", "out-{}-cube.png", "out-{}.npy", "out-{}.json"]
    assert names(tmp_path) == sorted(name.format(index) for name in each for index in (0, 1))


@pytest.mark.parametrize("name", ["out.json", "out.png"])
def test_cameras_alone_need_no_picture_suffix(tmp_path, name):
    make(pictures=0, cameras=Cameras.orbit([0], [0], [1])).save(tmp_path / name)
    assert names(tmp_path) == ["out.json"]


@pytest.mark.parametrize("name", ["out", "out.gif", "out.json", ".png", "out.PNG.txt"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"suffix .*; end the name in \.png, \.jpg"):
        make().save(tmp_path / name)
    assert names(tmp_path) == []


def test_the_files_of_a_request_are_known_before_it_runs():
    composition = Composition(
        prompt="", mask=(0, 1, 1, 1), kinds=("picture", "rays", "picture", "rays"), output="cameras"
    )
    assert output.Contents.of_composition(composition) == output.Contents(pictures=1, json=True)
    composition = Composition(
        prompt="", mask=(0, 1), kinds=("picture", "picture"), output="masks", colors={"cube": (255, 0, 0)}
    )
    assert output.Contents.of_composition(composition) == output.Contents(pictures=1, things=("cube",))
    result = make(masks={"cube": np.ones((6, 8), bool)})
    assert output.Contents.of_result(result) == output.Contents.of_composition(composition)


@pytest.mark.parametrize("existing", ["out.png", "out.npy"])
def test_any_existing_file_is_kept_without_force(tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    result = make(depth=np.zeros((6, 8), np.float32))
    with pytest.raises(OutputError, match=rf"{existing} exists; give another -o, or --force"):
        result.save(tmp_path / "out.png")
    assert names(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "mine"
    result.save(tmp_path / "out.png", force=True)
    assert names(tmp_path) == ["out.npy", "out.png"]
    assert np.load(tmp_path / "out.npy").shape == (6, 8)


def test_a_folder_is_never_replaced(tmp_path):
    (tmp_path / "out.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        make().save(tmp_path / "out.png", force=True)


@pytest.mark.parametrize(("folder", "state"), [("missing", "does not exist"), ("file", "is not a folder")])
def test_folder_must_exist(tmp_path, folder, state):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"{folder} {state}; make the folder first"):
        make().save(tmp_path / folder / "out.png")
    assert names(tmp_path) == ["file"]


def test_folder_must_be_writable(tmp_path, monkeypatch):
    def refuse(*, dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write anywhere, so a mode would not do
    with pytest.raises(OutputError, match="Permission denied; give an -o that can be written"):
        make().save(tmp_path / "out.png")


@pytest.mark.parametrize("name", ["x" * 400 + ".png", "a\0b.png"], ids=["too long", "null byte"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match="cannot write"):
        make().save(tmp_path / name)
    assert names(tmp_path) == []


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "out.png").write_text("mine")
    refuse_to_flush(monkeypatch)
    with pytest.raises(OutputError, match=r"No space left on device; free some space") as error:
        make(depth=np.zeros((6, 8), np.float32)).save(tmp_path / "out.png", force=True)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_text() == "mine"


def test_full_disk_at_the_second_file_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"out-1\.png: No space left"):
        make(3).save(tmp_path / "out.png")
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("failing", ["out-0.png", "out-1.png", "out-2.png"])
def test_old_files_come_back_when_a_new_one_cannot_take_its_place(tmp_path, monkeypatch, failing, failure):
    for name in ("out-0.png", "out-2.png"):
        (tmp_path / name).write_text(f"my {name}")
    real, refused = Path.replace, []

    def replace(self, target):
        if Path(target).name == failing and not refused:  # once: what puts the old file back may pass
            refused.append(target)
            raise failure
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt):
        make(3).save(tmp_path / "out.png", force=True)
    assert refused
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: f"my {name}" for name in ("out-0.png", "out-2.png")
    }


def test_replaced_files_leave_nothing_beside_the_new_ones(tmp_path):
    make(3, seed=1).save(tmp_path / "out.png")
    (tmp_path / "out-1.png").unlink()
    (tmp_path / "out-1.png").symlink_to(tmp_path / "out-0.png")
    make(3, seed=2).save(tmp_path / "out.png", force=True)
    assert names(tmp_path) == ["out-0.png", "out-1.png", "out-2.png"]
    assert not (tmp_path / "out-1.png").is_symlink()
    for index, image in enumerate(make(3, seed=2).images):
        with Image.open(tmp_path / f"out-{index}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(image))


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        make(2).save(tmp_path / "out.png")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_files_have_the_modes_of_ordinary_files(tmp_path):
    make().save(tmp_path / "out.png")
    (tmp_path / "ordinary").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert len(modes) == 1

"""The command line: what it prints where, its exit codes, and how its words become arguments."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import framert
from framert.runtime.cameras import Cameras
from framert.runtime.cli import lazy, main
from framert.runtime.cli.values import box, integers, join_negative_values, numbers, size
from framert.runtime.families.onediffusion.task_table import TASKS

COMMANDS = ("tasks", "run", "export", "verify", "inspect", "bench", "kernels")


@pytest.fixture
def call(capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "given.png")
    return folder / "given.png"


def export_with(monkeypatch, **functions):
    """Stand in for framert.export, so that these tests need no torch."""
    monkeypatch.setattr(lazy, "import_module", lambda name: SimpleNamespace(**functions))


def test_version_and_help_go_to_stdout(call):
    assert call("--version") == (0, f"framert {framert.__version__}\n", "")
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert "examples:" in out
    for command in COMMANDS:
        assert f"\n    {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert f"examples:\n  framert {command}" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint' (choose from"),
        (["run"], "required: BUNDLE, TASK, -o/--output; framert run --help"),
        (["run", "b", "t", "-o", "x.png", "--stepz", "3"], "--stepz 3 (did you mean --steps?); framert run --help"),
        (["run", "b", "t", "-o", "x.png", "--step=3"], "unrecognized arguments: --step=3 (did you mean --steps?)"),
        (["tasks", "--js"], "unrecognized arguments: --js"),
        (["run", "b", "t", "-o", "x.png", "--size", "64x"], "'64x' is not a size; give WIDTHxHEIGHT in pixels"),
        (["run", "b", "t", "-o", "x.png", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["run", "b", "t", "-o", "x.png", "--azimuth", "0;20"], "'0;20' is not a list of numbers; give one per camera"),
        (["run", "b", "t", "-o", "x.png", "--color", "cyan"], "'cyan' is not NAME=COLOUR; give such as"),
        (["run", "b", "t", "-o", "x.png", "--box", "cube=1,2,3"], "'cube=1,2,3' is not NAME=LEFT,TOP,RIGHT,BOTTOM"),
        (["run", "b", "t", "-o", "x.png", "--box", "1,2,3,4"], "'1,2,3,4' is not NAME=LEFT,TOP,RIGHT,BOTTOM"),
        (
            ["run", "b", "t", "-o", "x.png", "--extend", "1;2"],
            "'1;2' is not a list of whole numbers, such as 64,0",
        ),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_bad_calls_are_one_line_and_exit_2(call, words, message):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith("framert: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_tasks_lists_every_task(call):
    code, out, err = call("tasks")
    assert (code, err) == (0, "")
    first_words = [line.split()[0] for line in out.splitlines() if line]
    assert first_words[1 : len(TASKS) + 1] == list(TASKS)
    for option in ("--color", "--caption", "--item", "--hole", "--azimuth"):
        assert option in out


def test_tasks_of_a_bundle_say_its_limits(call, golden_bundle):
    code, out, _ = call("tasks", golden_bundle)
    assert code == 0
    assert "native size 512x512, sides in multiples of 16 up to 512 pixels" in out
    code, out, _ = call("tasks", golden_bundle, "--json")
    content = json.loads(out)
    assert content["bundle"] == {
        "family": "onediffusion",
        "native_size": [512, 512],
        "size_multiple": 16,
        "largest_side": 512,
        "most_frames": 32,
        "prompt_tokens": 300,
    }
    assert [row["name"] for row in content["tasks"]] == list(TASKS)
    identity = next(row for row in content["tasks"] if row["name"] == "identity")
    assert (identity["images"], identity["steps"]) == ({"least": 1, "most": 3}, 75)


def test_run_prints_files_and_keeps_the_rest_on_stderr(call, golden_bundle, tmp_path):
    words = ("run", golden_bundle, "text_to_image", "--prompt", "a red cube", "--size", "64x32", "--steps", 2)
    out_file = tmp_path / "out.png"
    code, out, err = call(*words, "--seed", 5, "--guidance", 1, "--threads", 1, "-o", out_file)
    assert (code, out) == (0, f"{out_file}\n")
    assert "text_to_image 64x32, 2 steps of euler, guidance 1, seed 5" in err
    with Image.open(out_file) as image:
        assert image.size == (64, 32)
        settings = json.loads(image.text["framert"])
        pixels = np.asarray(image)
    assert settings["seed"] == 5
    assert settings["bundle"] == golden_bundle.name
    pipe = framert.load(golden_bundle)
    result = pipe.run(
        settings["task"],
        prompt=settings["prompt"],
        size=settings["size"],
        steps=settings["steps"],
        guidance=settings["guidance"],
        seed=settings["seed"],
    )
    np.testing.assert_allclose(pixels, np.asarray(result.images[0]), atol=1)  # threads differ, so may the rounding


def test_reuse_reaches_the_engine(call, golden_bundle, picture, tmp_path):
    words = ("run", golden_bundle, "image_to_depth", "--image", picture, "--steps", 2, "--reuse", 2, "--quiet")
    code, out, err = call(*words, "-o", tmp_path / "out.png")
    assert (code, out) == (2, "")
    assert "reuse is 2, which this backend cannot" in err


def test_quiet_leaves_stderr_empty(call, golden_bundle, tmp_path):
    words = ("run", golden_bundle, "text_to_image", "--prompt", "x", "--size", "32x32", "--steps", 1)
    code, out, err = call(*words, "-o", tmp_path / "out.png", "--quiet")
    assert (code, out, err) == (0, f"{tmp_path / 'out.png'}\n", "")


def test_json_holds_files_settings_and_timings(call, golden_bundle, picture, tmp_path):
    words = ("run", golden_bundle, "image_to_boxes", "--image", picture, "--color", "red cube=cyan", "--size", "32x32")
    code, out, _ = call(*words, "--steps", 1, "--count", 2, "--seed", 3, "-o", tmp_path / "out.webp", "--json")
    assert code == 0
    results = json.loads(out)["results"]
    assert [result["settings"]["seed"] for result in results] == [3, 4]
    for index, result in enumerate(results):
        assert result["files"] == [str(tmp_path / f"out-{index}{suffix}") for suffix in (".webp", ".json")]
        assert set(result["boxes"]) == {"red cube"}
        assert result["timings"]["total"] > 0


def test_cameras_are_spread_over_views_and_stored(call, golden_bundle, picture, tmp_path):
    words = ("run", golden_bundle, "image_to_multiview", "--image", picture, "--size", "32x32", "--steps", 1)
    orbit = ("--azimuth", "-20,0,20", "--elevation", "-5", "--distance", "3", "--focal", "1.5")
    code, out, _ = call(*words, *orbit, "-o", tmp_path / "v.png")
    assert code == 0
    assert out.split() == [str(tmp_path / name) for name in ("v-0.png", "v-1.png")]
    expected = Cameras.orbit([-20, 0, 20], [-5, -5, -5], [3, 3, 3], 1.5)
    with Image.open(tmp_path / "v-0.png") as image:
        stored = Cameras.from_json(image.text["framert"])
    np.testing.assert_array_equal(stored.camera_to_world, expected.camera_to_world)
    np.testing.assert_array_equal(stored.focal, expected.focal)


def test_half_an_orbit_is_refused(call, golden_bundle, tmp_path):
    words = ("run", golden_bundle, "text_to_multiview", "--prompt", "x", "-o", tmp_path / "v.png")
    code, _, err = call(*words, "--azimuth", "0,20")
    assert code == 2
    assert "cameras lack --elevation and --distance" in err


def test_long_prompt_is_one_line_of_warning(call, golden_bundle, tmp_path):
    words = ("run", golden_bundle, "text_to_image", "--size", "32x32", "--steps", 1, "-o", tmp_path / "o.png")
    code, _, err = call(*words, "--prompt", "word " * 400, "--quiet")
    assert code == 0
    assert err.startswith("framert: warning: the prompt has 2010 tokens and the model reads 300")
    assert err.count("\n") == 1


def test_existing_output_is_refused_before_anything_runs(call, golden_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("framert.runtime.cli.run.load", lambda *_, **__: pytest.fail("loaded before the check"))
    (tmp_path / "out.npy").write_text("mine")
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    words = ("run", golden_bundle, "image_to_depth", "--image", tmp_path / "in.png", "-o", tmp_path / "out.png")
    code, _, err = call(*words)
    assert code == 2
    assert "out.npy exists" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", 2, "--seed", 2**63 - 1), "seed 9223372036854775807 and count 2 go beyond the largest seed"),
        (("--seed", 2**63), "seed is 9223372036854775808; give a whole number from 0 to 2^63 - 1"),
        (("--count", 1001), "count is 1001; give a whole number of at least 1 and at most 1000"),
        (("--count", 10**12), "at most 1000"),
        (("--reuse", 0), "reuse is 0; give a whole number of at least 1"),
        (("--reuse", 2), "reuse is 2, but no frame of this request is given"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_counts_and_seeds_are_checked_before_loading(call, golden_bundle, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr("framert.runtime.cli.run.load", lambda *_, **__: pytest.fail("loaded before the check"))
    code, out, err = call("run", golden_bundle, "text_to_image", "--prompt=x", "-o", tmp_path / "out.png", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_export_passes_its_options_on(call, monkeypatch):
    calls = []

    def export(checkpoint, output, **options):
        calls.append((checkpoint, output, options))
        return output

    export_with(monkeypatch, export=export)
    assert call("export", "model", "-o", "m.bundle", "--native-side", 64, "--force") == (0, "m.bundle\n", "")
    assert (
        call("export", "model", "-o", "m.bundle", "--precision", "int8", "--target", "tensorrt", "--unchecked")[0] == 0
    )
    plain = {"native_side": 64, "precision": "fp32", "target": "onnx", "check": True, "force": True, "progress": True}
    other = {"native_side": None, "precision": "int8", "target": "tensorrt", "check": False, "force": False}
    plain, other = plain | {"keep_high": None}, other | {"keep_high": None}
    assert calls == [("model", "m.bundle", plain), ("model", "m.bundle", other | {"progress": True})]


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_verify_exits_1_beyond_the_budget(call, monkeypatch, passed, code):
    report = {"passed": passed, "graphs": {}}
    export_with(monkeypatch, verify=lambda bundle, checkpoint, progress: report, table=lambda report: "a table")
    assert call("verify", "m.bundle", "model") == (code, "a table\n", "")
    got, out, _ = call("verify", "m.bundle", "model", "--json")
    assert (got, json.loads(out)) == (code, report)


@pytest.mark.parametrize("words", [["export", "a", "-o", "b"], ["verify", "a", "b"]], ids=lambda words: words[0])
def test_missing_packages_name_the_extra(call, monkeypatch, words):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(lazy, "import_module", missing)
    code, _, err = call(*words)
    assert code == 2
    expected = f"framert {words[0]} needs torch, which is not installed; pip install 'framert[export]'"
    assert err == f"framert: error: {expected}\n"


def test_interrupt_is_quiet(call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    export_with(monkeypatch, export=interrupt)
    assert call("export", "model", "-o", "m.bundle") == (130, "", "")


def test_errors_of_our_own_are_not_hidden(monkeypatch):
    def crash(*_, **__):
        raise ZeroDivisionError

    export_with(monkeypatch, export=crash)
    with pytest.raises(ZeroDivisionError):
        main(["export", "model", "-o", "m.bundle"])


def test_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "framert", "tasks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_commands_that_only_run_import_no_torch():
    code = (
        "import sys; from framert.runtime.cli import main; main(['tasks']);"
        "print(sorted(set(sys.modules) & {'torch', 'onnx', 'onnxruntime', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_entry_point_of_the_package_is_main():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["framert"].split(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--azimuth", "-20,0"], ["--azimuth=-20,0"]),
        (["--guidance", "-1"], ["--guidance=-1"]),
        (["--size=1x1", "-3"], ["--size=1x1", "-3"]),
        (["-o", "a.png", "--", "-1"], ["-o", "a.png", "--", "-1"]),
        (["--steps", "-o"], ["--steps", "-o"]),
    ],
    ids=str,
)
def test_values_may_begin_with_a_minus(words, expected):
    assert join_negative_values(words) == expected


def test_values_are_read_as_written():
    assert size(" 512X384") == (512, 384)
    assert numbers("0, -20.5,1e1") == [0.0, -20.5, 10.0]
    assert box(" a=b = 1, 2.5,3,4") == ("a=b", (1.0, 2.5, 3.0, 4.0))
    assert integers("64, 0,-8") == [64, 0, -8]

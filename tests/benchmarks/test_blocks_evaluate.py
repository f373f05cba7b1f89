"""The scoring script: exit codes, intervals, paired losses, and what its files hold."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framert.export.inspect import describe, render
from framert.runtime.bench.rows import Environment
from framert.runtime.bundle import Bundle
from framert.runtime.cameras import Cameras

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import cases  # noqa: E402
import comparison  # noqa: E402
import evaluate  # noqa: E402
import floors  # noqa: E402
import frames  # noqa: E402
import intervals  # noqa: E402
import quality_rows  # noqa: E402
import scenes  # noqa: E402
from kept import Kept  # noqa: E402
from measured import Measured  # noqa: E402
from recorded import record  # noqa: E402

sys.path.remove(FOLDER)

RUN = {"first": 0, "scenes": 40, "steps": 12, "guidance": None, "side": 64, "impl": "ort-fp32", "model": "blocks abc"}


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    return evaluate.main()


@pytest.mark.parametrize("damage", ["missing", "no manifest"])
def test_a_bundle_that_cannot_be_opened_is_a_bad_call(damage, tmp_path, monkeypatch, capsys):
    if damage == "no manifest":
        (tmp_path / "some.bundle").mkdir()
    assert call(monkeypatch, tmp_path / "some.bundle", "--scenes", "1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "some.bundle" in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["b", "--compare", "a.json", "b.json"],
        ["--compare", "a.json"],
        ["--compare", "a.json", "b.json", "--rows"],
        ["b", "--floor", "a.json"],
        ["b", "--json", "missing/a.json"],
        ["--compare", "a.json", "b.json", "--record"],
        [str(Path(FOLDER).parents[1] / "models" / "blocks"), "--record"],
        ["b", "--scenes", "0"],
        ["b", "--jobs", "0"],
    ],
    ids=" ".join,
)
def test_a_bad_call_exits_2(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    assert "evaluate.py: error: " in capsys.readouterr().err


def test_pose_errors_keep_small_angles():
    scene = frames.scene_frames(3, 16)
    truth = cases.cameras_of(scene, 2)
    scores = cases._pose_scores(SimpleNamespace(cameras=truth), scene)
    assert (scores["rotation_degrees"], scores["centre_error"]) == (pytest.approx(0, abs=1e-9), pytest.approx(0))
    turn = np.deg2rad(1e-6)  # the cosine of this angle rounds to 1 or its neighbour
    pose = truth.camera_to_world.copy()
    pose[1, :3, :3] @= np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    turned = cases._pose_scores(SimpleNamespace(cameras=Cameras.from_matrices(pose)), scene)
    assert turned["rotation_degrees"] == pytest.approx(1e-6, rel=1e-4)
    assert turned["identity_degrees"] > 1


@pytest.mark.parametrize("task", cases.TASKS)
def test_a_task_needs_only_the_pictures_it_names(task):
    """The truth, given back as the result, can be scored from them, and scores well."""
    scene = frames.scene_frames(5, 32, cases.pictures_of(task))
    case = cases.case_of(task, scene)
    whole = frames.scene_frames(5, 32)
    kind = {"edit": "edited", "image_to_multiview": "view1"}.get(task, "picture")
    if task.startswith("image_to_") and task != "image_to_multiview":
        kind = task.removeprefix("image_to_")
    pixels = np.stack([whole.pictures[kind]] * 2)
    names = [thing.name for thing in scene.story.scene.things]
    result = SimpleNamespace(
        pixels=pixels,
        depth=whole.pictures["depth"][..., 0],
        masks={name: whole.rendering.thing == index for index, name in enumerate(names)},
        boxes=dict(zip(names, cases.maps.boxes_of(whole.rendering, len(names)), strict=True)),
        cameras=cases.cameras_of(scene, 2),
    )
    scores = case.score(result)
    good = {name: value for name, value in scores.items() if name not in intervals.LESS_IS_BETTER}
    assert all(value > 0.9 for value in good.values()), scores
    assert all(value < 1e-3 for name, value in scores.items() if name in intervals.LESS_IS_BETTER), scores


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 200 samples of 40 scenes, about 95 % of the intervals hold the mean they were drawn around."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = intervals.estimate({"psnr": random.normal(3, 1, 40).tolist()}, "psnr")
        assert found.low < found.value < found.high
        held += found.low <= 3 <= found.high
    assert 175 <= held <= 199  # 190 expected; a percentile bootstrap of 40 is a little narrow


@pytest.mark.parametrize(("share", "scenes"), [(0.97, 13), (0.97, 40), (0.6, 13)])
def test_intervals_of_proportions_hold_them_near_1_too(share, scenes):
    """A bootstrap of 13 scenes that all succeed has no width, and misses .97 in two of three samples."""
    random = np.random.default_rng(0)
    found = [intervals.estimate({"success": (random.random(scenes) < share).astype(float)}, "success")
             for _ in range(300)]  # fmt: skip
    assert sum(each.low <= share <= each.high for each in found) >= 0.9 * 300
    assert all(0 <= each.low <= each.value <= each.high <= 1 and each.low < each.high for each in found)
    all_of_18 = intervals.estimate({"success": [1.0] * 18}, "success")
    assert (all_of_18.low, all_of_18.high) == (pytest.approx(0.824, abs=1e-3), 1)


def test_angles_are_medians_and_ratios_are_of_the_whole():
    columns = {"rotation_degrees": [1.0, 2.0, 90.0], "identity_degrees": [10.0, 20.0, 30.0]}
    assert intervals.estimate(columns, "rotation_degrees").value == 2
    assert intervals.estimate(columns, "rotation_over_identity").value == 0.1
    columns = {"error": [0.1, 0.3], "error_of_constant": [0.4, 0.4], "abs_rel": [0.0, 0.0]}
    assert intervals.metrics_of(columns) == [*columns, "error_over_constant"]
    assert intervals.estimate(columns, "error_over_constant").value == pytest.approx(0.5)


def measured(shift=0.0, noise=0.0, impl="ort-fp32", **run):
    """Forty scenes whose scores vary by far more than what is lost between two precisions."""
    random = np.random.default_rng(7)
    psnr, error = random.normal(25, 4, 40), random.uniform(0.02, 0.2, 40)
    wobble = 1 + shift + noise * np.random.default_rng(8).normal(size=40)
    tasks = {
        "inpaint": {"psnr": (psnr / wobble).tolist(), "gain_db": (psnr - 15).tolist()},
        "image_to_depth": {"abs_rel": (error * wobble).tolist()},
    }
    return Measured(RUN | run | {"impl": impl}, tasks)


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [
        (0.0, 0.0, "within"),
        (0.005, 0.001, "within"),
        (0.03, 0.01, "beyond"),
        (0.01, 0.02, "open"),
        (-0.03, 0.01, "within"),
    ],
)
def test_pairs_show_what_single_intervals_hide(shift, noise, verdict):
    reference, other = measured(), measured(shift, noise, "ort-int8")
    for task, metric in (("inpaint", "psnr"), ("image_to_depth", "abs_rel")):
        alone = intervals.estimate(reference.tasks[task], metric)
        assert (alone.high - alone.low) / alone.value > 0.08  # scenes differ far more than precisions
        loss = intervals.relative_loss(reference.tasks[task], other.tasks[task], metric)
        assert loss.verdict == verdict
        assert loss.loss.value == pytest.approx(shift, abs=0.01)
        assert loss.loss.low <= loss.loss.value <= loss.loss.high
    gain = intervals.relative_loss(reference.tasks["inpaint"], other.tasks["inpaint"], "gain_db")
    assert (gain.verdict, gain.loss.value) == ("", 0)


def test_files_can_be_compared(tmp_path, monkeypatch, capsys):
    files = {}
    for name, shift in {"ort-fp32": 0.0, "ort-int8": 0.03, "ov-bf16": 0.002}.items():
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(measured(shift, 0.005, name).as_json()), encoding="utf-8")
    words = ["--compare", *files.values(), "--floor", files["ov-bf16"]]
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "ort-int8: beyond 1% on psnr of inpaint, abs_rel of image_to_depth, so it is not the default" in out
    assert "ov-bf16: no interval lies beyond 1%; largest loss " in out
    assert "| relative loss | 95 % interval | ov-bf16 | |" in out
    assert call(monkeypatch, *words, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    found = content["ort-int8"]["image_to_depth"]["abs_rel"]
    assert found["verdict"] == "beyond"
    assert found["low"] < found["loss"] < found["high"]
    assert content["ov-bf16"]["inpaint"]["gain_db"]["verdict"] == ""


def test_two_models_are_compared_but_not_as_precisions(tmp_path, monkeypatch, capsys):
    files = []
    for name in ("one 0123", "other 4567"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(measured(0.03, model=name).as_json()), encoding="utf-8")
    assert call(monkeypatch, "--compare", *files) == 0
    out = capsys.readouterr().out
    assert "two models, one 0123 and other 4567: the losses are not a precision's" in out
    assert "default" not in out


def test_losses_between_two_models_are_not_recorded(golden_bundle, tmp_path, monkeypatch, capfd):
    pytest.importorskip("onnxruntime")
    words = ("--tasks", "image_to_depth", "--scenes", 2, "--size", 32, "--steps", 1, "--threads", 1, "--jobs", 1)
    alone = tmp_path / "alone.json"
    assert call(monkeypatch, golden_bundle, *words, "--json", alone) == 0
    content = json.loads(alone.read_text())
    content["_run"]["model"] = "another 0123"
    alone.write_text(json.dumps(content))
    alone.with_suffix(".npz").unlink()
    bundle = shutil.copytree(golden_bundle, tmp_path / "copy.bundle")
    before = (bundle / "manifest.json").read_text()
    assert call(monkeypatch, bundle, *words, "--against", alone, "--record") == 2
    assert "and another 0123 are two models: leave them out" in capfd.readouterr().err
    assert (bundle / "manifest.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "a.json"),
        ("{", "a.json"),
        (json.dumps(measured().as_json(summary=True)), "--summary"),
        (json.dumps(measured().as_json() | {"_run": {"impl": "x"}}), "a.json"),
        (json.dumps(measured(steps=30).as_json()), "steps 30"),
    ],
    ids=["list", "half", "summary", "no settings", "other steps"],
)
def test_what_cannot_be_compared_is_refused(content, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(measured().as_json()), encoding="utf-8")
    assert call(monkeypatch, "--compare", tmp_path / "a.json", tmp_path / "b.json") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert says in err


def test_json_keeps_every_scene_and_a_summary_does_not(tmp_path):
    whole = measured()
    (tmp_path / "a.json").write_text(json.dumps(whole.as_json()), encoding="utf-8")
    again = Measured.read(tmp_path / "a.json")
    assert again.run == whole.run
    for task, columns in whole.tasks.items():
        for metric, values in columns.items():
            assert again.tasks[task][metric] == pytest.approx(values, rel=1e-5)
    summary = whole.as_json(summary=True)
    assert set(summary) == set(whole.tasks)
    assert set(summary["inpaint"]["psnr"]) == {"value", "low", "high"}
    assert summary["inpaint"]["scenes"] == 40


def test_scores_with_and_without_intervals_make_tables():
    plain = {"inpaint": {"psnr": 20.0, "gain_db": 2.0, "scenes": 24}}
    assert floors.format_table(plain).splitlines() == [
        "| task | metric | value | floor | | scenes |",
        "|---|---|---|---|---|---|",
        "| inpaint | psnr | 20.000 |  |  | 24 |",
        "| inpaint | gain_db | 2.000 | >= 3 | **not met** | 24 |",
    ]
    full = {"_run": {}, "inpaint": {"psnr": 20.0, "gain_db": {"value": 4.0, "low": 3.5, "high": 4.4}, "scenes": 24}}
    assert floors.format_table(full, floors_only=True).splitlines() == [
        "| task | metric | value | 95 % interval | floor | | scenes |",
        "|---|---|---|---|---|---|---|",
        "| inpaint | gain_db | 4.000 | 3.500 to 4.400 | >= 3 | met | 24 |",
    ]


def test_rows_hold_scores_and_paired_losses():
    reference, other = measured(), measured(0.03, 0.01, "ort-int8")
    environment = Environment.capture(None, threads=2, record=False)
    paired = comparison.Comparison.of(reference, other)
    rows = quality_rows.quality_rows(other, [paired], environment)
    by_key = {(row.impl, row.case.partition(";")[0], row.metric): row for row in rows}
    score = by_key["ort-int8", "inpaint", "psnr"]
    assert (score.n, score.unit) == (40, "dB")
    assert score.p50 == pytest.approx(np.median(other.tasks["inpaint"]["psnr"]))
    low, loss, high = (
        by_key["ort-int8/ort-fp32", "image_to_depth", f"abs_rel_{end}_ratio"]
        for end in ("loss_low", "loss", "loss_high")
    )
    assert 0.01 < low.p50 < loss.p50 < high.p50
    assert loss.n == 40
    assert not any("gain_db_loss" in row.metric for row in rows)  # no continuous metric of its own


def test_an_evaluation_goes_into_the_manifest(golden_bundle, tmp_path):
    bundle = shutil.copytree(golden_bundle, tmp_path / "some.bundle")
    reference, other = measured(), measured(0.03, 0.01, "ort-int8")
    record(bundle, reference, [])
    record(bundle, other, [comparison.Comparison.of(reference, other, measured(0.002, 0.01, "ov-bf16"))])
    found = Bundle.open(bundle).manifest.verified["evaluation"]
    assert set(found) == {"ort-fp32", "ort-int8"}
    assert "losses" not in found["ort-fp32"]
    assert found["ort-int8"]["run"]["scenes"] == 40
    assert set(found["ort-int8"]["tasks"]["inpaint"]["psnr"]) == {"value", "low", "high"}
    assert found["ort-int8"]["losses"]["image_to_depth"]["abs_rel"]["verdict"] == "beyond"
    assert found["ort-int8"]["beyond"] == ["psnr of inpaint", "abs_rel of image_to_depth"]
    assert found["ort-int8"]["floor"]["losses"]["inpaint"]["psnr"]["loss"] == pytest.approx(0.002, abs=0.01)
    lines = render(describe(bundle)).splitlines()
    assert lines[-2] == "  evaluated      ort-fp32, 2 tasks on 40 scenes: no reference"
    largest = found["ort-int8"]["largest"]
    assert lines[-1].startswith(
        f"  evaluated      ort-int8, 2 tasks on 40 scenes: largest loss {largest['loss']:.2%} ("
    )
    assert lines[-1].endswith(f"{largest['metric']} of {largest['task']}, against ort-fp32")


@pytest.mark.slow
def test_a_scenes_velocity_error_is_its_own():
    """Whoever shares a process with a scene, noise and text are the same; the two models differ by a constant."""
    manifest = SimpleNamespace(model=SimpleNamespace(text_width=8))
    truth = SimpleNamespace(manifest=manifest, velocity=lambda sample, *_: sample)
    ours = SimpleNamespace(
        manifest=manifest, velocity=lambda sample, _, text, mask: sample + text.mean((1, 2))[:, None, None, None, None]
    )
    made = [SimpleNamespace(latents=np.full((2, 4, 2, 2), value, np.float32)) for value in (0.1, 0.2, 0.3)]
    exact = Kept({("deblur", scene): each.latents for scene, each in enumerate(made)})

    def errors(part):
        exact.velocity.update(scenes._velocities(truth, exact, "deblur", part))
        results = [made[scene] for scene in part]
        return [each["velocity_error"] for each in scenes._distances(ours, exact, "deblur", results, part)]

    together = errors(range(3))
    assert together == [errors(range(scene, scene + 1))[0] for scene in range(3)]
    assert len(set(together)) == 3
    exact.velocity.clear()
    assert scenes._distances(ours, exact, "deblur", made, range(3)) == [{"latents_psnr": 100.0}] * 3
    assert scenes._distances(ours, exact, "edit", made, range(3)) == [{}] * 3


def test_a_bundle_is_evaluated_in_processes_beside_a_reference(golden_bundle, tmp_path, monkeypatch, capfd):
    """Everything at once: rendering, packing, workers, scoring, pairing. The golden model's scores mean nothing."""
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(FOLDER)  # for the workers
    file, words = tmp_path / "a.json", ("--tasks", "image_to_depth", "camera_pose", "--scenes", 3, "--size", 32)
    given = (golden_bundle, *words, "--steps", 2, "--against", golden_bundle, "--threads", 1, "--json", file)
    assert call(monkeypatch, *given, "--jobs", 2) == 0
    out, err = capfd.readouterr()
    assert "no interval lies beyond 1%; largest loss 0.00% (0.00% to 0.00%)" in out
    assert "scenes 2 to 2 of 3: camera_pose (2/2)" in err
    several = Measured.read(file)
    assert call(monkeypatch, *given, "--jobs", 1) == 0
    assert Measured.read(file) == several  # whoever runs beside a scene, its result is the same
    assert several.tasks["camera_pose"].keys() >= {"rotation_degrees", "centre_error", "latents_psnr"}
    assert set(several.tasks["image_to_depth"]["latents_psnr"]) == {100}
    assert set(several.tasks["image_to_depth"]["velocity_error"]) == {0}
    assert len(several.tasks["image_to_depth"]["error_of_constant"]) == 3
    assert call(monkeypatch, golden_bundle, *words, "--steps", 2, "--against", file, "--jobs", 1) == 0
    assert "0.00% (0.00% to 0.00%)" in capfd.readouterr().out


def test_a_reference_need_not_run_again(golden_bundle, tmp_path, monkeypatch, capfd):
    """What an evaluation alone kept beside its JSON gives the distances that running it again gives."""
    pytest.importorskip("onnxruntime")
    words = ("--scenes", 2, "--size", 32, "--steps", 1, "--threads", 1, "--jobs", 1)
    alone, other = tmp_path / "alone.json", tmp_path / "other.json"
    assert call(monkeypatch, golden_bundle, *words, "--tasks", "image_to_depth", "--json", alone) == 0
    beside = Measured.read(alone)
    kept = Kept.read(alone.with_suffix(".npz"), beside.run)
    moved = {key: value + np.float32(0.01) * value for key, value in kept.velocity.items()}
    shifted = {key: value + np.float32(0.1) * np.ptp(value) for key, value in kept.latents.items()}
    Kept(shifted, moved).write(alone.with_suffix(".npz"), beside.run)
    tasks = ("--tasks", "image_to_depth", "deblur")
    assert call(monkeypatch, golden_bundle, *words, *tasks, "--against", alone, "--json", other) == 0
    found = Measured.read(other).tasks
    assert found["image_to_depth"]["latents_psnr"] == pytest.approx([20, 20], abs=1e-3)
    assert "latents_psnr" not in found["deblur"]  # the reference was not asked for it
    assert not other.with_suffix(".npz").exists()
    capfd.readouterr()
    for wrong, says in (((*words[:4], "--steps", 2), "steps 1"), (words, "of another evaluation")):
        if wrong is words:
            Kept(shifted, moved).write(alone.with_suffix(".npz"), beside.run | {"impl": "other"})
        assert call(monkeypatch, golden_bundle, *wrong, *tasks, "--against", alone) == 2
        assert says in capfd.readouterr().err
    alone.with_suffix(".npz").write_bytes(b"no archive")
    assert call(monkeypatch, golden_bundle, *words, *tasks, "--against", alone) == 2
    assert "holds no latents of an evaluation" in capfd.readouterr().err
    alone.with_suffix(".npz").unlink()
    assert call(monkeypatch, golden_bundle, *words, "--tasks", "image_to_depth", "--against", alone) == 0
    assert "alone.npz is missing, so latents and velocities are not compared" in capfd.readouterr().err

"""Estimates: counted by hand, equal to measured sizes, and docs/jetson.md is made by the command."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from framert.runtime.bundle import Bundle
from framert.runtime.cli import main
from framert.runtime.devices import DEVICES, find_device
from framert.runtime.errors import ConfigError, TaskError
from framert.runtime.estimate import GIB, PUBLISHED, memory, roofline, shape_of, weight_bytes, work_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "jetson.md"


@pytest.fixture
def call(capsys):
    def words(*given):
        code = main([str(word) for word in given])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return words


def measured(case):
    """Return the size of a bundle that was made, GiB, from the committed rows."""
    with (ROOT / "benchmarks" / "results" / "memory_cpu.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "bundle_size" and case in row["case"]]
    return float(rows[-1]["p50"])


def test_parameters_are_those_of_the_published_configuration():
    hidden, depth, kv, ffn, text, condition = 3840, 16, 960, 10240, 2048, 1024
    denoiser = depth * (2 * hidden**2 + 2 * hidden * kv + 3 * hidden * ffn + 2 * hidden + 2 * kv + 32)
    denoiser += 64 * hidden + hidden + hidden * 64 + 64  # into the model and out of it
    assert PUBLISHED.parameters["denoiser"] == denoiser
    assert PUBLISHED.parameters["denoiser"] + PUBLISHED.parameters["conditioner"] == 2_800_389_184
    encoder = 24 * (4 * text * text + 3 * text * 5120) + 32128 * text
    assert PUBLISHED.parameters["text_encoder"] == pytest.approx(encoder, rel=1e-3)  # and its norms
    assert PUBLISHED.ffn == pytest.approx(ffn, rel=1e-3)
    assert condition == min(hidden, 1024)


@pytest.mark.parametrize(
    ("case", "precisions"),
    [
        ("fp32", dict.fromkeys(PUBLISHED.parameters, "fp32")),
        ("denoiser=int4,text_encoder=int8", dict.fromkeys(PUBLISHED.parameters, "int4")),
    ],
    ids=["fp32", "int4"],
)
def test_weights_are_as_large_as_exported_ones(case, precisions):
    total = sum(weight_bytes(PUBLISHED, part, precision) for part, precision in precisions.items()) / GIB
    assert total == pytest.approx(measured(f"weights, {case};"), rel=2e-3)


def test_the_work_of_a_picture_is_counted_by_hand():
    work = work_of("text_to_image", PUBLISHED, text=80)
    made = roofline(PUBLISHED, work, find_device("orin-agx"), "fp16")
    tokens = 2 * 32 * 32
    products = 2 * tokens * 2_477_910_336
    attention = 2 * 16 * (4 * 1024 * 1024 * 3840 + 4 * 1024 * 80 * 3840)
    assert made.products == pytest.approx(50 * products / 1e12)
    assert made.attention == pytest.approx(50 * attention / 1e12)
    assert made.products + made.attention == pytest.approx(536, rel=5e-3)  # as this model's facts have it
    assert 2 * made.seconds == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize(
    ("task", "more", "frames", "calls", "branches"),
    [
        ("text_to_image", {}, 1, 50, 2),
        ("image_to_depth", {"guidance": 1.0, "steps": 7}, 2, 7, 1),
        ("identity", {}, 2, 75, 2),
        ("image_to_multiview", {"views": 3}, 6, 60, 2),
        ("image_to_multiview", {"views": 1}, 4, 60, 2),  # one picture is given, so there are at least two views
        ("camera_pose", {}, 4, 60, 1),
    ],
)
def test_frames_calls_and_branches_are_the_tasks(task, more, frames, calls, branches):
    work = work_of(task, PUBLISHED, **more)
    assert (work.frames, work.calls, work.branches) == (frames, calls, branches)


def test_precisions_change_products_and_not_attention():
    device = find_device("thor")
    work = work_of("text_to_image", PUBLISHED, side=(1024, 1024))
    half, eight, four, fp8 = (roofline(PUBLISHED, work, device, word) for word in ("fp16", "int8", "int4", "fp8"))
    assert half.seconds == four.seconds
    assert eight.seconds == fp8.seconds
    assert half.seconds - eight.seconds == pytest.approx(half.products / device.half - half.products / device.eight)


def test_few_tokens_are_bound_by_reading_weights():
    device = find_device("orin-agx")
    work = work_of("text_to_image", PUBLISHED, side=(64, 64), guidance=1.0, steps=10)
    made = roofline(PUBLISHED, work, device, "fp16")
    assert made.bound == "memory"
    assert made.seconds == pytest.approx(10 * 2 * 2_477_910_336 / (device.bandwidth * 1e9))


def test_memory_in_turn_is_the_largest_part_and_together_the_sum():
    work = work_of("text_to_image", PUBLISHED)
    made = memory(PUBLISHED, work, "fp16")
    assert made.in_turn >= made.weights["denoiser"] + made.step
    assert made.together >= sum(made.weights.values())
    assert made.in_turn < made.together
    padded = memory(PUBLISHED, work, "fp16", padded=True)
    assert padded.logits == 8 * 2 * 32 * 1024 * 1024
    assert padded.in_turn - made.in_turn == padded.logits
    assert memory(PUBLISHED, work, "int4").in_turn < memory(PUBLISHED, work, "int8").in_turn < made.in_turn


@pytest.mark.parametrize("name", DEVICES)
def test_devices_have_sensible_numbers(name):
    device = DEVICES[name]
    assert device.eight == pytest.approx(2 * device.half, rel=0.01)
    assert 1 < device.half < 300
    assert 4 <= device.memory <= 128
    assert device.fp8 == (device.target == "sm_110")
    assert "data sheet" in device.source


def test_a_bundle_is_counted_by_its_files(golden_bundle):
    shape = shape_of(Bundle.open(golden_bundle))
    assert (shape.hidden, shape.depth) == (144, 3)
    assert set(shape.parameters) == {"denoiser", "conditioner", "text_encoder", "vae"}
    size = (golden_bundle / "denoiser.onnx").stat().st_size
    assert shape.parameters["denoiser"] == round(size / 4)  # fp32; the graph itself is counted with its weights


def test_bad_calls(call, golden_bundle):
    assert "give a BUNDLE or --published" in call("estimate")[2]
    assert "give a BUNDLE or --published" in call("estimate", golden_bundle, "--published")[2]
    for words, says in (
        (["--device=orin"], "there is no device 'orin'; choose one of orin-agx"),
        (["--precision=fp8"], "precision is 'fp8'; Jetson AGX Orin 64 GB has fp16, int8, int4"),
        (["--precision=int2", "--memory"], "precision is 'int2'; choose one of"),
        (["--size=500x512"], "sides must be multiples of 16"),
        (["--steps=10", "--steps=0"], "steps is 0"),
        (["--task=nothing"], "there is no task 'nothing'"),
    ):
        code, out, err = call("estimate", "--published", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
    with pytest.raises(ConfigError):
        find_device("")
    with pytest.raises(TaskError):
        work_of("", PUBLISHED)


def test_json_holds_model_devices_and_rows(call):
    code, out, _ = call("estimate", "--published", "--device=orin-nano", "--task=edit", "--size=512x512", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["model"]["hidden"] == 3840
    assert content["devices"][0]["target"] == "sm_87"
    assert [row["precision"] for row in content["rows"]] == ["fp16", "int8", "int4"]


def blocks():
    """Yield (command, the table below it) of the page, for each command that is named in a comment."""
    found = re.findall(r"<!-- framert (estimate [^>]*?) -->\n((?:\|.*\n)*)", PAGE.read_text())
    yield from ((command, table.rstrip("\n")) for command, table in found)


def test_the_page_s_tables_are_made_by_the_command(call):
    commands = list(blocks())
    assert len(commands) >= 5
    for command, table in commands:
        code, out, _ = call(*shlex.split(command))
        assert code == 0
        assert table == out.rstrip("\n"), f"framert {command} says otherwise: run python tests/runtime/test_estimate.py"


def write_tables():
    """Put what the commands print below them, on the page."""
    import contextlib
    import io

    def made(match):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(shlex.split(match[1]))
        return f"<!-- framert {match[1]} -->\n{out.getvalue()}"

    PAGE.write_text(re.sub(r"<!-- framert (estimate [^>]*?) -->\n((?:\|.*\n)*)", made, PAGE.read_text()))


if __name__ == "__main__":
    write_tables()

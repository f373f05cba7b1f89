"""What holds of all families: one object each, no question of the family elsewhere, both in one process."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

import framert
from framert.runtime.cli import main
from framert.runtime.errors import BundleError, ConfigError, TaskError
from framert.runtime.families import DEFAULT, FAMILIES, find_family, find_task
from framert.runtime.pipeline import Pipeline
from framert.runtime.request import Request

ROOT = Path(__file__).parents[3]
# Looking a family up; refusing one that an estimate has no formula for.
ALLOWED = {"runtime/families/__init__.py": 1, "runtime/estimate.py": 1}


def questions(text):
    """The lines of a program that compare a family with something, or match it."""
    asked = (
        node.subject if isinstance(node, ast.Match) else node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare | ast.Match)
    )
    parts = (part for node in asked for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute))
    return sorted({part.lineno for part in parts if getattr(part, "id", getattr(part, "attr", "")) == "family"})


@pytest.fixture
def pipes(univg, open_bundle, golden_bundle):
    """A pipeline of each family, by name."""
    pytest.importorskip("onnxruntime")
    bundle = open_bundle()
    return {
        "onediffusion": framert.load(golden_bundle, threads=1),
        "univg": Pipeline(bundle, univg.NumpyBackend(bundle)),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("if manifest.family == 'univg': pass", [1]),
        ("x = 1\ny = 'univg' != self.family", [2]),
        ("if family not in FAMILIES: pass", [1]),
        ("match manifest.family:\n  case _: pass", [1]),
        ("find_family(manifest.family).layout(manifest)", []),
        ("name == 'x'  # family == 'univg'", []),
    ],
)
def test_questions_of_the_family_are_seen(text, found):
    assert questions(text) == found


@pytest.mark.parametrize("folder", ["runtime", "kernels"])
def test_nothing_asks_for_the_family_but_the_families(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        assert len(questions(path.read_text())) <= ALLOWED.get(place, 0), place


def test_families_are_found_by_name():
    assert DEFAULT in FAMILIES
    for name, family in FAMILIES.items():
        assert find_family(name) is family
        assert family.name == name
    with pytest.raises(BundleError, match=r"the family 'pixart', and this framert has onediffusion, univg"):
        find_family("pixart")


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        (
            "deblur",
            "univg",
            "'deblur' is a task of onediffusion, and this bundle is of the family univg; the tasks are",
        ),
        ("segment", "onediffusion", "'segment' is a task of univg, and this bundle is of the family onediffusion"),
        ("segmnt", "univg", "did you mean segment"),
        (None, "univg", "there is no task None"),
    ],
)
def test_a_task_of_another_family_is_named_as_such(name, family, message):
    with pytest.raises(TaskError, match=message) as caught:
        find_task(name, family)
    assert "text_to_image" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_serves_both(pipes):
    arguments = {"prompt": "a red cube", "steps": 2, "size": (32, 32), "seed": 4}
    alone = {name: pipe.run("text_to_image", **arguments) for name, pipe in pipes.items()}
    engines = {name: pipe.engine() for name, pipe in pipes.items()}
    with engines["onediffusion"], engines["univg"]:
        tickets = {name: engine.submit(Request(task="text_to_image", **arguments)) for name, engine in engines.items()}
        results = {name: ticket.result(60) for name, ticket in tickets.items()}
    for name, result in results.items():
        np.testing.assert_array_equal(result.latents, alone[name].latents)
    assert not np.array_equal(results["univg"].latents, results["onediffusion"].latents)


def test_a_request_of_the_other_family_never_enters_a_call(pipes):
    mine = pipes["univg"].engine()
    ticket = mine.submit(Request(task="text_to_image", prompt="a cube", steps=2, size=(32, 32)))
    with pytest.raises(TaskError, match="'camera_pose' is a task of onediffusion"):
        mine.submit(Request(task="camera_pose", images=[np.zeros((8, 8))] * 2))
    with pytest.raises(TaskError, match="'segment' is a task of univg"):
        pipes["onediffusion"].engine().submit(Request(task="segment", images=[np.zeros((8, 8))], prompt="x"))
    assert ticket.result().latents.shape == (1, 16, 4, 4)


def test_onediffusion_has_one_guidance(pipes):
    message = "image_guidance is 1.5, and this bundle is of onediffusion, which is guided by the prompt alone"
    with pytest.raises(ConfigError, match=message):
        pipes["onediffusion"].run("edit", images=[np.zeros((8, 8))], prompt="x", image_guidance=1.5)
    for extra in ({"boxes": {"a": (0, 0, 1, 1)}}, {"extend": (1, 1, 1, 1)}):
        name = next(iter(extra))
        with pytest.raises(TaskError, match=f"edit does not take {name}.*{name} is for no task of this bundle"):
            pipes["onediffusion"].run("edit", images=[np.zeros((8, 8))], prompt="x", **extra)


@pytest.mark.parametrize("kinds", [{}, {"references": False}, {"conditions": False, "references": False}], ids=str)
def test_tasks_of_a_bundle_are_listed(open_bundle, kinds, capsys):
    bundle = open_bundle(**kinds)
    able = find_family("univg").tasks(bundle.manifest)
    assert main(["tasks", str(bundle.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(able) + 1]] == list(able)
    assert not lines[len(able) + 1]
    listed = "\n".join(lines)
    assert ("--extend" in listed) == ("outpaint" in able)
    assert "--azimuth" not in listed
    assert (
        "this bundle: univg, native size 64x64, sides in multiples of 16 up to 256 pixels,\nat most 1 frame" in listed
    )
    assert main(["tasks", str(bundle.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert [row["name"] for row in rows] == list(able)
    assert [row.get("image_guidance") for row in rows] == [task.image_guidance for task in able.values()]

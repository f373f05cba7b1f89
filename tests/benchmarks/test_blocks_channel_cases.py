"""What UniVG's tasks on Blocks ask of a scene - expressions, edits, extensions, layouts - and how results score."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framert.runtime.families.univg.plan import plan
from framert.runtime.families.univg.task_table import TASKS
from framert.runtime.request import Request

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import channel_cases  # noqa: E402
import channel_edits  # noqa: E402
import channel_samples  # noqa: E402
import referring  # noqa: E402
import scoring  # noqa: E402
from channel_frames import channel_frames, kept_part  # noqa: E402
from heldout import training_stories  # noqa: E402
from intervals import LESS_IS_BETTER  # noqa: E402
from world import COLOURS, sample_scene  # noqa: E402

sys.path.remove(FOLDER)

SIDE = 32
STORIES = training_stories(12)


def test_an_expression_means_the_one_thing_it_says():
    kinds = set()
    for seed in range(60):
        scene = sample_scene(seed)
        found = referring.expressions(scene)
        assert {each.thing for each in found} == set(range(len(scene.things)))
        texts = {each.text: each.thing for each in found}
        assert len(texts) == len(found)
        for each in found:
            kinds.add(each.kind)
            thing, (head, _, anchor) = scene.things[each.thing], each.text.rpartition(" of ")
            if each.kind == "relation":
                side = head.split()[-1]
                words = set(head.split()) - {"the", "thing", side}
                beside = {"left": scene.things[: texts[anchor]], "right": scene.things[texts[anchor] + 1 :]}[side]
                assert [words <= {*other.name.split()} for other in beside].count(True) == 1
                assert thing in beside
            elif each.kind == "place":
                place = {"leftmost": 0, "middle": 1, "rightmost": len(scene.things) - 1}
                assert [place[word] for word in each.text.split() if word in place] == [each.thing]
                continue
            else:
                words = set(each.text.split()) - {"the", "thing"}
                assert sum(words <= {*other.name.split()} for other in scene.things) == 1
            assert words <= {*thing.name.split()}
    assert kinds == {"name", "shape", "colour", "relation", "place"}


def test_an_edit_backwards_undoes_it():
    kinds = set()
    for story in STORIES:
        told, back = channel_edits.changes(story)
        assert told.frames == back.frames[::-1] == ("picture", "edited")
        kinds |= {told.kind, back.kind}
        assert told.instruction != back.instruction
        assert story.edit.before.colour in back.instruction
    assert kinds == {"recolour", "remove", "add"}
    scene = next(story.scene for story in STORIES if len(story.scene.things) == 3)
    first, middle, last = scene.things
    assert channel_edits.place_of(scene, first) == f"left of the {middle.name}"
    assert channel_edits.place_of(scene, middle) == f"between the {first.name} and the {last.name}"
    assert channel_edits.place_of(scene, last) == f"right of the {middle.name}"


def test_what_an_edit_asks_for_is_in_the_frame_it_makes():
    random, kinds = np.random.default_rng(0), set()
    for story in STORIES * 4:
        sample = channel_samples.make_sample("edit", story, SIDE, random)
        pictures = channel_frames(story.seed, SIDE, {"picture", "edited"}).pictures
        words = sample.prompt.split()
        kinds.add(words[1])
        made, shown = (
            {colour: scoring.colour_share(pictures[name], colour) for colour in COLOURS}
            for name in (sample.target, sample.shown)
        )
        first = next(word for word in words if word in COLOURS)
        assert made[first] > shown[first] + 0.01 if words[1] == "add" else made[first] < shown[first] - 0.01
        if words[1] == "make":
            assert made[words[-1]] > shown[words[-1]] + 0.01
    assert kinds == {"make", "remove", "add"}


def test_outpainting_is_given_all_but_one_or_two_sides():
    cuts = set()
    for seed in range(200):
        left, top, right, bottom = kept_part(seed, 64)
        pixels = (left, top, 64 - right, 64 - bottom)
        cut = frozenset(place for place, each in enumerate(pixels) if each)
        assert len(cut) in (1, 2)
        assert all(0.2 * 64 - 1 < pixels[place] < 0.45 * 64 + 1 for place in cut)
        cuts.add(cut)
    assert len(cuts) == 4 + 6


@pytest.mark.parametrize("task", channel_cases.TASKS)
def test_the_truth_scores_well_and_another_scene_does_not(task):
    """From the pictures alone that the case names."""
    for seed in (4, 5, 9):
        frames, other = channel_frames(seed, 64, channel_cases.pictures_of(task)), channel_frames(seed + 20)
        whole = channel_frames(seed)
        case, names = channel_cases.case_of(task, frames), channel_cases.truths_of(task, frames) or ("picture",)
        request = Request(task=task, **case.request)
        prompt = case.request.get("prompt", "")
        assert plan(TASKS[task], TASKS, request).prompt.endswith(prompt)

        def score(pictures, name, case=case, prompt=prompt):
            picture = pictures[name]
            made = {"pixels": picture[None], "depth": picture[..., 0], "masks": {prompt: picture[..., 0] > 0.5}}
            return case.score(SimpleNamespace(**made))

        right, wrong = (
            score(whole.pictures, names[0]),
            score(other.pictures, "mask0" if task == "segment" else names[0]),
        )
        good = {name: value for name, value in right.items() if name not in LESS_IS_BETTER}
        assert all(value > 0.9 for value in good.values()), right
        assert all(value < 1e-3 for name, value in right.items() if name in LESS_IS_BETTER), right
        assert right != wrong


@pytest.mark.parametrize("case", [0, 1, 2])
def test_a_layouts_things_count_in_their_boxes_only(case):
    frames = channel_frames([4, 5, 9][case])
    assert channel_cases.layout_score(frames.pictures["picture"], frames)["hits"] == 1
    moved = np.roll(frames.pictures["picture"], 32, axis=1)
    assert channel_cases.layout_score(moved, frames)["hits"] == 0
    assert channel_cases.layout_score(frames.pictures["layout"] * 0, frames)["hits"] == 0
    everywhere = np.broadcast_to(np.float32(COLOURS[frames.story.scene.things[0].colour]), moved.shape)
    assert channel_cases.layout_score(everywhere, frames)["hits"] == 0

"""Training samples of UniVG on Blocks are laid out, worded and batched as the runtime lays out requests."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framert.runtime.families.univg.family import UniVG, painted
from framert.runtime.families.univg.plan import draw_boxes, plan
from framert.runtime.families.univg.task_table import TASKS
from framert.runtime.request import Request

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("sentencepiece")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import cases  # noqa: E402
import channel_samples  # noqa: E402
import suites  # noqa: E402
import wordpieces  # noqa: E402
from channel_batches import ChannelBatchMaker  # noqa: E402
from channel_frames import FRAME_NAMES, channel_frames, kept_part, layout_boxes, layout_legend  # noqa: E402
from frames import caption  # noqa: E402
from heldout import training_stories  # noqa: E402

sys.path.remove(FOLDER)

SIDE = 32
STORIES = training_stories(12)
FEATURES = np.arange(len(STORIES), dtype=np.float16)[:, None, None].repeat(3, 1).repeat(8, 2)  # tell their scene


def request_of(sample, frames):
    """The request that asks the runtime for what a sample trains, built from the scene alone."""
    story = frames.story
    given = {"task": sample.task, "prompt": sample.prompt.removeprefix(TASKS[sample.task].token).strip()}
    picture = cases.picture_of(frames.pictures["picture"])
    if sample.task == "text_to_image":
        return given
    if sample.task == "layout_to_image":
        given["prompt"] = sample.prompt.rpartition(">")[2].strip()
        return given | {"boxes": layout_boxes(story, frames.rendering), "colors": layout_legend(story)}
    if sample.task == "outpaint":
        left, top, right, bottom = part = kept_part(story.seed, SIDE)
        return given | {"images": [picture.crop(part)], "extend": (left, top, SIDE - right, SIDE - bottom)}
    if sample.task == "identity":
        count = sample.prompt.count("<p>")
        shapes = [thing.shape for thing in story.scene.things[:count]]
        images = [cases.picture_of(frames.pictures[f"reference{index}"]) for index in range(count)]
        words = caption(story.scene, plain=count)
        return given | {"images": images, "captions": [f"a {shape}" for shape in shapes], "prompt": words}
    if sample.task == "inpaint":
        return given | {"images": [picture], "hole": frames.hole}
    return given | {"images": [cases.picture_of(frames.pictures[sample.shown])]}


@pytest.mark.parametrize("task", channel_samples.WEIGHTS)
def test_a_sample_is_laid_out_as_the_runtime_lays_out_its_request(task):
    random = np.random.default_rng(0)
    for story in STORIES[:4]:
        frames = channel_frames(story.seed, SIDE)
        sample = channel_samples.make_sample(task, story, SIDE, random)
        composed = plan(TASKS[task], TASKS, Request(**request_of(sample, frames)))
        assert composed.prompt == sample.prompt
        assert len(composed.references) == sample.prompt.count("<p>")
        images = (draw_boxes(composed, (SIDE, SIDE)),) if composed.boxes else composed.images
        assert [np.array(each).tolist() for each in images] == [
            np.round(255 * frames.pictures[name]).tolist() for name in (sample.shown,) if name
        ]
        masks = [painted(where, (SIDE, SIDE), (4, 4)) for where in (composed.painted, sample.painted)]
        np.testing.assert_array_equal(*masks)
        assert (masks[0].min(), masks[0].max()) == {"edit": (0, 0), "inpaint": (0, 1), "outpaint": (0, 1)}.get(
            task, (1, 1)
        )


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("task", ["text_to_image", "inpaint", "edit", "segment"])
def test_condition_tokens_are_those_the_runtime_gives_the_denoiser(task, patch):
    random = np.random.default_rng(1)
    latents = random.standard_normal((len(STORIES), len(FRAME_NAMES), 16, 4, 4)).astype(np.float16)
    maker = ChannelBatchMaker(latents, FEATURES, STORIES, 16, patch=patch, side=SIDE, seed=0)
    sample = channel_samples.make_sample(task, STORIES[2], SIDE, random)
    composed = plan(TASKS[task], TASKS, Request(**request_of(sample, channel_frames(STORIES[2].seed, SIDE))))
    family, seconds = UniVG(), {}
    job = SimpleNamespace(composition=composed, size=(SIDE, SIDE), patch=patch, noise=lambda: None)
    shown = latents[2, FRAME_NAMES.index(sample.shown or "picture")].astype(np.float32)
    start = family.start(job, SimpleNamespace(encode=lambda pixels, seconds: shown), seconds)
    model = SimpleNamespace(condition_channels=17, patch=patch, max_positions=16)
    blank = np.broadcast_to(family.layout(SimpleNamespace(model=model)).blank, ((4 // patch) ** 2, 17 * patch**2))
    np.testing.assert_array_equal(maker.condition(2, None), blank)
    expected = blank if task == "text_to_image" else start.conditions
    np.testing.assert_array_equal(maker.condition(2, sample), expected)


def test_what_is_trained_is_what_the_runtime_can_do():
    assert set(channel_samples.WEIGHTS) == set(TASKS) == set(suites.SUITES["univg"].tasks)


def test_references_are_of_the_first_things_whose_colours_are_then_not_said():
    random, counts = np.random.default_rng(0), set()
    for story in STORIES * 8:
        prompt = channel_samples.make_sample("identity", story, SIDE, random).prompt
        counts.add(count := prompt.count("<p>"))
        for index, thing in enumerate(story.scene.things):
            assert (thing.name in prompt) == (index >= count)
            assert prompt.count(thing.shape) >= 1 + (index < count)
    assert counts == {1, 2, 3}


def test_the_tokenizer_has_a_piece_for_every_word(tmp_path):
    tokenizer = wordpieces.train_tokenizer(tmp_path, channel_samples.words_of_prompts(), pictures=True)
    random = np.random.default_rng(0)
    assert len(channel_samples.words_of_prompts()) > 80
    for story in STORIES:
        for task in channel_samples.WEIGHTS:
            prompt = channel_samples.make_sample(task, story, SIDE, random).prompt.replace("<p> ", "")
            closed = prompt.count(">") - (task not in ("layout_to_image", "identity")) - prompt.startswith("<lg>")
            words = prompt.replace(",", "").split()
            commas = prompt.count(",")
            assert len(tokenizer.encode(prompt)) == len(words) + commas + closed, prompt


def test_batches_drop_picture_and_mask_together_and_the_prompt_with_them():
    random = np.random.default_rng(0)
    latents = random.standard_normal((len(STORIES), len(FRAME_NAMES), 16, 4, 4)).astype(np.float16)
    maker = ChannelBatchMaker(latents, FEATURES, STORIES, tokens_per_step=3000 * 16, patch=1, side=SIDE, seed=0)
    batch = maker.draw()
    assert batch.samples.shape == batch.target.shape == (3000, 16, 16)
    level = batch.levels[:, None, None] / 1000
    clean = batch.samples - level * batch.target  # sample = clean + level * (noise - clean)
    known = {latent.tobytes() for latent in latents.astype(np.float32).transpose(0, 1, 3, 4, 2).reshape(-1, 256)}
    rounded = clean.half().float().numpy().reshape(3000, -1)
    assert np.mean([row.tobytes() in known for row in rounded[:50]]) > 0.5  # up to a last bit of the sum
    latent, mask = batch.conditions[..., :16], batch.conditions[..., 16]
    blank = (latent == 0).all((1, 2)).logical_and((mask == 1).all(1))
    tasks, empty = np.array(batch.tasks), np.array([prompt == "" for prompt in batch.prompts])
    assert batch.features.shape == (3000, 3, 8)
    assert set(batch.features.unique().tolist()) == set(range(len(STORIES)))
    marks = np.array([prompt.count("<p>") for prompt in batch.prompts])
    assert set(marks[tasks == "identity"]) == {0, 1, 2, 3}  # 0: dropped
    assert not marks[tasks != "identity"].any()
    shown = torch.from_numpy((tasks != "text_to_image") & (tasks != "identity"))
    assert blank[~shown].all()
    assert 0.03 < blank[shown].float().mean() < 0.07
    assert empty[(blank & shown).numpy()].all()
    assert 0.08 < empty[(~blank & shown).numpy()].mean() < 0.13
    edits = ~blank & torch.from_numpy(tasks == "edit")
    assert (mask[edits] == 0).all()
    parts = batch.parts(2)
    assert [len(part.tasks) for part in parts] == [1500, 1500]
    torch.testing.assert_close(torch.cat([part.conditions for part in parts]), batch.conditions)

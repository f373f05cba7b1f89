"""Training UniVG on Blocks: samples are laid out as the runtime lays out requests, and what is trained runs."""

import json
import shutil
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
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("sentencepiece")
pytest.importorskip("onnx")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import cases  # noqa: E402
import channel_cases  # noqa: E402
import channel_edits  # noqa: E402
import channel_samples  # noqa: E402
import channel_transformer  # noqa: E402
import evaluate  # noqa: E402
import gallery  # noqa: E402
import referring  # noqa: E402
import scoring  # noqa: E402
import suites  # noqa: E402
import train  # noqa: E402
import wordpieces  # noqa: E402
from channel_batches import ChannelBatchMaker  # noqa: E402
from channel_frames import FRAME_NAMES, channel_frames, kept_part, layout_boxes, layout_legend  # noqa: E402
from heldout import training_stories  # noqa: E402
from intervals import LESS_IS_BETTER  # noqa: E402
from recipes import RECIPES, Preset  # noqa: E402
from world import COLOURS, sample_scene  # noqa: E402

sys.path.remove(FOLDER)

SIDE = 32
STORIES = training_stories(12)


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
    maker = ChannelBatchMaker(latents, STORIES, 16, patch=patch, side=SIDE, seed=0)
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


def test_what_is_trained_is_what_the_runtime_can_do_but_identity():
    assert set(channel_samples.WEIGHTS) == set(TASKS) - {"identity"} == set(suites.SUITES["univg"].tasks)


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


def test_the_tokenizer_has_a_piece_for_every_word(tmp_path):
    tokenizer = wordpieces.train_tokenizer(tmp_path, channel_samples.words_of_prompts())
    random = np.random.default_rng(0)
    assert len(channel_samples.words_of_prompts()) > 80
    for story in STORIES:
        for task in channel_samples.WEIGHTS:
            prompt = channel_samples.make_sample(task, story, SIDE, random).prompt
            closed = prompt.count(">") - (task != "layout_to_image") - prompt.startswith("<lg>")
            words = prompt.replace(",", "").split()
            commas = prompt.count(",")
            assert len(tokenizer.encode(prompt)) == len(words) + commas + closed, prompt


def test_batches_drop_picture_and_mask_together_and_the_prompt_with_them():
    random = np.random.default_rng(0)
    latents = random.standard_normal((len(STORIES), len(FRAME_NAMES), 16, 4, 4)).astype(np.float16)
    maker = ChannelBatchMaker(latents, STORIES, tokens_per_step=3000 * 16, patch=1, side=SIDE, seed=0)
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
    shown = torch.from_numpy(tasks != "text_to_image")
    assert blank[~shown].all()
    assert 0.03 < blank[shown].float().mean() < 0.07
    assert empty[(blank & shown).numpy()].all()
    assert 0.08 < empty[(~blank & shown).numpy()].mean() < 0.13
    edits = ~blank & torch.from_numpy(tasks == "edit")
    assert (mask[edits] == 0).all()
    parts = batch.parts(2)
    assert [len(part.tasks) for part in parts] == [1500, 1500]
    torch.testing.assert_close(torch.cat([part.conditions for part in parts]), batch.conditions)


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


def test_a_thing_in_the_wrong_place_was_not_added():
    seed = next(seed for seed in range(1, 99, 2)
                if channel_edits.asked_change(channel_frames(seed, 64, set()).story).kind == "add")  # fmt: skip
    frames = channel_frames(seed)
    change = channel_edits.asked_change(frames.story)
    assert channel_cases.edit_score(frames.pictures["picture"], frames, change)["success"] == 1
    assert channel_cases.edit_score(frames.pictures["edited"], frames, change)["success"] == 0
    where = frames.rendering.thing == frames.story.scene.things.index(frames.story.edit.before)
    columns = np.nonzero(where)[1]
    shift = where.shape[1] - 1 - columns.max() if "left of" in change.instruction else -columns.min()
    moved = np.roll(where, shift, 1)[..., None]
    misplaced = np.where(moved, np.roll(frames.pictures["picture"], shift, 1), frames.pictures["edited"])
    assert channel_cases.edit_score(misplaced, frames, change)["success"] == 0


@pytest.mark.parametrize("case", [0, 1, 2])
def test_a_layouts_things_count_in_their_boxes_only(case):
    frames = channel_frames([4, 5, 9][case])
    assert channel_cases.layout_score(frames.pictures["picture"], frames)["hits"] == 1
    moved = np.roll(frames.pictures["picture"], 32, axis=1)
    assert channel_cases.layout_score(moved, frames)["hits"] == 0
    assert channel_cases.layout_score(frames.pictures["layout"] * 0, frames)["hits"] == 0
    everywhere = np.broadcast_to(np.float32(COLOURS[frames.story.scene.things[0].colour]), moved.shape)
    assert channel_cases.layout_score(everywhere, frames)["hits"] == 0


TINY = {
    "univg": {"hidden": 48, "depth": 2, "heads": 3},
    "onediffusion": {"hidden": 48, "depth": 1, "heads": 2, "kv_heads": 1},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny checkpoint after three steps of the script itself, and what trains on or trains another."""
    folder = tmp_path_factory.mktemp("blocks")
    vae = diffusers.AutoencoderKL(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False, sample_size=SIDE, scaling_factor=0.7, shift_factor=0.0,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    presets = {
        family: Preset(side=SIDE, scenes=3, patch=1, tokens_per_step=128, rate=1e-3, steps=50, **sizes)
        for family, sizes in TINY.items()
    }

    def run(family, output, *words):
        given = ("--family", family, "--cache", folder / "cache", "--threads", 1, "-o", folder / output, *words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(RECIPES[family].presets, "cpu", presets[family])
            patch.setattr(sys, "path", [FOLDER, *sys.path])  # for the processes that render
            patch.setattr(sys, "argv", ["train.py", *map(str, given)])
            threads = torch.get_num_threads()
            train.main()
            torch.set_num_threads(threads)
        return torch.load(folder / output / ".train" / "transformer-state.pt")

    run("univg", "univg", "--vae", folder / "vae", "--steps", 3)
    return SimpleNamespace(run=run, base=folder, folder=folder / "univg", preset=presets["univg"])


def test_onediffusions_recipe_trains_by_the_same_script(trained):
    shutil.copytree(trained.base / "vae", trained.base / "frames" / "vae")
    state = trained.run("onediffusion", "frames", "--part", "transformer", "--steps", 2)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["average"].values())
    index = json.loads((trained.base / "frames" / "model_index.json").read_text())
    assert index["_class_name"] == "OneDiffusionPipeline"
    bundled = Path(FOLDER).parents[1] / "models" / "blocks" / "tokenizer"
    made, kept = (wordpieces.load_tokenizer(each) for each in (trained.base / "frames" / "tokenizer", bundled))
    assert [made.id_to_piece(index) for index in range(len(made))] == [kept.id_to_piece(i) for i in range(len(kept))]


def test_training_goes_on_where_it_stopped(trained):
    vae = ("--vae", trained.base / "vae")
    state = trained.run("univg", "once", *vae, "--steps", 4)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["average"].values())
    again = trained.run("univg", "once", *vae, "--steps", 6)
    assert again["step"] == 6
    before, after = state["model"], again["model"]
    still = {name for name in before if torch.equal(before[name], after[name])}
    last = "transformer.transformer_blocks.1.attn"
    assert still == {
        "transformer.pos_embed.pos_embed", "transformer.time_text_embed.text_embedder.linear_1.weight",
        f"{last}.add_q_proj.weight", f"{last}.add_q_proj.bias", f"{last}.norm_added_q.weight",
    }  # fmt: skip


def test_the_checkpoint_loads_into_diffusers_and_gives_the_loss_it_was_trained_with(trained):
    model = diffusers.SD3Transformer2DModel.from_pretrained(trained.folder / "transformer").float()
    tokenizer = wordpieces.load_tokenizer(trained.folder / "tokenizer")
    ours = RECIPES["univg"].model(trained.preset, tokenizer.get_piece_size())
    ours.load(trained.folder)
    random = np.random.default_rng(1)
    latents = random.standard_normal((len(STORIES), len(FRAME_NAMES), 16, 4, 4)).astype(np.float16)
    batch = ChannelBatchMaker(latents, STORIES, 6 * 16, patch=1, side=SIDE, seed=3).draw()
    ids = [torch.tensor([wordpieces.encode(tokenizer, prompt)]) for prompt in batch.prompts]
    with torch.no_grad():
        found = ours.loss(*batch.tensors, channel_transformer.pad([each[0].tolist() for each in ids]))
        for index, own in enumerate(ids):
            text = ours.text_encoder(input_ids=own).last_hidden_state
            grid = torch.cat((batch.samples[index], batch.conditions[index]), dim=-1).T.reshape(1, 33, 4, 4)
            velocity = model(grid, text, torch.zeros(1, 16), batch.levels[index : index + 1]).sample
            error = (velocity[0].flatten(1).T - batch.target[index]).square().mean()
            torch.testing.assert_close(found[index], error, rtol=1e-4, atol=1e-5)


def test_the_checkpoint_exports_runs_and_is_evaluated(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    import framert
    from framert.export.pipeline import export
    from framert.runtime.bundle import Bundle

    bundle = export(trained.folder, tmp_path / "univg.bundle", progress=False)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.family, manifest.native_side, manifest.schedule.static_shift) == ("univg", SIDE, 1.6)
    pipe = framert.load(bundle, threads=1)
    monkeypatch.syspath_prepend(FOLDER)
    words = ("--scenes", 1, "--steps", 1, "--jobs", 1, "--threads", 1)
    wanted = ("image_to_depth", "segment", "edit", "outpaint")
    monkeypatch.setattr(sys, "argv", list(map(str, ["evaluate.py", bundle, *words, "--tasks", *wanted, "--json"])))
    assert evaluate.main() == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores["segment"]) == {"iou", "scenes"}
    assert {"success", "background_psnr"} <= set(scores["edit"])
    assert {"error_over_constant", "abs_rel"} <= set(scores["image_to_depth"])
    monkeypatch.setattr(sys, "argv", list(map(str, ["evaluate.py", bundle, *words, "--tasks", "deblur"])))
    assert evaluate.main() == 2
    assert "deblur; of a univg bundle are evaluated text_to_image" in capsys.readouterr().err
    cards = gallery.cards(pipe, gallery.Options(scenes=1, steps=1, seed=0, solver="euler"))
    assert [card.task for card in cards] == list(channel_cases.TASKS)
    sizes = {shown.image.size for card in cards for shown in card.pictures if shown.label == "made"}
    assert sizes == {(SIDE, SIDE)}
    labels = {card.task: [shown.label for shown in card.pictures] for card in cards}
    assert labels["layout_to_image"] == labels["segment"] == ["given", "made", "truth"]
    assert labels["text_to_image"] == ["made"]


@pytest.mark.parametrize(
    "words",
    [("--part", "decoder"), ("--part", "vae", "--steps", "3"), ("--family", "onediffusion", "--vae", "some")],
    ids=" ".join,
)
def test_a_bad_call_exits_2(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--family", "univg", "-o", str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    assert "train.py: error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_presets_stay_small():
    """With autoencoder (6.9 MB), text encoder (1.1) and tokenizer in half precision within 40 MB."""
    for preset in RECIPES["univg"].presets.values():
        with torch.device("meta"):
            config = channel_transformer.transformer_config(
                preset.hidden, preset.depth, preset.heads, preset.patch, preset.side
            )
            model = channel_transformer.MMDiT(channel_transformer.MMDiTConfig.from_checkpoint(config))
        assert sum(2 * each.numel() for each in model.state_dict().values()) < 31e6

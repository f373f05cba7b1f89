"""Training UniVG on Blocks: the script trains, resumes and refuses; what it makes loads, exports and is evaluated."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("sentencepiece")
pytest.importorskip("onnx")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import autoencoder  # noqa: E402
import channel_cases  # noqa: E402
import channel_transformer  # noqa: E402
import evaluate  # noqa: E402
import gallery  # noqa: E402
import image_encoder  # noqa: E402
import sheet  # noqa: E402
import text_encoder  # noqa: E402
import train  # noqa: E402
import wordpieces  # noqa: E402
from channel_batches import ChannelBatchMaker  # noqa: E402
from channel_frames import FRAME_NAMES  # noqa: E402
from heldout import training_stories  # noqa: E402
from recipes import RECIPES, Preset  # noqa: E402

sys.path.remove(FOLDER)

SIDE = 32
STORIES = training_stories(12)


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
            patch.setattr(image_encoder, "STEPS", 2)
            patch.setattr(text_encoder, "STEPS", 2)
            patch.setattr(sys, "path", [FOLDER, *sys.path])  # for the processes that render
            patch.setattr(sys, "argv", ["train.py", *map(str, given)])
            threads = torch.get_num_threads()
            train.main()
            torch.set_num_threads(threads)
        return torch.load(folder / output / ".train" / "transformer-state.pt")

    run("univg", "univg", "--vae", folder / "vae", "--steps", 3)
    return SimpleNamespace(run=run, base=folder, folder=folder / "univg", preset=presets["univg"], presets=presets)


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
    encoder = text_encoder.load_text_encoder(trained.folder / "text_encoder")
    ours = RECIPES["univg"].model(trained.preset)
    ours.load(trained.folder)
    random = np.random.default_rng(1)
    latents = random.standard_normal((len(STORIES), len(FRAME_NAMES), 16, 4, 4)).astype(np.float16)
    features = random.standard_normal((len(STORIES), 3, 128)).astype(np.float16)
    batch = ChannelBatchMaker(latents, features, STORIES, 12 * 16, patch=1, side=SIDE, seed=3).draw()
    assert any("<p>" in prompt for prompt in batch.prompts)
    ids = [torch.tensor([wordpieces.encode(tokenizer, prompt)]) for prompt in batch.prompts]
    with torch.no_grad():
        padded, mark = text_encoder.pad([each[0].tolist() for each in ids], 40), tokenizer.get_piece_size()
        *tensors, features = batch.tensors
        text = text_encoder.encode_text(encoder, padded, features, mark)
        found = ours.loss(*tensors, text, padded != 0)
        for index, own in enumerate(ids):
            words = encoder.shared(own)
            places = own[0] == mark
            words[0, places] = batch.features[index, : int(places.sum())]
            text = encoder(inputs_embeds=words).last_hidden_state
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
    wanted = ("image_to_depth", "segment", "edit", "outpaint", "identity")
    monkeypatch.setattr(sys, "argv", list(map(str, ["evaluate.py", bundle, *words, "--tasks", *wanted, "--json"])))
    assert evaluate.main() == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores["segment"]) == {"iou", "scenes"}
    assert scores["segment/known"]["scenes"] == 1
    assert {"success", "background_psnr"} <= set(scores["edit"])
    assert {"error_over_constant", "abs_rel"} <= set(scores["image_to_depth"])
    monkeypatch.setattr(sys, "argv", list(map(str, ["evaluate.py", bundle, *words, "--tasks", "deblur"])))
    assert evaluate.main() == 2
    assert "deblur; of a univg bundle are evaluated text_to_image" in capsys.readouterr().err
    options = gallery.Options(scenes=1, steps=1, seed=0, solver="euler")
    cards = gallery.cards(pipe, options)
    assert [card.task for card in cards] == list(channel_cases.TASKS)
    sizes = {shown.image.size for card in cards for shown in card.pictures if shown.label == "made"}
    assert sizes == {(SIDE, SIDE)}
    groups = {"one.bundle": cards, "other.bundle": cards[:3]}
    gallery.write_page(groups, tmp_path, options)
    page, images = (tmp_path / "index.html").read_text(), set((tmp_path / "images").iterdir())
    assert all(f"images/{image.name}" in page for image in images)
    assert len(images) == sum(len(card.pictures) for shown in groups.values() for card in shown)
    assert page.count("<h2 class=bundle>") == 2
    one, both = (sheet.contact_sheet(each).height for each in ({"one.bundle": cards}, groups))
    assert both > one
    labels = {card.task: [shown.label for shown in card.pictures] for card in cards}
    assert labels["layout_to_image"] == labels["segment"] == ["given", "made", "truth"]
    assert labels["text_to_image"] == ["made"]


def test_weights_without_a_state_go_on_at_their_step(trained, tmp_path):
    folder = tmp_path / "univg"
    shutil.copytree(trained.folder, folder)
    shutil.rmtree(folder / ".train")
    (folder / "losses.csv").write_text("step,seconds,cpu_seconds,edit\n50,5,10,0.5\n")
    state = trained.run("univg", folder, "--steps", 52)
    assert (state["step"], state["since"]) == (52, 50)
    assert state["seconds"] > 5
    assert (folder / "losses.csv").read_text().splitlines()[1].startswith("50,5,10,")


def test_an_autoencoder_that_is_there_is_trained_on_only_when_asked(trained, capsys):
    folder = trained.base / "again"
    shutil.copytree(trained.base / "vae", folder / "vae")
    weights = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    trained.run("onediffusion", "again", "--minutes", 0.001)
    assert "vae is there already, and stays; --part vae trains it on" in capsys.readouterr().err
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_an_autoencoder_is_trained_to_its_end_before_a_transformer(trained, tmp_path, monkeypatch):
    """Stopped early, nothing is trained on it; whole, it is followed by the others; on again only by itself."""
    folder = tmp_path / "frames"
    monkeypatch.setattr(autoencoder, "HELD_OUT_SEEDS", range(1))
    sizes = {"vae_channels": (8, 8, 8, 8), "vae_batch": 4, "vae_steps": 3}
    monkeypatch.setitem(trained.presets, "onediffusion", replace(trained.presets["onediffusion"], **sizes))
    with pytest.raises(SystemExit, match="the transformer needs it whole"):
        trained.run("onediffusion", folder, "--minutes", 1e-9)
    assert [path.name for path in (folder / ".train").iterdir()] == ["autoencoder-state.pt"]
    trained.run("onediffusion", folder, "--minutes", 0.02)
    assert torch.load(folder / ".train" / "autoencoder-state.pt")["step"] == 3
    whole = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    trained.run("onediffusion", folder, "--part", "decoder", "--steps", 2)
    assert {path.name for path in (folder / ".train").iterdir()} == {"decoder-state.pt", "transformer-state.pt"}
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() != whole
    trained.run("onediffusion", folder, "--part", "vae", "--steps", 1)
    assert {path.name for path in (folder / ".train").iterdir()} == {"autoencoder-state.pt", "transformer-state.pt"}


def test_steps_that_are_taken_are_not_taken_again(trained, tmp_path, capsys):
    folder = tmp_path / "univg"
    shutil.copytree(trained.folder, folder)
    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    trained.run("univg", folder, "--steps", 3)
    assert "all 3 steps are taken; --steps with a larger number" in capsys.readouterr().err
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_what_learned_from_a_text_encoder_is_not_given_another(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "univg")
    shutil.rmtree(tmp_path / "univg" / "text_encoder")
    with pytest.raises(SystemExit, match=r"is missing, and image_encoder, transformer, .* learned from it"):
        trained.run("univg", tmp_path / "univg", "--vae", trained.base / "vae", "--steps", 4)
    assert not (tmp_path / "univg" / "text_encoder").exists()


def test_a_state_of_another_model_is_refused(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "univg")
    path = tmp_path / "univg" / ".train" / "transformer-state.pt"
    state = torch.load(path)
    state["model"]["text_encoder.shared.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(SystemExit, match="is of another model; delete it"):
        trained.run("univg", tmp_path / "univg", "--vae", trained.base / "vae", "--steps", 4)


def test_a_tokenizer_of_another_checkpoint_is_refused(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "univg")
    shutil.rmtree(tmp_path / "univg" / "tokenizer")
    wordpieces.train_tokenizer(tmp_path / "univg" / "tokenizer", ["a", "word"])
    with pytest.raises(SystemExit, match="text_encoder is of another checkpoint: it knows"):
        trained.run("univg", tmp_path / "univg", "--vae", trained.base / "vae", "--steps", 4)


@pytest.mark.parametrize(
    "words",
    [
        ("--part", "decoder"),
        ("--part", "vae", "--steps", "3"),
        ("--part", "image-encoder", "--steps", "3"),
        ("--part", "text-encoder", "--steps", "3"),
        ("--part", "text-encoder", "--minutes", "3"),
        ("--part", "image-encoder", "--open-ended"),
        ("--family", "onediffusion", "--part", "decoder"),
        ("--family", "onediffusion", "--vae", "some"),
        ("--family", "onediffusion", "--part", "image-encoder"),
    ],
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

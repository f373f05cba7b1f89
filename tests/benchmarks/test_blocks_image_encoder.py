"""The image encoder of Blocks: what it makes of references, on disk and in a bundle; placeholders in the tokenizer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("sentencepiece")
pytest.importorskip("onnx")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import channel_samples  # noqa: E402
import image_encoder  # noqa: E402
import wordpieces  # noqa: E402
from heldout import training_stories  # noqa: E402
from world import COLOURS, SHAPES  # noqa: E402

sys.path.remove(FOLDER)

SIDE = 32
STORIES = training_stories(16)


@pytest.fixture(scope="module")
def references():
    return np.stack([image_encoder.render_references(story.seed, SIDE) for story in STORIES])


def test_references_show_each_thing_of_a_scene_and_no_more(references):
    shown = references.any((2, 3, 4))
    assert shown.sum(1).tolist() == [len(story.scene.things) for story in STORIES]
    assert all((np.diff(row.astype(int)) <= 0).all() for row in shown)


def test_training_makes_colours_and_shapes_known(references, monkeypatch):
    """On so few pictures it learns them by heart; what it then says of them is right far above chance."""
    monkeypatch.setattr(image_encoder, "STEPS", 80)
    monkeypatch.setattr(image_encoder, "HELD_OUT_SEEDS", [story.seed for story in STORIES])
    said, words = [], {word: torch.randn(128, generator=torch.Generator().manual_seed(place))
                       for place, word in enumerate((*COLOURS, *SHAPES))}  # fmt: skip
    encoder = image_encoder.train_image_encoder(references, STORIES, words, seed=0, report=said.append)
    (line,) = said
    colour, shape = float(line.split("colour ")[1].split()[0]), float(line.split("shape ")[1].split()[0])
    assert (colour, shape) > (0.5, 0.5)  # of eight and of four
    features = image_encoder.features_of(encoder, references)
    assert features.shape == (len(STORIES), 3, 128)
    told = np.stack([image_encoder.said_of(story.scene.things[0], words).numpy() for story in STORIES])
    assert np.mean((features[:, 0] - told) ** 2) < 0.7 * np.mean(told**2)
    assert not any(each.requires_grad for each in encoder.parameters())


def test_a_saved_encoder_is_the_same_to_transformers(references, tmp_path):
    from framert.export.families.univg_plan import DEVIATION, MEAN

    torch.manual_seed(0)
    encoder = image_encoder.build_image_encoder(image_encoder.configuration(SIDE))
    image_encoder.save_image_encoder(encoder, tmp_path)
    loaded = image_encoder.load_image_encoder(tmp_path)
    ours = image_encoder.features_of(loaded, references[:2]).astype(np.float32)
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path).float().eval()
    pixels = torch.from_numpy(references[:2].reshape(6, SIDE, SIDE, 3)).permute(0, 3, 1, 2) / 255
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
    with torch.no_grad():
        expected = theirs(pixel_values=(pixels - mean) / deviation).image_embeds.numpy().reshape(2, 3, 128)
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3)  # features are kept in half precision
    assert not list(tmp_path.glob(".part"))


def test_placeholders_have_an_id_of_their_own_in_training_and_in_the_bundle(tmp_path):
    from framert.export.tokenizer import write_tokenizer
    from framert.runtime.tokenizer import Tokenizer

    random = np.random.default_rng(0)
    trained = wordpieces.train_tokenizer(tmp_path, channel_samples.words_of_prompts(), pictures=True)
    write_tokenizer(tmp_path, tmp_path / "tokenizer.json")
    ours, theirs = Tokenizer(tmp_path / "tokenizer.json", 300), transformers.T5Tokenizer.from_pretrained(tmp_path)
    assert ours.placeholder == wordpieces.placeholder_id(trained.get_piece_size())
    for story in STORIES:
        prompt = channel_samples.make_sample("identity", story, SIDE, random).prompt
        ids = wordpieces.encode(trained, prompt)
        assert ids.count(ours.placeholder) == prompt.count("<p>") > 0
        assert ids == ours.encode(prompt) == theirs(prompt).input_ids
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["extra_ids"] + 1 == wordpieces.EXTRA_IDS
    plain = tmp_path / "plain"
    wordpieces.train_tokenizer(plain, channel_samples.words_of_prompts())
    write_tokenizer(plain, plain / "tokenizer.json")
    assert Tokenizer(plain / "tokenizer.json", 300).placeholder is None

"""The text encoder of Blocks: heads that see where words stand, and what words' vectors learn to tell."""

import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
pytest.importorskip("diffusers")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import text_encoder  # noqa: E402
import train  # noqa: E402
import wordpieces  # noqa: E402
import world  # noqa: E402

sys.path.remove(FOLDER)

WORDS, HERE = 15, 7


@pytest.fixture(scope="module")
def bias():
    """(heads, WORDS): what the word at HERE adds to its logits for every word."""
    encoder = text_encoder.make_text_encoder(10)
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    with torch.no_grad():
        attention.relative_attention_bias.weight.copy_(
            text_encoder.order_bias(encoder.config)
        )  # without what is random
        return attention.compute_bias(WORDS, WORDS)[0, :, HERE]


def test_heads_look_before_behind_around_and_at_all_before(bias):
    distance = (torch.arange(WORDS) - HERE).abs().float()
    before, behind = torch.arange(WORDS) <= HERE, torch.arange(WORDS) > HERE
    assert torch.equal(bias[0][before], -distance[before])
    assert torch.equal(bias[1][behind], -distance[behind])
    assert torch.equal(bias[2], -distance / 2)
    assert torch.equal(bias[3][before], torch.zeros(HERE + 1))
    assert (bias[0][~before] == -4).all()
    assert (bias[1][~behind] == -4).all()
    assert (bias[3][~before] == -4).all()


def test_order_changes_what_a_new_encoder_gives():
    """Attention's own part of it: the same words in another order give a word another vector."""
    torch.manual_seed(0)
    encoder = text_encoder.make_text_encoder(20).eval()
    blind = text_encoder.make_text_encoder(20).eval()
    blind.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        blind.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        moved = []
        for each in (encoder, blind):
            first, second = (
                each(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in ([5, 6, 7, 8], [8, 6, 7, 5])
            )
            moved.append(float((first[1] - second[1]).norm() / first[1].norm()))
    assert moved[1] < 1e-5 < 0.05 < moved[0]


MARK = 7  # stands for a picture: behind the words, as in the tokenizer


def prompts(random):
    """ "word word <picture> word" and the like, without end."""
    while True:
        ids = random.integers(3, MARK, size=int(random.integers(2, 6))).tolist()
        shown = [] if random.random() < 0.5 else [tuple(random.integers(3, MARK, size=2).tolist())]
        if shown:
            ids[int(random.integers(len(ids)))] = MARK
        yield text_encoder.Prompt([*ids, 1], tuple(shown))


def test_vectors_learn_to_tell_the_words_around_and_their_place(monkeypatch, tmp_path):
    monkeypatch.setattr(text_encoder, "STEPS", 120)
    monkeypatch.setattr(text_encoder, "BATCH", 32)
    torch.manual_seed(0)
    encoder, said = text_encoder.make_text_encoder(MARK), []
    text_encoder.train_text_encoder(encoder, prompts(np.random.default_rng(0)), MARK, report=said.append)
    (line,) = said
    own, near, far, place = (float(word) for word in re.findall(r"\d\.\d{3}", line))
    assert min(own, place) > 0.9
    assert min(near, far) > 0.7  # four words, and nothing beyond the ends: untrained vectors tell about half
    assert not any(each.requires_grad for each in encoder.parameters())
    text_encoder.save_text_encoder(encoder, tmp_path)
    kept = text_encoder.load_text_encoder(tmp_path)
    assert not any(each.requires_grad for each in kept.parameters())
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 4, 3, 1]])
        torch.testing.assert_close(kept(ids).last_hidden_state, encoder(ids).last_hidden_state, rtol=0, atol=1e-2)


def test_features_enter_at_placeholders_in_order():
    encoder = text_encoder.make_text_encoder(MARK)
    features = torch.randn(2, 2, text_encoder.WIDTH)
    ids = torch.tensor([[MARK, 4, MARK, 1], [4, 5, 1, 0]])
    words = text_encoder.embed(encoder, ids, features, MARK)
    assert torch.equal(words[0, 0], features[0, 0])
    assert torch.equal(words[0, 2], features[0, 1])
    assert torch.equal(words[0, 1], encoder.shared.weight[4])
    assert torch.equal(words[1], encoder.shared(ids[1]))


@pytest.mark.parametrize("family", ["onediffusion", "univg"])
def test_prompts_are_those_of_the_family_and_say_what_pictures_show(family, tmp_path):
    given = SimpleNamespace(family=family, output=tmp_path, seed=0, scenes=8)
    tokenizer = train.open_tokenizer(given)
    preset, mark = train.RECIPES[family].presets["cpu"], wordpieces.placeholder_id(tokenizer.get_piece_size())
    drawn = list(itertools.islice(train.prompts(given, preset, tokenizer), 120))
    assert all(prompt.ids.count(mark) == len(prompt.shown) for prompt in drawn)
    assert any(prompt.shown for prompt in drawn) == train.RECIPES[family].image_encoder
    assert all(tokenizer.unk_id() not in prompt.ids for prompt in drawn)
    assert max(len(prompt.ids) for prompt in drawn) <= text_encoder.PLACES
    words = {tokenizer.id_to_piece(piece)[1:] for prompt in drawn for pair in prompt.shown for piece in pair}
    assert words <= {*world.COLOURS, *world.SHAPES}

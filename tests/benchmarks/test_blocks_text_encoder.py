"""The text encoder of Blocks: heads that see where words stand, and what words' vectors learn to tell."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
pytest.importorskip("diffusers")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import encoders  # noqa: E402
import text_encoder  # noqa: E402
import wordpieces  # noqa: E402
from heldout import novelty_of, training_stories  # noqa: E402
from recipes import RECIPES  # noqa: E402
from transformer import TEXT_LENGTH  # noqa: E402
from world import COLOURS as COLOUR_NAMES  # noqa: E402
from world import FIRST_TRAINING_SEED  # noqa: E402
from world import SHAPES as SHAPE_NAMES  # noqa: E402

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


COLOURS, SHAPES, MARK = (3, 4), (5, 6), 7  # ids of words; MARK stands for a picture, behind the words


def prompts(random):
    """ "colour shape colour shape" and the like, some with a picture for a colour, without end."""
    while True:
        ids, shown = [], []
        for _ in range(int(random.integers(1, 4))):
            thing = (int(random.choice(COLOURS)), int(random.choice(SHAPES)))
            if random.random() < 0.3:
                ids += [MARK, thing[1]]
                shown.append(thing)
            else:
                ids += thing
        yield text_encoder.Prompt([*ids, 1], tuple(shown))


def pictures(random):
    """Prompts of one picture, its shape and the end: a third of what they are to tell is its colour."""
    while True:
        thing = (int(random.choice(COLOURS)), int(random.choice(SHAPES)))
        yield text_encoder.Prompt([MARK, thing[1], 1], (thing,))


@pytest.fixture(scope="module")
def learned():
    """Encoders after a short training with what was reported, by what is measured: prompts and pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "STEPS", 120)
        patch.setattr(text_encoder, "BATCH", 32)
        made = {}
        for measured in (prompts, pictures):
            said = []
            told, others = prompts(np.random.default_rng(0)), measured(np.random.default_rng(1))
            encoder = text_encoder.train_text_encoder(MARK, told, others, MARK, seed=0, report=said.append)
            (line,) = said
            made[measured] = (encoder, [float(word) for word in re.findall(r"\d\.\d{3}", line)])
    return made


def test_vectors_learn_to_tell_the_words_around_and_their_place(learned):
    own, near, far, place = learned[prompts][1]
    assert min(own, near, far, place) > 0.8  # untrained vectors tell about half of what is around
    colours = 3 * learned[pictures][1][0] - 2  # where shape and end are always told
    assert colours > 0.8  # of two


def test_a_things_vector_tells_its_colour(learned):
    """What was not so where the encoder learned beside the transformer: there it moved by less than a thousandth."""
    encoder = learned[prompts][0]
    vectors = encoder(torch.tensor([[3, 5, 4, 6, 1], [4, 5, 3, 6, 1]])).last_hidden_state
    thing = vectors[:, 1]
    assert (thing[0] - thing[1]).norm() > 0.05 * thing[0].norm()


def test_training_repeats_itself(learned):
    one, other = (learned[measured][0].state_dict() for measured in (prompts, pictures))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_encoder_stays_as_it_is(learned, tmp_path):
    encoder = learned[prompts][0]
    text_encoder.save_text_encoder(encoder, tmp_path / "text_encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["text_encoder"]
    kept = text_encoder.load_text_encoder(tmp_path / "text_encoder")
    assert not any(each.requires_grad for made in (encoder, kept) for each in made.parameters())
    ids = torch.tensor([[3, 5, 4, 6, 1]])
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


@pytest.fixture
def made(request, tmp_path):
    """The encoders of a new checkpoint of a family, of which none is trained yet."""
    recipe = RECIPES[request.param]
    return encoders.Encoders(recipe, recipe.presets["cpu"], tmp_path, tmp_path, training_stories(8), 0, 1, print)


@pytest.mark.parametrize("made", ["onediffusion", "univg"], indirect=True)
def test_prompts_are_those_of_the_family_in_known_words(made):
    told = encoders.prompts(made.recipe, made.preset, made.stories, made.tokenizer, 0)
    drawn = list(itertools.islice(told, 200))
    mark = wordpieces.placeholder_id(made.tokenizer.get_piece_size())
    assert all(prompt.ids.count(mark) == len(prompt.shown) for prompt in drawn)
    assert any(prompt.shown for prompt in drawn) == made.recipe.image_encoder
    assert all(made.tokenizer.unk_id() not in prompt.ids for prompt in drawn)
    assert max(len(prompt.ids) for prompt in drawn) <= TEXT_LENGTH <= text_encoder.PLACES


@pytest.fixture
def spoken(made):
    """Return 3,000 prompts as words, pictures as <p>, drawn with or without exchanged words."""
    words = {piece: made.tokenizer.id_to_piece(piece)[1:] for piece in range(len(made.tokenizer))}

    def draw(exchange):
        told = encoders.prompts(made.recipe, made.preset, made.stories, made.tokenizer, 0, exchange=exchange)
        return [" ".join(words.get(piece, "<p>") for piece in prompt.ids) for prompt in itertools.islice(told, 3000)]

    return draw


@pytest.mark.parametrize("made", ["onediffusion", "univg"], indirect=True)
def test_words_are_exchanged_but_what_is_held_out_is_never_named(spoken):
    plain, exchanged = spoken(False), spoken(True)
    colours, shapes = "|".join(COLOUR_NAMES), "|".join(SHAPE_NAMES)
    things = [re.findall(rf"(?=\b((?:{colours}) (?:{shapes}))\b)", text) for text in exchanged]
    assert not any(map(novelty_of, things))
    usual = {thing for text in plain for thing in re.findall(rf"\b(?:{colours}) (?:{shapes})\b", text)}
    assert len(set().union(*things) - usual) >= 5  # of eight stories
    strange = [len(re.findall(rf"\b(?:{colours}) (?:a|and|on|{colours})\b", " ".join(each)))
               for each in (plain, exchanged)]  # fmt: skip
    assert strange[0] == 0 < 20 < strange[1]


@pytest.mark.parametrize("made", ["univg"], indirect=True)
def test_what_a_picture_shows_is_told_in_words_that_stay(spoken):
    allowed = {text for text in spoken(False) if "<p>" in text}
    shown = [text for text in spoken(True) if "<p>" in text]
    assert len(shown) > 100
    assert sum(text in allowed for text in shown) > 0.9 * len(shown)  # few stories: other draws say the same


@pytest.mark.parametrize("made", ["univg"], indirect=True)
def test_what_pictures_show_is_said_in_the_prompts_order(made):
    story = next(story for story in made.stories if len(story.scene.things) == 3)
    told = encoders.prompts(made.recipe, made.preset, [story], made.tokenizer, 0)
    prompt = next(prompt for prompt in told if len(prompt.shown) == 3)
    words = [tuple(made.tokenizer.id_to_piece(piece)[1:] for piece in pair) for pair in prompt.shown]
    assert words == [(thing.colour, thing.shape) for thing in story.scene.things]


def test_held_out_stories_are_never_trained_on():
    held = {story.seed for story in encoders.held_out_stories(20)}
    assert held.isdisjoint(story.seed for story in training_stories(20))
    assert max(held) < FIRST_TRAINING_SEED

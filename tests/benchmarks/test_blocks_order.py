"""The text encoder of Blocks begins with heads that see where words stand."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import folder  # noqa: E402

sys.path.remove(FOLDER)

WORDS, HERE = 15, 7


@pytest.fixture(scope="module")
def bias():
    """(heads, WORDS): what the word at HERE adds to its logits for every word."""
    encoder = folder.make_text_encoder(10)
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    with torch.no_grad():
        attention.relative_attention_bias.weight.copy_(folder.order_bias(encoder.config))  # without what is random
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
    encoder = folder.make_text_encoder(20).eval()
    blind = folder.make_text_encoder(20).eval()
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

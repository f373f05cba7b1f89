"""The text encoder of Blocks: a small T5 that says of every word which words stand around it, and where it stands.

It is trained before the transformer, on prompts alone, and then kept, as the published models keep theirs: which colour
belongs to which thing is said by order only. Encoders that learned beside the transformer gave "cube" the same vector
in "a red cube and a blue sphere" and in "a blue cube and a red sphere", so that it could only be guessed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel
from wordpieces import EXTRA_IDS

WIDTH = 128
REACH = 4  # words to either side that a word's vector tells; a thing's colour is one away, its neighbour's four
PLACES = 48  # that a word can stand at; words behind them would count as at the last
STEPS, BATCH, RATE = 600, 128, 2e-3
MEASURED_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids: of the pieces, the end token last; shown: for each placeholder, in order, the ids of the words (colour,
    shape) of what its picture shows."""

    ids: list[int]
    shown: tuple[tuple[int, int], ...] = ()


def pad(rows: Sequence[list[int]], multiple: int) -> Tensor:
    """Return ids (batch, longest, rounded up to a multiple) with 0 behind the shorter ones."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def make_text_encoder(pieces: int) -> T5EncoderModel:
    """Return a small T5 encoder for ``pieces`` word pieces, untrained, that begins with a sense of order."""
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=pieces + EXTRA_IDS, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=3, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    table = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        table.add_(order_bias(encoder.config))
    return encoder


def order_bias(config: T5Config) -> Tensor:
    """Return what is added to the relative biases (buckets, heads) that T5 begins with, which see hardly any order.

    Four heads look at the words before, the words behind, the words around, and at all words before.
    """
    half = config.relative_attention_num_buckets // 2
    reach = torch.arange(half).clamp(max=half // 2).float()  # single distances first, then ever wider buckets
    near, never = -reach, torch.full((half,), -4.0)
    before, behind = [near, never, near / 2, 0 * reach], [never, near, near / 2, never]  # keys behind come second
    return torch.cat((torch.stack(before, 1), torch.stack(behind, 1)))


def embed(encoder: T5EncoderModel, ids: Tensor, features: Tensor, placeholder: int) -> Tensor:
    """Return the vectors (batch, length, WIDTH) that enter the encoder: words', and features at placeholders.

    ids: (batch, length); features: (batch, references, WIDTH), of the prompt's placeholders in order.
    """
    placed = (ids == placeholder).unsqueeze(-1)
    order = (placed.cumsum(1) - 1).clamp(0, features.shape[1] - 1)
    shown = features.gather(1, order.expand(-1, -1, features.shape[2]))
    return torch.where(placed, shown, encoder.shared(ids))


def encode_text(encoder: T5EncoderModel, ids: Tensor, features: Tensor, placeholder: int) -> Tensor:
    """Return the vectors (batch, length, WIDTH) of prompts; arguments as of ``embed``."""
    words = embed(encoder, ids, features, placeholder)
    vectors: Tensor = encoder(inputs_embeds=words, attention_mask=(ids != 0).long()).last_hidden_state
    return vectors


def feature_of(words: Tensor) -> Tensor:
    """Return the feature (..., WIDTH) of a picture whose colour's and shape's vectors are ``words`` (..., 2, WIDTH)."""
    return words.sum(-2) * 0.5**0.5


def train_text_encoder(
    pieces: int,
    prompts: Iterator[Prompt],
    measured: Iterator[Prompt],
    placeholder: int,
    *,
    seed: int,
    report: Callable[[str], None],
) -> T5EncoderModel:
    """Return an encoder from each of whose vectors one matrix tells the words around a word and its place.

    Placeholders stand for pictures: there the colour is to be told, because the prompt leaves it out. It is trained on
    the CPU, which is fast enough for so small a model.

    Args:
        prompts: to learn from, without end. measured: others, of which is reported how many words are told right.
        placeholder: the id that a picture's feature stands at.
    """
    torch.manual_seed(seed)
    encoder, telling = make_text_encoder(pieces), Telling(pieces + EXTRA_IDS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *telling.parameters()], lr=RATE, betas=(0.95, 0.98))
    # the schedule moves the first beta, too, from 0.95 to 0.85 and back
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.1)
    for _ in tqdm(range(STEPS), desc="text encoder", unit="step"):
        ids, features, told = _batch(encoder, prompts, placeholder)
        loss, _ = telling(encode_text(encoder, ids, features, placeholder), ids, told)
        loss.backward()
        nn.utils.clip_grad_norm_([*encoder.parameters(), *telling.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    encoder.eval().requires_grad_(False)
    own, near, far, place = _measure(encoder, telling, measured, placeholder)
    report(
        f"text encoder: words right: own {own:.3f}, next {near:.3f}, up to {REACH} away {far:.3f}; place {place:.3f}"
    )
    return encoder


class Telling(nn.Module):
    """What a word's vector is to tell, by one matrix; needed for training only."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words
        self.linear = nn.Linear(WIDTH, (2 * REACH + 1) * words + PLACES)

    def forward(self, vectors: Tensor, ids: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the shares (4,) told right of: own words, next words, all around, places.

        vectors: (batch, length, WIDTH); ids, told: (batch, length), of which ``told`` has a word for placeholders.
        """
        here = ids != 0
        count = 2 * REACH + 1
        around = functional.pad(told, (REACH, REACH)).unfold(1, count, 1)[here]  # (words, count), 0 beyond the ends
        places = torch.arange(ids.shape[1]).clamp(max=PLACES - 1).expand_as(ids)[here]
        logits = self.linear(vectors[here])
        said = logits[:, : count * self.words].unflatten(1, (count, self.words))
        where = logits[:, count * self.words :]
        loss = functional.cross_entropy(said.flatten(0, 1), around.flatten()) + functional.cross_entropy(where, places)
        right = (said.argmax(-1) == around).float().mean(0)
        near = right[[REACH - 1, REACH + 1]].mean()
        place = (where.argmax(-1) == places).float().mean()
        return loss, torch.stack((right[REACH], near, right.mean(), place)).detach()


def save_text_encoder(encoder: T5EncoderModel, folder: Path) -> None:
    """Write config.json and fp16 safetensors as transformers does."""
    part = folder.with_name(".text_encoder")  # a stop leaves the whole encoder or none
    shutil.rmtree(part, ignore_errors=True)
    copy = T5EncoderModel(encoder.config)
    copy.load_state_dict(encoder.state_dict())
    copy.half().save_pretrained(part)
    part.rename(folder)


def load_text_encoder(folder: Path) -> T5EncoderModel:
    """Return the encoder of a folder in fp32, not to be trained."""
    return T5EncoderModel.from_pretrained(folder).float().eval().requires_grad_(False)


@torch.no_grad()
def _measure(
    encoder: T5EncoderModel, telling: Telling, prompts: Iterator[Prompt], placeholder: int
) -> tuple[float, float, float, float]:
    """Return the shares of words told right: own, next, all around, places."""
    found = []
    for _ in range(MEASURED_BATCHES):
        ids, features, told = _batch(encoder, prompts, placeholder)
        found.append(telling(encode_text(encoder, ids, features, placeholder), ids, told)[1])
    own, near, far, place = torch.stack(found).mean(0).tolist()
    return own, near, far, place


def _batch(encoder: T5EncoderModel, prompts: Iterator[Prompt], placeholder: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and what they tell (batch, length), and features (batch, references, WIDTH)."""
    drawn = [next(prompts) for _ in range(BATCH)]
    ids = pad([prompt.ids for prompt in drawn], 4)
    told = ids.clone()
    most = max(1, *(len(prompt.shown) for prompt in drawn))
    shown = torch.zeros(BATCH, most, 2, dtype=torch.long)
    for row, prompt in enumerate(drawn):
        if prompt.shown:
            pairs = torch.tensor(prompt.shown)
            shown[row, : len(pairs)] = pairs
            told[row, ids[row] == placeholder] = pairs[:, 0]
    return ids, feature_of(encoder.shared(shown)), told

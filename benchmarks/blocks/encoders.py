"""The tokenizer and the encoders of a checkpoint of Blocks: read from its folder, or made where it has none yet."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from dataset import open_pictures
from frames import Story, tell
from heldout import novelty_of
from image_encoder import REFERENCES, features_of, load_image_encoder, save_image_encoder, train_image_encoder
from numpy.typing import NDArray
from recipes import Preset, Recipe
from sentencepiece import SentencePieceProcessor
from text_encoder import Prompt, load_text_encoder, save_text_encoder, train_text_encoder
from transformers import T5EncoderModel
from wordpieces import EXTRA_IDS, encode, load_tokenizer, placeholder_id, train_tokenizer
from world import COLOURS, GROUNDS, SHAPES

from framert.export.families.univg_plan import ImageEncoder

EXCHANGED = 0.4  # of the words for colours, shapes and grounds, in every other prompt that a text encoder learns from
LEARNED_FROM_TEXT = ("image_encoder", "transformer", ".train/transformer-state.pt")  # fit one text encoder only


@dataclass(frozen=True)
class Encoders:
    """Those of ``folder``; missing ones are trained when they are first asked for, on ``stories``.

    cache: folder of rendered pictures. Whoever finds a part that others were trained with missing ends the program.
    """

    recipe: Recipe
    preset: Preset
    folder: Path
    cache: Path
    stories: Sequence[Story]
    seed: int
    threads: int
    report: Callable[[str], None]

    @cached_property
    def tokenizer(self) -> SentencePieceProcessor:
        folder = self.folder / "tokenizer"
        if (folder / "spiece.model").exists():
            return load_tokenizer(folder)
        return train_tokenizer(folder, self.recipe.words(), pictures=self.recipe.image_encoder)

    @cached_property
    def text_encoder(self) -> T5EncoderModel:
        folder, pieces = self.folder / "text_encoder", self.tokenizer.get_piece_size()
        if not folder.exists():
            if built := [name for name in LEARNED_FROM_TEXT if (self.folder / name).exists()]:
                sys.exit(
                    f"error: {folder} is missing, and {', '.join(built)} in {self.folder} learned from it; put it "
                    "back, or give another output folder"
                )
            told = prompts(self.recipe, self.preset, self.stories, self.tokenizer, self.seed, exchange=True)
            others = prompts(self.recipe, self.preset, held_out_stories(), self.tokenizer, self.seed)
            mark = placeholder_id(pieces)
            encoder = train_text_encoder(pieces, told, others, mark, seed=self.seed, report=self.report)
            save_text_encoder(encoder, folder)
        encoder = load_text_encoder(folder)
        if encoder.config.vocab_size != pieces + EXTRA_IDS:
            known = encoder.config.vocab_size - EXTRA_IDS
            sys.exit(f"error: {folder} is of another checkpoint: it knows {known} word pieces, the tokenizer {pieces}")
        return encoder

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        folder = self.folder / "image_encoder"
        if not (folder / "config.json").exists():
            vectors = self.text_encoder.shared.weight
            words = {word: vectors[self.tokenizer.encode(word)[0]] for word in (*COLOURS, *SHAPES)}
            encoder = train_image_encoder(self._references(), self.stories, words, seed=self.seed, report=self.report)
            save_image_encoder(encoder, folder)
        return load_image_encoder(folder)

    def features(self) -> NDArray[np.float16] | None:
        """Return (stories, references, text width): what stands for the stories' references in prompts, if anything."""
        return features_of(self.image_encoder, self._references()) if self.recipe.image_encoder else None

    def _references(self) -> NDArray[np.uint8]:
        seeds = [story.seed for story in self.stories]
        return open_pictures(self.cache, seeds, self.preset.side, workers=self.threads, kind=REFERENCES)


def held_out_stories(scenes: int = 1000) -> list[Story]:
    """Return stories that training never shows, with held-out things and pairs among them."""
    return [tell(seed) for seed in range(scenes)]


def prompts(
    recipe: Recipe,
    preset: Preset,
    stories: Sequence[Story],
    tokenizer: SentencePieceProcessor,
    seed: int,
    *,
    exchange: bool = False,
) -> Iterator[Prompt]:
    """Yield prompts of stories without end. All tasks' words have to be told, so how often is as good as any.

    With ``exchange``, in every other prompt without pictures some of the words for colours, shapes and grounds are
    exchanged for others of them: an encoder that has learned what usually stands beside a word is unsure of the word
    itself where it stands beside another, as in a thing that was held out.
    """
    random, mark = np.random.default_rng(seed), placeholder_id(tokenizer.get_piece_size())
    words = {word: tokenizer.encode(word)[0] for word in (*COLOURS, *SHAPES)}
    names = {tokenizer.encode(word)[0]: word for word in (*COLOURS, *SHAPES, *GROUNDS)}
    for number in count():
        story = stories[int(random.integers(len(stories)))]
        ids = encode(tokenizer, recipe.prompt(story, preset, random))
        shown = story.scene.things[: ids.count(mark)]
        if exchange and number % 2 and not shown:
            ids = _exchanged(ids, names, random)
        yield Prompt(ids, tuple((words[thing.colour], words[thing.shape]) for thing in shown))


def _exchanged(ids: list[int], names: Mapping[int, str], random: np.random.Generator) -> list[int]:
    """Return ids with EXCHANGED of those in ``names`` drawn anew; as they were where that names what is held out."""
    drawn, chances = random.choice(list(names), len(ids)).tolist(), random.random(len(ids))
    made = [
        other if piece in names and chance < EXCHANGED else piece
        for piece, other, chance in zip(ids, drawn, chances, strict=True)
    ]
    said = pairwise(names.get(piece) for piece in made)
    things = [f"{colour} {shape}" for colour, shape in said if colour in COLOURS and shape in SHAPES]
    return ids if novelty_of(things) else made

"""The Blocks tokenizer: a T5-like sentencepiece model of the words of its prompts, in the published file layout."""

import io
import json
import string
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from framert.runtime.tokenizer import PLACEHOLDER

WORD_SCORE, LETTER_SCORE = -3.0, -8.0  # log probabilities: a word always beats its letters
EXTRA_IDS = 100  # T5's sentinels: part of the published layout, unused


def train_tokenizer(
    folder: Path, words: Sequence[str], *, pictures: bool = False
) -> sentencepiece.SentencePieceProcessor:
    """Write a model with one piece per word of the prompts, ``words``, and per printable ASCII character; return it.

    sentencepiece trains the normalizer and the layout; its pieces are then replaced, because its unigram training
    would cut rare words apart. Unknown characters are <unk>, as in T5.

    Args:
        pictures: whether a prompt can hold PLACEHOLDER, which stands for the feature of a picture.
    """
    characters = sorted(each for each in string.printable if not each.isspace())
    words = list(dict.fromkeys(words))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*words, *characters] * 5), model_writer=model, model_type="unigram", vocab_size=1000,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    del proto.pieces[3:]
    scores = {f"\u2581{word}": WORD_SCORE for word in words} | dict.fromkeys(["\u2581", *characters], LETTER_SCORE)
    for piece, score in scores.items():
        proto.pieces.add(piece=piece, score=score)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(folder)
    _write_layout(folder, tokenizer.get_piece_size(), (PLACEHOLDER,) if pictures else ())
    return tokenizer


def load_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Return the model of ``folder``."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def encode(tokenizer: sentencepiece.SentencePieceProcessor, prompt: str) -> list[int]:
    """Return the ids of a prompt, T5's end token last. What stands between placeholders is encoded on its own."""
    first, *others = (tokenizer.encode(part) for part in prompt.split(PLACEHOLDER))
    mark = placeholder_id(tokenizer.get_piece_size())
    return [*first, *(each for part in others for each in (mark, *part)), tokenizer.eos_id()]


def placeholder_id(pieces: int) -> int:
    """Return the id of PLACEHOLDER behind so many word pieces, where a prompt can hold it."""
    return pieces


def _write_layout(folder: Path, pieces: int, marks: Sequence[str]) -> None:
    """Write the JSON files that transformers' T5Tokenizer reads; sentinel k has id pieces + 99 - k.

    ``marks`` are tokens of their own instead of the last sentinels: they have the first ids behind the pieces.
    """
    extra = EXTRA_IDS - len(marks)
    sentinels = {f"<extra_id_{index}>": pieces + EXTRA_IDS - 1 - index for index in range(extra)}
    marked = {mark: placeholder_id(pieces) + index for index, mark in enumerate(marks)}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(index): {"content": piece, **plain} for index, piece in enumerate(("<pad>", "</s>", "<unk>"))}
    for piece, index in sorted(sentinels.items(), key=lambda item: item[1]):
        decoder[str(index)] = {"content": piece, **plain, "lstrip": True, "rstrip": True}
    decoder |= {str(index): {"content": mark, **plain} for mark, index in marked.items()}
    names = [*sentinels, *marks]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    files = {
        "added_tokens": marked | sentinels,
        "special_tokens_map": {"additional_special_tokens": names, **special},
        "tokenizer_config": {
            "add_prefix_space": True, "added_tokens_decoder": decoder, "additional_special_tokens": names,
            "clean_up_tokenization_spaces": False, "extra_ids": extra, "legacy": True, "model_max_length": 300,
            "tokenizer_class": "T5Tokenizer", **special,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")

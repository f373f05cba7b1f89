"""The Blocks tokenizer: a T5-like sentencepiece model of the words of its prompts, in the published file layout."""

import io
import json
import string
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

WORD_SCORE, LETTER_SCORE = -3.0, -8.0  # log probabilities: a word always beats its letters
EXTRA_IDS = 100  # T5's sentinels: part of the published layout, unused


def train_tokenizer(folder: Path, words: Sequence[str]) -> sentencepiece.SentencePieceProcessor:
    """Write a model with one piece per word of the prompts, ``words``, and per printable ASCII character; return it.

    sentencepiece trains the normalizer and the layout; its pieces are then replaced, because its unigram training
    would cut rare words apart. Unknown characters are <unk>, as in T5.
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
    _write_layout(folder, tokenizer.get_piece_size())
    return tokenizer


def load_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Return the model of ``folder``."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def encode(tokenizer: sentencepiece.SentencePieceProcessor, prompt: str) -> list[int]:
    """Return the ids of a prompt, T5's end token last."""
    return [*tokenizer.encode(prompt), tokenizer.eos_id()]


def _write_layout(folder: Path, pieces: int) -> None:
    """Write the JSON files that transformers' T5Tokenizer reads; sentinel k has id pieces + 99 - k."""
    sentinels = {f"<extra_id_{index}>": pieces + EXTRA_IDS - 1 - index for index in range(EXTRA_IDS)}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(index): {"content": piece, **plain} for index, piece in enumerate(("<pad>", "</s>", "<unk>"))}
    for piece, index in sorted(sentinels.items(), key=lambda item: item[1]):
        decoder[str(index)] = {"content": piece, **plain, "lstrip": True, "rstrip": True}
    names = [f"<extra_id_{index}>" for index in range(EXTRA_IDS)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    files = {
        "added_tokens": sentinels,
        "special_tokens_map": {"additional_special_tokens": names, **special},
        "tokenizer_config": {
            "add_prefix_space": True, "added_tokens_decoder": decoder, "additional_special_tokens": names,
            "clean_up_tokenization_spaces": False, "extra_ids": EXTRA_IDS, "legacy": True, "model_max_length": 300,
            "tokenizer_class": "T5Tokenizer", **special,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")

"""CLIP's byte-pair encoding, and any tokenizer.json a checkpoint holds -> a bundle's tokenizer.json."""

import json
from pathlib import Path
from typing import Any

from framert.export.tokenizer import read_tokenizer_config
from framert.runtime.errors import CheckpointError

READY = "tokenizer.json"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# Contractions, letters, single digits, and runs of anything else: what CLIP splits a text into before its merges.
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def write_clip_tokenizer(folder: Path, output: Path) -> int:
    """Write tokenizer.json for a CLIP's tokenizer folder: begin and end token around every prompt.

    Returns: the id that prompts are filled up with.
    Raises: CheckpointError if its files are missing or damaged.
    """
    tokenizer = read_ready(folder) or _build(folder)
    tokenizer.save(str(output), pretty=False)
    return _pad_id(folder, tokenizer)


def read_ready(folder: Path) -> Any | None:
    """Return the folder's own tokenizer.json without its padding and truncation, or None where there is none.

    Raises: CheckpointError if it is damaged.
    """
    from tokenizers import Tokenizer

    file = folder / READY
    if not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _build(folder: Path) -> Any:
    """Return the tokenizer of vocab.json and merges.txt."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary, merges = _read_vocabulary(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    if absent := [token for token in (BEGIN, END, _pad_token(folder)) if token not in vocabulary]:
        raise CheckpointError(f"{folder}/vocab.json lacks {' and '.join(absent)}; CLIP's has them, so use that one")
    try:
        model = models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    except Exception as error:  # a merge of pieces that the vocabulary does not hold
        raise CheckpointError(f"{folder}/merges.txt does not fit vocab.json ({error}); copy both again") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # What fills prompts up is a token of its own in them too: the second CLIP's is an exclamation mark.
    special = dict.fromkeys((BEGIN, END, _pad_token(folder)))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    ends = [(token, vocabulary[token]) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    return tokenizer


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; copy the tokenizer folder of the published checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    if not isinstance(data, dict) or not all(isinstance(value, int) for value in data.values()):
        raise CheckpointError(f"{file} is not a JSON object of ids; download it again")
    return data


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; copy the tokenizer folder of the published checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError(f"{file} is not a list of pairs; download it again")
    return [(first, second) for first, second in pairs]


def _pad_token(folder: Path) -> str:
    token = read_tokenizer_config(folder).get("pad_token") or END
    return str(token["content"] if isinstance(token, dict) else token)


def _pad_id(folder: Path, tokenizer: Any) -> int:
    token = _pad_token(folder)
    found = tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json fills prompts up with {token!r}, which the tokenizer does not know"
        )
    return int(found)

"""tokenizer.json gives the ids of sentencepiece itself."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from framert.export.tokenizer import write_tokenizer
from framert.runtime.errors import CheckpointError

FOLDER = Path(__file__).parents[1] / "golden" / "checkpoint" / "tokenizer"
END = 1
PROMPTS = [
    "",
    " ",
    "a",
    "hello world",
    "  leading, double  and trailing spaces   ",
    "tab\tand\nnew line\r\n",
    "[[text2image]] a photo of a cat",
    "[[deblurring]]",
    "[[image_editing]] make the red cube blue",
    "[[semanticmap2image]] <#00FFFF cyan mask: thing> <#FF0000 red mask: red cube> two things on the ground",
    "[[boundingbox2image]] <#00FFFF cyan boundingbox: thing>",
    "[[faceid]] [[img0]] target [[img1]] a man [[img2]] the same man",
    "[[subject_driven]] <item: teapot> [[img0]] target [[img1]] a teapot",
    "<", ">", "<#", "]]", "<extra", "<pad", "</s",
    "naïve café ﬁ ① ½ Å ㎞ \uff21\uff22\uff23",
    "e\u0301 cafe\u0301 A\u030a",
    "日本語 テキスト 각 각 العربية עברית ไทย",
    "🙂 emoji 👨‍👩‍👧 🇫🇷",
    "\u00a0no-break\u00a0space \u3000ideographic \u200bzero\u200b width \u00adsoft",
    "full-width \uff5e tilde, wave \u301c dash",
    "Vie\u0323\u0302t Nam tie\u0302\u0301ng, \u30ab\u3099 \u1100\u1161\u11a8",
    "\u2122\ufe0f \u203c\ufe0f \u00b9\u0358 \u0149\u0308",
    "▁already ▁escaped▁",
    "İstanbul ﷺ ǅ",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(FOLDER, file)
    return tokenizers.Tokenizer.from_file(str(file))


@pytest.fixture(scope="module")
def oracle() -> Any:
    return sentencepiece.SentencePieceProcessor(str(FOLDER / "spiece.model"))


@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_ids_are_those_of_sentencepiece(prompt: str, tokenizer: Any, oracle: Any) -> None:
    assert tokenizer.encode(prompt).ids == [*oracle.encode(prompt), END]


def test_every_character_alone(tokenizer: Any, oracle: Any) -> None:
    for code in range(1, 0x30000):
        if not 0xD800 <= code < 0xE000:
            assert tokenizer.encode(f"a {chr(code)} b").ids == [*oracle.encode(f"a {chr(code)} b"), END], hex(code)


def test_ten_thousand_words(tokenizer: Any, oracle: Any) -> None:
    prompt = " ".join(f"word{index} of" for index in range(5000))
    begin = time.perf_counter()
    ids = tokenizer.encode(prompt).ids
    assert time.perf_counter() - begin < 5
    assert ids == [*oracle.encode(prompt), END]


@pytest.mark.parametrize("prompt", ["a <extra_id_0> b", "<extra_id_99>x", "a</s>b", "<pad><extra_id_5>"])
def test_text_around_added_tokens_is_encoded_on_its_own(prompt: str, tokenizer: Any, oracle: Any) -> None:
    added = {token: int(token_id) for token, token_id in json.loads((FOLDER / "added_tokens.json").read_text()).items()}
    added |= {"</s>": 1, "<pad>": 0}
    expected: list[int] = []
    for part in re.split(r"(<extra_id_\d+>|</s>|<pad>)", prompt):
        expected += [added[part]] if part in added else oracle.encode(part)
    assert tokenizer.encode(prompt).ids == [*expected, END]


def test_extra_ids_without_added_tokens_files(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes((FOLDER / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 100}')
    write_tokenizer(tmp_path, tmp_path / "tokenizer.json")
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pieces = sentencepiece.SentencePieceProcessor(str(FOLDER / "spiece.model")).vocab_size()
    assert found.token_to_id("<extra_id_0>") == pieces + 99
    assert found.token_to_id("<extra_id_99>") == pieces


def test_missing_or_damaged_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        write_tokenizer(tmp_path, tmp_path / "tokenizer.json")
    (tmp_path / "spiece.model").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="is damaged"):
        write_tokenizer(tmp_path, tmp_path / "tokenizer.json")


def test_added_tokens_with_a_gap(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes((FOLDER / "spiece.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<extra_id_0>": 500}')
    with pytest.raises(CheckpointError, match="without a gap"):
        write_tokenizer(tmp_path, tmp_path / "tokenizer.json")

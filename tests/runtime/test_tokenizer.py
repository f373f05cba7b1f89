"""Token ids, and what happens to prompts that are too long or not text."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from framert.runtime.errors import BundleError, TaskError
from framert.runtime.tokenizer import PromptTruncatedWarning, Tokenizer

END = 1
VOCABULARY = {"<unk>": 0, "</s>": END, "a": 2, "red": 3, "cube": 4}


@pytest.fixture
def path(tmp_path):
    """A tokenizer.json that appends the end token, as the export writes it, and truncates and pads, as others do."""
    made = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    made.enable_truncation(4)
    made.enable_padding(length=4)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", [END]),
        ("   ", [END]),
        ("a red cube", [2, 3, 4, END]),
        ("a a a a red cube", [2, 2, 2, 2, 3, 4, END]),
        ("ein 立方体", [0, 0, END]),
    ],
)
def test_ids_end_with_the_end_token_and_are_never_padded(path, prompt, ids):
    assert Tokenizer(path, 300).encode(prompt) == ids


@pytest.mark.parametrize("words", [300, 301, 10_000])
def test_long_prompts_are_cut_with_a_warning_and_still_end(path, words):
    with pytest.warns(PromptTruncatedWarning, match=f"{words + 1} tokens and the model reads 300"):
        ids = Tokenizer(path, 300).encode("red " * words)
    assert ids == [3] * 299 + [END]


def test_a_prompt_that_just_fits_is_whole(path):
    assert Tokenizer(path, 300).encode("red " * 299) == [3] * 299 + [END]


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", ["a"], "broken \ud800"])
def test_what_is_not_text_is_refused(path, prompt):
    with pytest.raises(TaskError, match="prompt"):
        Tokenizer(path, 300).encode(prompt)


@pytest.mark.parametrize("content", [None, "", "{", "{}"])
def test_a_missing_or_damaged_file_is_a_bundle_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match="export the bundle again"):
        Tokenizer(path, 300)


def test_a_limit_without_room_is_a_bundle_error(path):
    with pytest.raises(BundleError, match="too few"):
        Tokenizer(path, 1)

"""Token ids, and what happens to prompts that are too long or not text."""

from types import SimpleNamespace

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from framert.runtime.errors import BundleError, TaskError
from framert.runtime.manifest import TokenizerSpec
from framert.runtime.tokenizer import PromptTruncatedWarning, Tokenizer, Tokenizers

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


@pytest.fixture
def framed(tmp_path):
    """A tokenizer.json that puts a token before the prompt and one behind it, as CLIP's does."""
    made = tokenizers.Tokenizer(models.WordLevel(VOCABULARY | {"<s>": 5, "<p>": 6}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 5), ("</s>", END)]
    )
    made.save(str(tmp_path / "framed.json"))
    return tmp_path / "framed.json"


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", [5, END, 9, 9, 9, 9]),
        ("a red", [5, 2, 3, END, 9, 9]),
        ("a red cube a", [5, 2, 3, 4, 2, END]),
        ("a red cube cube a a", [5, 2, 3, 4, 4, END]),  # cut: begin and end stay
    ],
)
def test_padded_ids_keep_what_is_added_on_both_sides(framed, prompt, ids):
    tokenizer = Tokenizer(framed, 6, pad_to=6, pad_id=9)
    assert tokenizer.encode(prompt, warn=False) == ids


def bundle_of(folder, **limits):
    """What Tokenizers needs of a bundle: tokenizers by input, each (file, most tokens, pad_to)."""
    specs = {
        name: TokenizerSpec(file=file, max_tokens=most, pad_to=pad, pad_id=9)
        for name, (file, most, pad) in limits.items()
    }
    return SimpleNamespace(path=folder, manifest=SimpleNamespace(tokenizer_specs=lambda: specs))


def test_every_input_of_the_text_encoder_gets_its_own_ids(path, framed):
    made = Tokenizers(bundle_of(path.parent, clip_ids=(framed.name, 6, 6), input_ids=(path.name, 8, 0)))
    ids = made.encode("a red cube")
    assert ids.by_input == {"clip_ids": [5, 2, 3, 4, END, 9], "input_ids": [2, 3, 4, END]}
    assert ids.placeholders == ()


def test_only_what_no_tokenizer_reads_is_warned_of(path, framed):
    made = Tokenizers(bundle_of(path.parent, clip_ids=(framed.name, 6, 6), input_ids=(path.name, 8, 0)))
    assert made.encode("red " * 7).by_input["clip_ids"] == [5, 3, 3, 3, 3, END]  # warnings are errors here
    with pytest.warns(PromptTruncatedWarning, match="9 tokens and the model reads 8"):
        made.encode("red " * 8)


def test_placeholders_are_where_their_pictures_stand(framed):
    made = Tokenizers(bundle_of(framed.parent, input_ids=(framed.name, 7, 0)))
    assert made.encode("<p> a <p>", 2).placeholders == (1, 3)
    assert made.encode("<p> a <p>").placeholders == ()  # without pictures it is a word
    for prompt, references in (("a", 1), ("<p> <p>", 1), ("<p>", 2)):
        with pytest.raises(TaskError, match=f"and {references} pictures stand for them"):
            made.encode(prompt, references)


def test_a_tokenizer_without_placeholders_takes_no_pictures(path):
    made = Tokenizers(bundle_of(path.parent, input_ids=(path.name, 7, 0)))
    with pytest.raises(TaskError, match="0 <p>"):
        made.encode("<p> a", 1)

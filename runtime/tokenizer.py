"""Prompts to token ids."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from framert.runtime.bundle import Bundle
from framert.runtime.errors import BundleError, TaskError

PLACEHOLDER = "<p>"  # stands in a prompt for the feature of a picture
MAIN = "input_ids"  # the input of the text encoder whose tokenizer knows placeholders


class PromptTruncatedWarning(UserWarning):
    """A prompt was longer than the model reads; its end was dropped."""


class Tokenizer:
    """One tokenizer file of a bundle; what it adds (T5's end token) is decided there.

    Args:
        path: of tokenizer.json.
        max_length: most token ids a prompt may take, the added ones included.
        pad_to: ids are filled up to this many with ``pad_id``; 0: not at all.
    Raises: BundleError if the file is missing or damaged, or leaves no room for a prompt.
    """

    def __init__(self, path: Path, max_length: int, *, pad_to: int = 0, pad_id: int = 0) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is missing or damaged ({error}); export the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._padding = [pad_id] * pad_to
        added: int = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= added:
            raise BundleError(f"the bundle allows {max_length} tokens a prompt, too few for any word; export it again")
        marks: list[int] = self._tokenizer.encode("a").special_tokens_mask
        self._appended = 0 if 0 not in marks else marks[::-1].index(0)  # of the added ones, those behind the prompt

    @property
    def placeholder(self) -> int | None:
        """The id of PLACEHOLDER, None if this tokenizer has none."""
        found: int | None = self._tokenizer.token_to_id(PLACEHOLDER)
        return found

    def encode(self, prompt: str, *, warn: bool = True) -> list[int]:
        """The prompt's token ids, at most ``max_length`` of them before padding.

        Warns: PromptTruncatedWarning if the end of the prompt had to be dropped, unless ``warn`` is false.
        Raises: TaskError if the prompt is not text.
        """
        if not isinstance(prompt, str):
            raise TaskError(f"the prompt is a {type(prompt).__name__}; give a string")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise TaskError("the prompt holds lone surrogates, which are not text; give valid Unicode") from error
        ids: list[int] = self._tokenizer.encode(prompt).ids
        if len(ids) > self.max_length:
            if warn:
                warnings.warn(
                    f"the prompt has {len(ids)} tokens and the model reads {self.max_length}; its end was dropped",
                    PromptTruncatedWarning,
                    stacklevel=2,
                )
            end = len(ids) - self._appended
            ids = ids[: self.max_length - self._appended] + ids[end:]
        return ids + self._padding[len(ids) :]


@dataclass(frozen=True, slots=True)
class Ids:
    """A prompt for every tokenizer of a bundle: ids by input of the text encoder, and where the placeholders are."""

    by_input: Mapping[str, list[int]]
    placeholders: tuple[int, ...]


class Tokenizers:
    """All tokenizers of a bundle. Raises: BundleError as Tokenizer."""

    def __init__(self, bundle: Bundle) -> None:
        self._tokenizers = {
            name: Tokenizer(bundle.path / spec.file, spec.max_tokens, pad_to=spec.pad_to, pad_id=spec.pad_id)
            for name, spec in bundle.manifest.tokenizer_specs().items()
        }
        # what one tokenizer cuts, another may still read: only the longest one's cut is a loss
        self._longest = max(self._tokenizers, key=lambda name: self._tokenizers[name].max_length)

    def encode(self, prompt: str, references: int = 0) -> Ids:
        """Return the ids of a prompt with so many placeholders.

        Warns: PromptTruncatedWarning if no tokenizer reads all of it.
        Raises: TaskError if it is not text, or has another number of placeholders where any are expected.
        """
        ids = {
            name: tokenizer.encode(prompt, warn=name == self._longest) for name, tokenizer in self._tokenizers.items()
        }
        if not references:
            return Ids(ids, ())
        mark = self._tokenizers[MAIN].placeholder if MAIN in self._tokenizers else None
        places = tuple(place for place, value in enumerate(ids.get(MAIN, ())) if value == mark)
        if len(places) != references:
            raise TaskError(
                f"the prompt has {len(places)} {PLACEHOLDER} within what the model reads and {references} pictures "
                "stand for them; give a shorter prompt, and one picture for each"
            )
        return Ids(ids, places)

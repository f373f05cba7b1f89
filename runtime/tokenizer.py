"""Prompts to token ids."""

import warnings
from pathlib import Path

import tokenizers

from framert.runtime.errors import BundleError, TaskError


class PromptTruncatedWarning(UserWarning):
    """A prompt was longer than the model reads; its end was dropped."""


class Tokenizer:
    """A bundle's tokenizer.json; what it appends (T5's end token) is decided there.

    Args:
        path: of tokenizer.json.
        max_length: most token ids a prompt may take, the appended ones included.
    Raises: BundleError if the file is missing or damaged, or leaves no room for a prompt.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is missing or damaged ({error}); export the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._appended: int = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= self._appended:
            raise BundleError(f"the bundle allows {max_length} tokens a prompt, too few for any word; export it again")

    def encode(self, prompt: str, *, warn: bool = True) -> list[int]:
        """The prompt's token ids, at most ``max_length`` of them.

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
        if len(ids) <= self.max_length:
            return ids
        if warn:
            warnings.warn(
                f"the prompt has {len(ids)} tokens and the model reads {self.max_length}; its end was dropped",
                PromptTruncatedWarning,
                stacklevel=2,
            )
        end = len(ids) - self._appended
        return ids[: self.max_length - self._appended] + ids[end:]

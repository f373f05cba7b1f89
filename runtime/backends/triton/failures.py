"""Failures of torch and Triton as framert's errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from framert.runtime.errors import BackendError, FramertError


@contextmanager
def as_backend_error(doing: str) -> Iterator[None]:
    """Run a block without autograd; what torch or Triton raises in it becomes a BackendError that says in what.

    Raises: BackendError; framert's own errors as they are.
    """
    try:
        with torch.inference_mode():
            yield
    except FramertError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"{doing} ran out of device memory; use a smaller size, a smaller max_tokens, or precision='int8'"
        ) from error
    except Exception as error:
        if not isinstance(error, RuntimeError) and not type(error).__module__.startswith("triton."):
            raise  # our own mistake
        raise BackendError(f"{doing} failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error

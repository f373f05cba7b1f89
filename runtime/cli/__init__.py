"""The command line: a verb, an input, ``-o`` output. Results go to stdout, progress and messages to stderr.

Exit code 0: done. 1: a check failed. 2: a bad call, told in one line. 130: interrupted.
"""

import os
import sys
import warnings
from collections.abc import Sequence

from PIL import Image
from tqdm import tqdm

from framert.runtime.cli.parser import parse
from framert.runtime.cli.values import join_negative_values
from framert.runtime.errors import FramertError
from framert.runtime.tokenizer import PromptTruncatedWarning

INTERRUPTED = 130  # as shells report a process that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the entry point of ``framert`` and ``python -m framert``.

    Args:
        arguments: of the command line without the program's name; None takes sys.argv.
    """
    words = join_negative_values(sys.argv[1:] if arguments is None else list(arguments))
    try:
        parsed = parse(words)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", PromptTruncatedWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of is refused
            code: int = parsed.command(parsed)
            sys.stdout.flush()
            return code
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else 2
    except FramertError as error:
        _say("error", error)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say("warning", message)


def _say(kind: str, message: object) -> None:
    tqdm.write(f"framert: {kind}: {' '.join(str(message).split())}", file=sys.stderr)

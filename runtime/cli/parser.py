"""The parser of all commands."""

import argparse
import difflib
from typing import NoReturn

import framert
from framert.runtime.cli import (
    bench,
    build,
    compile_request,
    doctor,
    estimate,
    export,
    inspect,
    kernels,
    run,
    tasks,
    verify,
)

COMMANDS = (tasks, run, compile_request, export, verify, inspect, build, bench, kernels, doctor, estimate)
EPILOG = """examples:
  framert export models/blocks -o blocks.bundle
  framert tasks blocks.bundle
  framert run blocks.bundle text_to_image --prompt "a red cube" -o cube.png
  framert run blocks.bundle image_to_depth --image cube.png -o depth.png

framert COMMAND --help says more. Exit code 0: done, 1: a check failed, 2: a bad call."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the way to the help instead of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"framert: error: {message}; {self.prog} --help says what is allowed\n")


def parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments, with ``command``: a function of them that returns an exit code.

    Raises: SystemExit 2 after a line on stderr for a bad call, and 0 after --help and --version.
    """
    parsed, unknown = make_parser().parse_known_args(words)
    if unknown:
        own: argparse.ArgumentParser = parsed.parser  # of the command, whose options are the ones to choose from
        options = [option for action in own._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        own.error(f"unrecognized arguments: {' '.join(unknown)}{f' (did you mean {close[0]}?)' if close else ''}")
    return parsed


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="framert",
        description="Run diffusion transformers that do every image task as a sequence of frames.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"framert {framert.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for module in COMMANDS:
        own = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(own)
        own.set_defaults(command=module.run, parser=own)
    return parser

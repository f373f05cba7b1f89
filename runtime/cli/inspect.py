"""``framert inspect``: what a bundle holds."""

import argparse
import json

from framert.runtime.cli.lazy import export_module

NAME = "inspect"
SUMMARY = "show what a bundle holds"
DESCRIPTION = "Show what a bundle holds: model, limits, graphs, files, what verify measured, where it came from."
EPILOG = """examples:
  framert inspect blocks.bundle
  framert inspect blocks.bundle --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    module = export_module("inspect", NAME)
    description = module.describe(arguments.bundle)
    print(json.dumps(description, indent=1) if arguments.json else module.render(description))
    return 0

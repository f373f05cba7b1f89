"""``framert verify``: a bundle against the checkpoint it was made of."""

import argparse
import json

from framert.runtime.cli.lazy import export_module

NAME = "verify"
SUMMARY = "compare a bundle with its checkpoint"
DESCRIPTION = """Compare every graph of a bundle with the checkpoint's model in plain PyTorch, and record the errors in
the bundle's manifest. Exit code 1 if a graph is beyond its budget. Needs the extra framert[export]."""
EPILOG = """examples:
  framert verify blocks.bundle models/blocks
  framert verify blocks.bundle models/blocks --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that framert export made")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what it was made of: a folder, or a hub id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    module = export_module("verify", NAME)
    report = module.verify(arguments.bundle, arguments.checkpoint, progress=not arguments.quiet)
    print(json.dumps(report, indent=1) if arguments.json else module.table(report))
    return 0 if report["passed"] else 1

"""``framert doctor``: what each backend can do on this machine, and for one bundle."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from framert.runtime import backends, doctor
from framert.runtime.backends.base import ENGINES
from framert.runtime.backends.compare import compare, record
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BundleError, ConfigError, FramertError

NAME = "doctor"
SUMMARY = "show what each backend can do on this machine"
DESCRIPTION = """Show this machine's CPU and GPU, what each backend can do with them and why, and the command that mends
what is missing. With a BUNDLE, also run it on the CPU backends: how far each is from ONNX Runtime, and how fast; or, of
a bundle of engines, say whether they are for this machine. Exit code 1 if no backend, or the bundle, is usable."""
EPILOG = """examples:
  framert doctor
  framert doctor blocks.bundle --record     what load(backend="auto") then chooses by
  framert doctor --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="a bundle to compare the CPU backends on")
    parser.add_argument("--record", action="store_true", help="write the comparison into the bundle's manifest")
    parser.add_argument("--threads", type=int, help="threads inside an operator; default one per core")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    if arguments.record and arguments.bundle is None:
        raise ConfigError("--record was given without a BUNDLE to write into; name one")
    report = doctor.examine()
    found = {}
    refusal = ""
    bundle = None if arguments.bundle is None else Bundle.open(arguments.bundle)
    engines = bundle is not None and bundle.manifest.target.get("kind") in ENGINES
    if bundle is not None and engines:
        if arguments.record:
            raise ConfigError(
                f"--record compares backends, and {bundle.path} holds engines, which have one; leave it out"
            )
        refusal = _refusal(bundle)
    elif bundle is not None:
        others = {}
        if report.backends["openvino"].usable:
            others = {f"openvino:{p}": ("openvino", p) for p in ("fp32", "bf16") if p in _precisions(report)}
        found = compare(bundle, others, threads=arguments.threads)
        if arguments.record:
            try:
                record(bundle, found, _versions(report))
            except OSError as error:
                raise BundleError(f"cannot write {bundle.path}/manifest.json: {error.strerror}") from error
    if arguments.json:
        extra: dict[str, Any] = {"bundle": {name: asdict(one) for name, one in found.items()}} if found else {}
        extra |= {"engines": {"usable": not refusal, "why": refusal}} if engines else {}
        print(json.dumps(report.to_json() | extra, indent=1))
    else:
        print(doctor.table(report))
        for name, one in found.items():
            said = one.refused or f"{one.seconds:8.3f} s a call, velocity {one.velocity_error:.2g} off"
            print(f"{arguments.bundle}  {name:14} {said}")
        if engines:
            print(f"{arguments.bundle}  {'tensorrt':14} {refusal or 'its engines are for this machine'}")
    if refusal:
        return 1
    return 0 if any(ability.usable for ability in report.backends.values()) else 1


def _refusal(bundle: Bundle) -> str:
    """Return why engines cannot run here and what would mend it, "" if they can. None of them is loaded."""
    try:
        backends.create("tensorrt", bundle, threads=None, low_memory=True)
    except FramertError as error:
        return str(error)
    return ""


def _precisions(report: doctor.Report) -> tuple[str, ...]:
    return report.backends["openvino"].precisions


def _versions(report: doctor.Report) -> dict[str, str]:
    return {name: report.backends[name].versions[name] for name in ("onnxruntime", "openvino")}

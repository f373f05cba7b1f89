"""Which command lines measure a side; the lines themselves are tested where their programs are."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from framert.runtime.cli.parser import parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_precision")


@pytest.mark.parametrize(
    ("name", "backend", "exported", "computed"),
    [
        ("onnxruntime-fp32", "onnxruntime", "fp32", None),
        ("openvino-bf16", "openvino", "fp32", "bf16"),
        ("openvino-int8+bf16", "openvino", "int8", "bf16"),
        ("onnxruntime-int4", "onnxruntime", "int4", None),
    ],
)
def test_a_side_says_what_to_export_and_what_to_compute(
    script: ModuleType, name: str, backend: str, exported: str, computed: str | None
) -> None:
    side = script.Side.parse(name)
    assert (side.backend, side.exported, side.computed) == (backend, exported, computed)


@pytest.mark.parametrize("name", ["onnxruntime", "-int8", "openvino-bf16+fp16"])
def test_what_is_no_side_is_refused(script: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="is no side"):
        script.Side.parse(name)


@pytest.mark.parametrize("dry", [True, False])
def test_the_commands_are_ones_their_programs_take(
    script: ModuleType, dry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "blocks")
    evaluate = import_module("evaluate")
    options = Namespace(full=False, dry_run=dry, scenes=None, steps=None, only=None)
    for name in script.SIDES:
        serve, scored = script.commands(script.Side.parse(name), Path("folder"), options)
        parsed = parse(serve[3:])
        assert parsed.bundle == str(Path("folder") / f"{script.Side.parse(name).exported}.bundle")
        assert (parsed.output is None) == dry
        found = evaluate.parser().parse_args(scored[2:])
        assert found.rows is not dry
        assert found.precision == parsed.precision
        assert (found.against is None) == (parsed.reference is None) == (name == script.REFERENCE)


def test_quality_alone_of_every_task_beside_the_floor(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "blocks")
    evaluate = import_module("evaluate")
    options = Namespace(full=False, dry_run=False, scenes=24, steps=8, only="quality")
    found = {}
    for name in script.SIDES:
        (line,) = script.commands(script.Side.parse(name), tmp_path, options)
        found[name] = evaluate.parser().parse_args(line[2:])
        assert (found[name].scenes, found[name].steps, found[name].quick) == (24, 8, False)
        Path(found[name].json).touch()  # as if it had run
    assert {name for name, parsed in found.items() if parsed.against is None} == {script.REFERENCE}
    assert {str(parsed.against) for parsed in found.values()} == {"None", str(found[script.REFERENCE].json)}
    floored = {name for name, parsed in found.items() if parsed.floor is not None}
    assert floored == set(script.SIDES) - {script.REFERENCE, script.FLOOR}
    options.full, options.scenes, options.steps, options.only = True, None, None, "serve"
    (line,) = script.commands(script.Side.parse("onnxruntime-int8"), tmp_path, options)
    assert line[3] == "bench"

"""The package as a whole: who may import whom, what a plain import costs, and what a wheel holds."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import framert

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers", "triton", "tensorrt", "safetensors"}
# runtime's light dependencies; a backend's own package may be named in its own file
LIGHT = {"numpy", "PIL", "tokenizers", "tqdm", "framert"}
# Folders whose every module needs a package, and that are imported by name alone, when their backend is asked for.
OWN = {"runtime/backends/triton": {"torch"}}
# load() takes a checkpoint in place of a bundle, and exports it.
EXPORTERS = {"runtime/checkpoints.py"}


def modules(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Yield (imported module, whether the import runs when the module is imported)."""
    tree = ast.parse(path.read_text())
    at_import = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from ((name, id(node) in at_import) for name in names)


def strings(path):
    """Yield the literal strings of a file, and the literal parts of its f-strings."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    yield from (node.value for node in nodes if isinstance(node.value, str))


def export_strings(path):
    """Return the strings that import_module would take for modules of framert.export."""
    return [text for text in strings(path) if re.match(r"framert\.export(\.|$)", text)]


def beyond_the_contract(path):
    """Return the modules of runtime beyond the contract that are imported, or named in a string.

    The contract is bundle, manifest and errors; the sizes that engines are built for, here or when they first run; and
    the backends by name with what they offer: export measures a new bundle on the backend that is to run it; and ONNX's
    operators in torch, on which it measures a graph that no backend for CPUs runs.
    """
    named = [text for text in strings(path) if re.fullmatch(r"[\w.]+", text)]
    runtime = [name for name in (*(name for name, _ in imports(path)), *named) if name.startswith("framert.runtime")]
    modules = r"bundle|manifest|errors|profiles|backends\.base|backends\.triton\.(graph_file|operators)"
    contract = rf"framert\.runtime(\.({modules})(\..*)?|\.backends)?"
    return [name for name in runtime if not re.fullmatch(contract, name)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from framert.runtime.bundle import sha256", []),
        ("import framert.runtime.errors", []),
        ("import framert", []),
        ("from framert.runtime import bundle", []),
        ("from framert.runtime import backends", []),
        ("from framert.runtime.backends.base import Backend", []),
        ("import framert.runtime.backends.onnxruntime", ["framert.runtime.backends.onnxruntime"]),
        ("from framert.runtime import tokenizer", ["framert.runtime.tokenizer"]),
        ("from framert.runtime.tables import x", ["framert.runtime.tables", "framert.runtime.tables.x"]),
        ("import framert.runtime.bundle_more", ["framert.runtime.bundle_more"]),
        ("import_module('framert.runtime.tasks')", ["framert.runtime.tasks"]),
    ],
)
def test_imports_beyond_the_contract_are_seen(text, found, tmp_path):
    (tmp_path / "module.py").write_text(text)
    assert beyond_the_contract(tmp_path / "module.py") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import_module('framert.export.pipeline')", ["framert.export.pipeline"]),
        ("import_module(f'framert.export.{name}')", ["framert.export."]),
        ("import_module('framert.export')", ["framert.export"]),
        ("hint = \"pip install 'framert[export]'; framert export\"", []),
    ],
)
def test_strings_that_import_export_are_seen(text, found, tmp_path):
    (tmp_path / "module.py").write_text(text)
    assert export_strings(tmp_path / "module.py") == found


@pytest.mark.parametrize("path", modules("runtime"), ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_imports_little_and_never_export(path):
    place = path.relative_to(ROOT)
    command = place.parts[1] == "cli" or place.as_posix() in EXPORTERS
    light = LIGHT | OWN.get(place.parent.as_posix(), set())
    if not command:
        assert not export_strings(path), f"{path.name} names modules of framert.export: only the command line may"
    for name, at_import in imports(path):
        if name.startswith("framert.export"):
            assert command, f"{path.name} imports {name}: only the command line may"
            assert not at_import, f"{path.name} imports {name} at import time"
        package = name.split(".")[0]
        if at_import:
            assert package in light or package in sys.stdlib_module_names, f"{path.name} imports {name} at import time"


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_import_neither_runtime_nor_export(path):
    for name, _ in imports(path):
        if name.startswith("framert.") and not name.startswith("framert.kernels"):
            assert name.startswith("framert.runtime.errors") or name == "framert.runtime", f"{path.name}: {name}"


@pytest.mark.parametrize("path", modules("export"), ids=lambda path: str(path.relative_to(ROOT)))
def test_export_imports_only_the_contract_of_runtime(path):
    assert not beyond_the_contract(path)


def test_plain_import_is_light():
    code = f"import sys, framert; print(sorted(set(sys.modules) & {HEAVY | {'PIL', 'tokenizers'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_folders_do_not_shadow_other_packages():
    """A folder called kernels on sys.path would hide Hugging Face's package of that name from diffusers."""
    assert not {"export", "runtime", "kernels"} & set(sys.modules)


def test_public_names_resolve():
    for name in framert.__all__:
        assert getattr(framert, name) is not None
    with pytest.raises(AttributeError, match="public names"):
        framert.nothing  # noqa: B018  # the access is the test


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("framert-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"framert/__init__.py", "framert/__main__.py", "framert/py.typed"}
    for folder in ("export", "kernels", "runtime"):
        expected |= {f"framert/{path.relative_to(ROOT)}" for path in modules(folder)}
    assert held == expected

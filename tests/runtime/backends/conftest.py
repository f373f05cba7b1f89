"""Fixtures of the tests of backend "tensorrt": an emulated GPU with TensorRT on it (tests/emulated)."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EMULATED = Path(__file__).parents[2] / "emulated"
VERSION = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}


def emulated_module(name: str) -> ModuleType:
    """Return a module of tests/emulated."""
    spec = spec_from_file_location(f"emulated_{name}", EMULATED / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get(spec.name) or module_from_spec(spec)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


@dataclass
class Machine:
    """An emulated GPU. trt: what importing a package gives, by its name."""

    cuda: Any
    trt: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Return a function that makes this machine one with a GPU, TensorRT and TensorRT-RTX."""
    from framert.runtime.backends.tensorrt import driver, library

    def make(capability: tuple[int, int] = (8, 9), version: str | None = None, **more: Any) -> Machine:
        cuda_module, trt_module = emulated_module("cuda"), emulated_module("tensorrt")
        device = {name: more.pop(name) for name in ("memory", "devices") if name in more}
        made = Machine(cuda_module.Cuda(capability, **device))
        for kind, name in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
            rtx = kind == "tensorrt-rtx"
            made.trt[name] = trt_module.Trt(made.cuda, version or VERSION[kind], rtx=rtx, **more)
        library.load.cache_clear()
        monkeypatch.setenv("FRAMERT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(driver, "import_module", {driver.PACKAGE: made.cuda}.__getitem__)
        monkeypatch.setattr(library, "import_module", made.trt.__getitem__)
        monkeypatch.setattr(library.Library, "_prepare_plugins", lambda _: None)  # the wheel's trouble, not emulated
        return made

    yield make
    library.load.cache_clear()


@pytest.fixture(scope="session")
def build_engines() -> Callable[..., Path]:
    """Return the function that writes a bundle of emulated engines, see tests/emulated/engines.py."""
    pytest.importorskip("onnx_ir")
    module = emulated_module("engines")

    def build(bundle: Path, output: Path, **more: Any) -> Path:
        more.setdefault("version", VERSION[more.get("kind", "tensorrt")])
        made: Path = module.build(emulated_module("tensorrt"), bundle, output, **more)
        return made

    return build


@pytest.fixture(scope="session")
def engine_bundle(
    golden_bundle: Path, build_engines: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Engines of the golden checkpoint in standard operators, in three profiles. Read it, never change it."""
    from framert.runtime.profiles import Capacity

    output = tmp_path_factory.mktemp("engines") / "golden.engines"
    return build_engines(golden_bundle, output, capacity=Capacity(tokens=(64, 256), sequences=8, side=64))


@pytest.fixture
def copy(engine_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the engines that a test may change; call it to write the manifest anew, with another target."""
    folder = Path(shutil.copytree(engine_bundle, tmp_path / "copy"))

    from framert.runtime.bundle import Bundle, file_specs, write_manifest

    def change(*, built: dict[str, Any] | None = None, **target: Any) -> Path:
        manifest = Bundle.open(folder, check_files=False).manifest
        origin = {**manifest.provenance, "built": {**manifest.provenance["built"], **(built or {})}}
        target = {name: value for name, value in {**manifest.target, **target}.items() if value is not None}
        write_manifest(folder, replace(manifest, target=target, files=file_specs(folder), provenance=origin))
        return folder

    change()
    return change


@pytest.fixture
def refuses() -> Callable[..., str]:
    """Return a function that loads a bundle, checks that it is refused in one sentence, and returns that."""

    import framert
    from framert.runtime.errors import BackendError

    def check(bundle: Path, *says: str, error: Any = BackendError, **options: Any) -> str:
        with pytest.raises(error) as caught:
            framert.load(bundle, backend="tensorrt", **options)
        message = str(caught.value)
        assert "\n" not in message
        for part in says:
            assert part in message
        return message

    return check

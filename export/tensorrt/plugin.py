"""FrameAttention's plugin at build time, in three forms: its kernels, its entry in the registry, its nodes."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx

from framert.export.tensorrt.api import Api
from framert.export.tensorrt.plugin_nodes import check_nodes, launcher_nodes, strip_functions
from framert.kernels.plugin import frame_attention, recipe
from framert.kernels.plugin.aot_plugin import AotPlugin, check_order
from framert.kernels.plugin.launch import Launch
from framert.kernels.specialization import ModelShape
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.manifest import Manifest

# How attention is run -> what has to be registered wherever the engine runs, None for nothing.
FORMS = {"plugin": frame_attention.NAME, "aot": None, "library": recipe.OPERATOR}
AOT_SINCE = (10, 9)
LIBRARY = "libframert_plugin.so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One form of the plugin with its kernels.

    Args:
        form: of ``FORMS``. "plugin" is Python at run time; "aot" puts PTX into the engine (TensorRT 10.9 and later);
            "library" is the C++ launcher of kernels/plugin/cpp.
        launches: one kernel for each target.
        library: of form "library" alone: the compiled launcher.
    """

    form: str
    launches: tuple[Launch, ...]
    library: Path | None = None

    @property
    def digest(self) -> str:
        """Return one hash of all kernels: it names the timing cache."""
        return hashlib.sha256("".join(sorted(one.kernel_hash for one in self.launches)).encode()).hexdigest()

    @property
    def described(self) -> dict[str, str]:
        """Return what a bundle's manifest says of its target: form, what must be registered, hashes of kernels."""
        needed = FORMS[self.form]
        return {
            "attention": self.form,
            **({"plugins": needed} if needed else {}),
            "kernels": ",".join(f"{one.target}:{one.kernel_hash[:16]}" for one in self.launches),
        }

    def adapt(self, model: onnx.ModelProto) -> bool:
        """Leave FrameAttention's nodes in a graph to this plugin and nothing else; return whether there are any.

        Raises: BackendError if the kernels are for another attention than a node's.
        """
        check_nodes(model, self.launches)
        if not strip_functions(model):
            return False
        if self.form == "library":
            launcher_nodes(model, self.launches)
        return True

    @contextlib.contextmanager
    def registered(self, api: Api) -> Iterator[None]:
        """Let the parser make plugins of the nodes within the block.

        Raises: BackendError if another plugin of that name is registered, or the library cannot be loaded.
        """
        api.prepare_plugins()
        registry = api.module.get_plugin_registry()
        if self.form == "library":
            with _loaded(registry, self.library):
                yield
            return
        if self.form == "aot":
            (launch,) = self.launches  # TensorRT builds for one GPU
            plugin, creator = _embedding(api)
            plugin.launch = launch
        else:
            creator = frame_attention.creator(api.module, self.launches)
        if not registry.register_creator(creator, frame_attention.NAMESPACE):
            raise BackendError(
                f"another plugin {frame_attention.NAME} is registered in this process; build in a process of its own"
            )
        try:
            yield
        finally:
            registry.deregister_creator(creator)


def check_form(api: Api, form: str, library: Path | None) -> None:
    """Raises: ConfigError or BackendError if a form of the plugin cannot be had, with what can."""
    if (form == "library") != (library is not None):
        raise ConfigError(
            f"attention {form!r} and plugin library {library and str(library)!r} do not go together; attention "
            f"'library' takes {LIBRARY}, which kernels/plugin/cpp makes, and no other does"
        )
    if library is not None and not library.is_file():
        raise ConfigError(f"there is no plugin library {library}; build it from kernels/plugin/cpp")
    if form != "aot":
        return
    if api.flavour != "tensorrt":
        raise BackendError(f"attention 'aot' is of TensorRT, and TensorRT-RTX has no such plugins; {OTHERS}")
    if api.number < AOT_SINCE:
        wanted = ".".join(map(str, AOT_SINCE))
        raise BackendError(f"attention 'aot' needs TensorRT {wanted} or newer, and this is {api.version}; {OTHERS}")
    api.plugin_module()


OTHERS = "choose attention 'plugin' or 'library'"


def text_apart(manifest: Manifest) -> bool:
    """Return whether attention has a text beside each sequence, in arenas; else text is part of the sequences."""
    return "text_k" in manifest.graphs["denoiser"].inputs


def check_text(form: str, manifest: Manifest) -> None:
    """Raises: BackendError for a form that lacks what a bundle's attention is."""
    if form == "aot" and not text_apart(manifest):
        raise BackendError(
            f"attention 'aot' attends to a text beside each sequence, and this bundle's text is part of it; {OTHERS}"
        )


def compile_kernels(
    shape: ModelShape, dtype: str, targets: Sequence[str], *, ptx: bool = False, text: bool = True
) -> tuple[Launch, ...]:
    """Return the attention kernel of a transformer for each target.

    Args:
        dtype: what attention reads and writes: "fp16", "bf16" or "fp32".
        ptx: text in place of machine code.
        text: whether it attends to a text beside each sequence.
    Raises: ConfigError for a target without kernels; BackendError where Triton cannot compile.
    """
    from framert.kernels.aot.compiler import check_environment, compile_kernel, compiling
    from framert.kernels.aot.targets import parse_targets

    found = parse_targets(targets)
    check_environment()
    from framert.kernels.frame_attention.kernel import specializations
    from framert.kernels.frame_attention.tiles import choose

    kinds: dict[str, Literal["fp16", "bf16", "fp32"]] = {"fp16": "fp16", "bf16": "bf16", "fp32": "fp32"}
    launches = []
    with compiling():
        for target in found:
            # One size of tile for everything: no bit then depends on what a sequence is packed with.
            queries = choose(shape.head_dim, kinds[dtype], target.capability).queries
            (chosen,) = (
                one
                for one in specializations(shape, kinds[dtype], target.capability, text=text)
                if one.constants["TILE"] == queries
            )
            compiled = compile_kernel(chosen, target, op="frame_attention", model=shape.name)
            launches.append(Launch.of(compiled, ptx=ptx))
            check_order(launches[-1])
    return tuple(launches)


@cache
def _embedding(api: Api) -> tuple[AotPlugin, Any]:
    """Return the quickly deployable plugin and its creator. Defined once: TensorRT takes no definition back."""
    registry = api.module.get_plugin_registry()
    if registry.get_creator(frame_attention.NAME, frame_attention.VERSION, frame_attention.NAMESPACE) is not None:
        raise BackendError(
            f"another plugin {frame_attention.NAME} is registered in this process; build in a process of its own"
        )
    plugin = AotPlugin(api.plugin_module())
    plugin.define()
    creator = registry.get_creator(frame_attention.NAME, frame_attention.VERSION, frame_attention.NAMESPACE)
    registry.deregister_creator(creator)
    return plugin, creator


@contextlib.contextmanager
def _loaded(registry: Any, library: Path | None) -> Iterator[None]:
    handle = registry.load_library(str(library))
    if handle is None:
        raise BackendError(
            f"TensorRT cannot load the plugin library {library}: it is damaged, made for another TensorRT, or loaded "
            "already; build it from kernels/plugin/cpp against this TensorRT, and use a process of its own"
        )
    try:
        yield
    finally:
        registry.deregister_library(handle)

"""Bundle -> bundle of engines: every graph is parsed, given its profiles and built, and the whole written at once."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

import framert
from framert.export.model_shape import model_shape
from framert.export.precision import WORDS
from framert.export.tensorrt import memory, timing
from framert.export.tensorrt.api import Api, load
from framert.export.tensorrt.half import TYPES as HALVES
from framert.export.tensorrt.lower import OPERATORS
from framert.export.tensorrt.plugin import FORMS, Plugin, check_form, check_text, compile_kernels, text_apart
from framert.export.tensorrt.prepare import Prepared, prepare
from framert.export.tensorrt.source import beside_graphs, open_exported
from framert.export.tensorrt.targets import check_precision, parse_targets
from framert.runtime import profiles
from framert.runtime.bundle import Bundle, file_specs, new_bundle, write_manifest
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.manifest import Graph, Manifest
from framert.runtime.profiles import Capacity, Profile

PROFILES = "profiles.json"
ATTENTION = ("padded", *FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How engines are built, apart from their sizes.

    Args:
        attention: "padded" runs FrameAttention in TensorRT's own operators; the others launch framert's kernel, from a
            "plugin" in Python that must be registered wherever the engine runs, from PTX inside the engine ("aot",
            TensorRT 10.9 and later), or from the C++ launcher ("library"), which must be loaded there.
        plugin_library: the compiled launcher, for "library" alone.
        weight_streaming: keep weights in host memory and stream them where the device's is too small.
        compatible: "none", "version" (later releases of the same major version run the engine), or "ampere+" (every
            GPU from Ampere on does).
        timing_cache: folder of timing caches; None keeps none.
        verbosity: TensorRT's lines that are told: 0 errors, 1 also warnings and information, 2 all.
    """

    attention: str = "padded"
    plugin_library: Path | None = None
    weight_streaming: bool = False
    compatible: str = "none"
    timing_cache: Path | None = None
    verbosity: int = 0

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise ConfigError(f"attention is {self.attention!r}; choose one of {', '.join(ATTENTION)}")


@dataclass(frozen=True, slots=True)
class Built:
    """One engine. seconds: parsing and building; size: bytes; layers, plugins: of the parsed network."""

    graph: str
    seconds: float
    size: int
    layers: int
    plugins: int


def build(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    targets: Sequence[str],
    backend: str = "tensorrt",
    precision: str | None = None,
    capacity: Capacity | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = tqdm.write,
) -> list[Built]:
    """Build every graph of a bundle and write the engines as a bundle of their own.

    Args:
        bundle: a folder of ONNX graphs that ``framert export`` made.
        output: the new bundle's folder; it appears whole or not at all.
        targets: compute capabilities such as "sm_89"; several only with TensorRT-RTX, one engine then serves all.
        backend: "tensorrt" or "tensorrt-rtx".
        precision: "fp16" or "bf16" casts what graphs have in fp32; None leaves all as they are.
        capacity: largest sizes; None is ``Capacity()``.
        options: None is ``Options()``.
        force: replace a bundle that stands at ``output``.
        progress: show a bar on stderr.
        say: takes TensorRT's lines.
    Returns: what was built, in the order the graphs run.
    Raises: BundleError, ConfigError or BackendError that says what does not fit and what would.
    """
    capacity, options = capacity or Capacity(), options or Options()
    targets = parse_targets(targets)
    opened = open_exported(bundle)
    _check_precisions(opened.manifest, precision, targets)
    api = load(backend)
    api.check_targets(targets)
    # Asked for here, so that what this version has not is refused before anything is parsed.
    api.config(api.builder(), targets, weight_streaming=options.weight_streaming, compatible=options.compatible)
    with_plugin = options.attention != "padded"
    if with_plugin or options.plugin_library is not None:
        check_text(options.attention, opened.manifest)
        check_form(api, options.attention, options.plugin_library)
    table = profiles.plan_profiles(opened.manifest, capacity, plugin=with_plugin)
    free = memory.available()
    for name in table:
        memory.check(name, _weight_bytes(opened, name, precision), free)
    plugin = _plugin(opened, precision, targets, options) if with_plugin else None
    missing = api.missing_operators(OPERATORS)
    api.log.verbosity, api.log.say = options.verbosity, say
    done: list[Built] = []
    with new_bundle(output, force=force) as folder, plugin.registered(api) if plugin else nullcontext():
        graphs: dict[str, Graph] = {}
        for name in (bar := tqdm(table, unit="graph", disable=not progress)):
            bar.set_description(name)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                model = prepare(opened, name, precision, Path(work), plugin=plugin, missing=missing)
                graphs[name], built = build_engine(api, model, table[name], targets, options, plugin, folder)
            done.append(built)
        for file in beside_graphs(opened.manifest):
            shutil.copyfile(opened.path / file, folder / file)
        (folder / PROFILES).write_text(json.dumps(profiles.to_json(table), indent=1) + "\n", encoding="utf-8")
        write_manifest(folder, _manifest(opened, graphs, folder, api, targets, capacity, options, plugin, done))
    return done


def _precision(graph: Graph) -> str:
    return next((word for word, name in WORDS.items() if name == graph.precision), graph.precision)


def _check_precisions(manifest: Manifest, half: str | None, targets: Sequence[str]) -> None:
    """Raises: ConfigError if a graph cannot be cast to what is asked for, or a target has not its precision."""
    if half is not None and half not in HALVES:
        raise ConfigError(
            f"precision is {half!r}; build casts fp32 to {' or '.join(HALVES)}, and framert export --precision makes "
            "the others"
        )
    for name, graph in manifest.graphs.items():
        own = _precision(graph)
        if half is not None and own in HALVES and own != half:
            raise ConfigError(f"{name} is in {own} already, not in fp32; leave --precision out, or give {own}")
        check_precision(name, own, targets)
        if half is not None:
            check_precision(name, half, targets)


def _plugin(bundle: Bundle, half: str | None, targets: Sequence[str], options: Options) -> Plugin:
    own = _precision(bundle.manifest.graphs["denoiser"])
    dtype = half or (own if own in HALVES else "fp32")
    launches = compile_kernels(
        model_shape(bundle.path),
        dtype,
        targets,
        ptx=options.attention == "aot",
        text=text_apart(bundle.manifest),
    )
    return Plugin(form=options.attention, launches=launches, library=options.plugin_library)


def _weight_bytes(bundle: Bundle, name: str, half: str | None) -> int:
    graph = bundle.manifest.graphs[name]
    stored = sum(bundle.manifest.files[file].size for file in graph.files)
    return stored // 2 if half is not None and _precision(graph) == "fp32" else stored


def build_engine(
    api: Api,
    model: Prepared,
    table: Sequence[Profile],
    targets: Sequence[str],
    options: Options,
    plugin: Plugin | None,
    folder: Path,
) -> tuple[Graph, Built]:
    """Write NAME.engine of one graph into a folder.

    Args:
        table: its profiles. plugin: what runs attention; it must be registered.
    Returns: the graph's entry of the manifest, and what was built.
    Raises: BackendError with TensorRT's reason.
    """
    begin = time.perf_counter()
    builder = api.builder()
    network = api.network(builder)
    parser = api.parse(network, model.file, model.content)
    config = api.config(builder, targets, weight_streaming=options.weight_streaming, compatible=options.compatible)
    for profile in table:
        if sizes := profiles.shapes(model.graph.inputs, profile):  # none of a graph whose sizes are all fixed
            _add_profile(api, builder, config, model.name, sizes)
    cache = _timing_cache(api, options, plugin.digest if plugin else "")
    if cache is not None:
        timing.attach(config, cache)
    file = f"{model.name}.engine"
    api.build(builder, network, config, folder / file)
    if cache is not None:
        timing.store(config, cache)
    plugins = sum(
        network.get_layer(index).type == api.module.LayerType.PLUGIN_V3 for index in range(network.num_layers)
    )
    size = (folder / file).stat().st_size
    built = Built(model.name, time.perf_counter() - begin, size, network.num_layers, plugins)
    del parser  # it holds weights that the network reads
    return replace(model.graph, files=(file,)), built


def _add_profile(
    api: Api, builder: Any, config: Any, graph: str, shapes: Mapping[str, tuple[tuple[int, ...], ...]]
) -> None:
    profile = builder.create_optimization_profile()
    for name, sizes in shapes.items():
        profile.set_shape(name, *sizes)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{api.flavour} {api.version} refuses a profile of {graph}: {api.log.errors_in_words()}")


def _timing_cache(api: Api, options: Options, kernels: str) -> Path | None:
    gpu = api.gpu()
    if options.timing_cache is None or not api.has_timing_cache or gpu is None:
        return None
    return timing.cache_file(options.timing_cache, api, gpu.name, kernels)


def _manifest(
    bundle: Bundle,
    graphs: Mapping[str, Graph],
    folder: Path,
    api: Api,
    targets: Sequence[str],
    capacity: Capacity,
    options: Options,
    plugin: Plugin | None,
    done: Sequence[Built],
) -> Manifest:
    source = bundle.manifest
    origin = {
        "framert": framert.__version__,
        api.flavour: api.version,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {built.graph: round(built.seconds, 2) for built in done},
        "capacity": asdict(capacity),
        "weight_streaming": options.weight_streaming,
        "compatible": options.compatible,
        "onnx": {file: spec.sha256 for file, spec in source.files.items()},
        "onnx_verified": dict(source.verified),
    }
    return replace(
        source,
        target={
            "kind": api.flavour,
            "version": api.version,
            "compute_capability": ",".join(targets),
            **(plugin.described if plugin else {}),
        },
        graphs=dict(graphs),
        files=file_specs(folder),
        verified={},  # engines run on their GPU alone, and were not run yet
        provenance={**source.provenance, "built": origin},
    )

"""The harness: rows that name what was measured, and timing that treats all sides alike."""

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framert.runtime.bench import alternate, energy, memory, quality, rows, workload
from framert.runtime.bench.trace import Arrival, Part, Trace, arrivals, serve
from framert.runtime.errors import ConfigError, TaskError
from framert.runtime.families import find_family
from framert.runtime.families.onediffusion.plan import plan
from framert.runtime.families.onediffusion.task_table import TASKS
from framert.runtime.families.univg.plan import plan as univg_plan
from framert.runtime.families.univg.task_table import TASKS as UNIVG_TASKS

COLUMNS = "bench,impl,case,metric,unit,p20,p50,p80,p99,n,threads,device,torch,triton,onnxruntime,openvino,tensorrt,commit,date"  # noqa: E501


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("pass\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "code")
    return tmp_path


def some_rows(environment: rows.Environment) -> list[rows.Row]:
    common = {"bench": "step", "case": "small, odd"}
    return [
        environment.row(impl="framert", metric="step", unit="s", samples=[0.1, 0.3, 0.2], **common),
        environment.row(impl="framert/eager", metric="rate_ratio", unit="x", samples=[3.0], **common),
    ]


def test_rows_survive_the_file(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=2)
    written = some_rows(environment)
    path = environment.append("step.csv", written[:1])
    assert environment.append("step.csv", written[1:]) == path == checkout / "benchmarks/results/step.csv"
    assert path.read_text().splitlines()[0] == COLUMNS
    assert len(path.read_text().splitlines()) == 3
    assert rows.read(path) == written
    assert written[0].commit == git(checkout, "rev-parse", "--short=12", "HEAD")
    assert written[0].p50 == 0.2
    assert written[0].n == 3


def test_environment_names_the_machine(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=3)
    assert environment.threads == 3
    assert environment.device == rows.cpu_name() != ""
    assert rows.Environment.capture(checkout, threads=1, device="some GPU").device == "some GPU"
    assert set(environment.versions) == {"torch", "triton", "onnxruntime", "openvino", "tensorrt"}


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_dirty_checkout_is_refused(checkout: Path, name: str) -> None:
    environment = rows.Environment.capture(checkout, threads=1)
    (checkout / name).write_text("changed\n")
    with pytest.raises(ConfigError, match=name):
        rows.Environment.capture(checkout, threads=1)
    with pytest.raises(ConfigError, match=name):
        environment.append("step.csv", some_rows(environment))
    assert not (checkout / rows.RESULTS).exists()


def test_rows_that_are_only_looked_at_are_not_kept(checkout: Path) -> None:
    (checkout / "new.py").write_text("changed\n")
    environment = rows.Environment.capture(checkout, threads=1, record=False)
    with pytest.raises(ConfigError, match="record=False"):
        environment.append("step.csv", some_rows(environment))


def test_no_threads_are_refused(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        rows.Environment.capture(checkout, threads=0, record=False)


def test_changed_results_alone_are_not_dirty(checkout: Path) -> None:
    (checkout / rows.RESULTS).mkdir(parents=True)
    (checkout / rows.RESULTS / "other.csv").write_text("x\n")
    rows.Environment.capture(checkout, threads=1)


def test_a_commit_during_the_run_is_refused(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=1)
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "later")
    with pytest.raises(ConfigError, match="moved from"):
        environment.append("step.csv", some_rows(environment))


def test_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a git checkout"):
        rows.Environment.capture(tmp_path / "missing", threads=1)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", f"{COLUMNS}\nstep,framert\n"], ids=["columns", "short line"])
def test_a_foreign_or_damaged_file_is_refused(checkout: Path, text: str) -> None:
    path = checkout / rows.RESULTS / "step.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    environment = rows.Environment.capture(checkout, threads=1)
    with pytest.raises(ConfigError, match=r"step\.csv"):
        environment.append("step.csv", some_rows(environment))
    assert path.read_text() == text


def test_a_ratio_names_both_sides(checkout: Path) -> None:
    row, ratio = some_rows(rows.Environment.capture(checkout, threads=1))
    with pytest.raises(ConfigError, match="both sides"):
        replace(row, metric="rate_ratio")
    with pytest.raises(ConfigError, match="both sides"):
        replace(ratio, metric="step")


def test_latest_run_of_one_bench(checkout: Path) -> None:
    row, ratio = some_rows(rows.Environment.capture(checkout, threads=1))
    old = replace(row, date="2001-01-01T00:00:00Z")
    assert rows.latest([row, old, ratio, replace(row, bench="other", date="2999-01-01T00:00:00Z")], "step") == [
        row,
        ratio,
    ]
    assert rows.latest([row], "unknown") == []


def test_newest_of_each_side(checkout: Path) -> None:
    row, ratio = some_rows(rows.Environment.capture(checkout, threads=1))
    old = replace(row, date="2001-01-01T00:00:00Z")
    alone = replace(old, impl="other")
    assert rows.newest([row, old, alone, ratio, replace(row, bench="another")], "step") == [row, alone, ratio]


def test_quantiles() -> None:
    assert rows.quantiles(range(101)) == pytest.approx((20, 50, 80, 99))
    assert rows.quantiles([5.0]) == (5, 5, 5, 5)
    for bad in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ConfigError, match="finite samples"):
            rows.quantiles(bad)


def test_sides_alternate_and_reverse() -> None:
    calls: list[str] = []
    done: list[int] = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = alternate.alternate(sides, rounds=3, warmup=1, pause=0, on_round=done.append)
    assert "".join(calls) == "cba" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert done == [1, 2, 3]


def test_seconds_are_of_the_side_that_ran() -> None:
    sides = {"quick": lambda: None, "sleeper": lambda: time.sleep(0.03)}
    seconds = alternate.alternate(sides, rounds=2, warmup=0, pause=0)
    assert min(seconds["sleeper"]) >= 0.03
    assert min(alternate.rate_ratios(seconds, "quick", "sleeper")) > 1


def test_ratios_go_round_by_round() -> None:
    assert alternate.rate_ratios({"a": [1.0, 2.0], "b": [3.0, 4.0]}, "a", "b") == [3.0, 2.0]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": 1, "warmup": -1}], ids=str)
def test_nothing_to_time_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one side"):
        alternate.alternate({"a": lambda: None}, **options)
    with pytest.raises(ConfigError, match="at least one side"):
        alternate.alternate({}, rounds=1)


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_energy_counters_add_up_and_start_again(tmp_path: Path) -> None:
    zones = {
        "intel-rapl:0": ("package-0", 999_000_000, 1_000_000_000),
        "intel-rapl:0:0": ("core", 5_000_000, 1_000_000_000),  # a part of the package
        "intel-rapl:0:1": ("dram", 1_000_000, 1_000_000_000),
        "intel-rapl-mmio:0": ("package-0", 999_000_000, 1_000_000_000),  # the first one again
        "broken": ("package-1", "", 1),
    }
    for zone, (name, value, span) in zones.items():
        files = {"name": name, "energy_uj": str(value), "max_energy_range_uj": str(span)}
        write_tree(tmp_path / "class/powercap" / zone, files)
    meter = energy.EnergyMeter(tmp_path)
    assert meter.available
    assert meter.read() == 0
    write_tree(
        tmp_path / "class/powercap",
        {
            "intel-rapl:0/energy_uj": "4000000",
            "intel-rapl:0:1/energy_uj": "3000000",
            "intel-rapl-mmio:0/energy_uj": "4000000",
        },
    )
    assert meter.read() == pytest.approx(5 + 2)
    assert meter.read() == pytest.approx(7)


@pytest.mark.parametrize(("labels", "watts"), [(("VDD_IN", "VDD_CPU"), 10), (("VDD_GPU", "VDD_CPU"), 16)], ids=str)
def test_power_rails_are_summed_over_time(tmp_path: Path, labels: tuple[str, str], watts: float) -> None:
    files = {"name": "ina3221"}
    for number, (label, volts, amperes) in enumerate(zip(labels, (5000, 3000), (2000, 2000), strict=True), 1):
        files |= {f"in{number}_label": label, f"in{number}_input": str(volts), f"curr{number}_input": str(amperes)}
    write_tree(tmp_path / "class/hwmon/hwmon3", files)
    write_tree(tmp_path / "class/hwmon/hwmon1", {"name": "other", "in1_label": "VDD_IN"})
    with energy.EnergyMeter(tmp_path) as meter:
        begin, before = time.perf_counter(), meter.read()
        time.sleep(0.15)
        seconds, joules = time.perf_counter() - begin, meter.read() - before
    assert joules == pytest.approx(watts * seconds, rel=0.5)
    assert joules > 0


def test_a_machine_without_energy_says_so(tmp_path: Path) -> None:
    with energy.EnergyMeter(tmp_path) as meter:
        assert not meter.available
        assert meter.read() is None


def test_peak_memory_is_what_was_held() -> None:
    memory.reset_peak()
    before = memory.peak_resident()
    assert before is not None
    held = np.ones(40 << 20, np.uint8)
    assert 30 << 20 < memory.peak_resident() - before < 80 << 20
    del held
    if memory.reset_peak():
        assert memory.peak_resident() - before < 20 << 20


@pytest.mark.parametrize("task", TASKS)
def test_a_request_of_every_task_fits_it_and_is_its_seeds_own(task: str) -> None:
    kind = workload.Kind(task, (64, 64), 3)
    composed = {seed: plan(TASKS[task], made) for seed in (0, 1) for made in [workload.request(kind, seed)]}
    assert composed[0].prompt != composed[1].prompt or not TASKS[task].prompt_required
    assert all(image.size == (64, 64) for image in composed[0].images)
    pairs = zip(composed[0].images, composed[1].images, strict=True)
    assert all(np.any(np.asarray(first) != np.asarray(second)) for first, second in pairs)
    again = workload.request(kind, 0)
    assert again.prompt == workload.request(kind, 0).prompt
    assert (again.seed, again.steps, again.size) == (0, 3, (64, 64))


@pytest.mark.parametrize("task", find_family("univg").tasks())
def test_a_request_of_another_family_s_task_fits_it(task: str) -> None:
    made = workload.request(workload.Kind(task, (64, 48), 3, "univg"), 0)
    row = UNIVG_TASKS[task]
    composition = univg_plan(row, UNIVG_TASKS, made)
    assert find_family("univg").at_size(composition, (64, 48)).prompt
    assert composition.prompt.startswith(row.token)


def test_a_trace_is_read_whole() -> None:
    text = "poisson:rate=80%,mix=edit@128x64*3+text_to_image,seconds=9,deadline=2.5,seed=4"
    trace = Trace.parse(text)
    assert trace == Trace(
        text=text,
        rate=0.8,
        relative=True,
        mix=(Part("edit", (128, 64), 3), Part("text_to_image", None, 1)),
        seconds=9,
        deadline=2.5,
        seed=4,
    )
    kinds = trace.kinds([(32, 32), (48, 48)], 5, [])
    assert [(kind.task, kind.size, weight) for kind, weight in kinds] == [
        ("edit", (128, 64), 3),
        ("text_to_image", (32, 32), 1),
        ("text_to_image", (48, 48), 1),
    ]
    every = [workload.Kind("edit", (32, 32)), workload.Kind("deblur", (32, 32))]
    assert Trace.parse("poisson:rate=2").kinds([], None, every) == [(kind, 1.0) for kind in every]


@pytest.mark.parametrize(
    "text",
    [
        "poisson",
        "poisson:mix=edit",
        "uniform:rate=1",
        "poisson:rate=fast",
        "poisson:rate=0",
        "poisson:rate=nan",
        "poisson:rate=inf",
        "poisson:rate=1,seconds=-1",
        "poisson:rate=1,deadline=0",
        "poisson:rate=1,seed=-1",
        "poisson:rate=1,rate=2",
        "poisson:rate=1,speed=2",
        "poisson:rate=1,mix=paint",
        "poisson:rate=1,mix=edit@64",
        "poisson:rate=1,mix=edit*0",
        "poisson:rate=1,mix=",
    ],
)
def test_a_trace_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises((ConfigError, TaskError)):
        Trace.parse(text)


def test_arrivals_are_poisson_and_kinds_follow_their_weights() -> None:
    mix = [(workload.Kind("edit", (32, 32)), 3.0), (workload.Kind("deblur", (32, 32)), 1.0)]
    due = arrivals(50, 200, mix, seed=1)
    assert due == arrivals(50, 200, mix, seed=1) != arrivals(50, 200, mix, seed=2)
    times = np.array([arrival.at for arrival in due])
    gaps = np.diff(times)
    assert len(due) == pytest.approx(10_000, abs=400)  # four standard deviations
    assert times.max() < 200
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution
    edits = [arrival.number for arrival in due if arrival.kind.task == "edit"]
    assert len(edits) / len(due) == pytest.approx(0.75, abs=0.02)
    assert edits == list(range(len(edits)))
    assert len(arrivals(0.001, 1, mix, seed=0)) == 1  # never nothing
    with pytest.raises(ConfigError, match="too many"):
        arrivals(1e6, 1e6, mix, seed=0)


def test_latency_counts_from_when_a_request_was_due() -> None:
    """A server of 50 ms a request and four requests that are due at once: the last one waits for all."""

    class Server:
        def __enter__(self) -> "Server":
            self.free = time.perf_counter()
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, request: object) -> SimpleNamespace:
            submitted = time.perf_counter()
            self.free = max(self.free, submitted) + 0.05
            made = SimpleNamespace(timings={"total": self.free - submitted})
            time.sleep(0.02)  # a slow client: what is due meanwhile is late, and that counts
            return SimpleNamespace(result=lambda: made)

    kind = workload.Kind("edit", (32, 32))
    due = [Arrival(0.01, kind, number) for number in range(4)]
    served = serve(Server(), due, lambda arrival: None)  # type: ignore[arg-type]
    latencies = [each.latency for each in served]
    assert latencies == pytest.approx([0.07, 0.12, 0.17, 0.22], abs=0.03)


def test_psnr_of_results() -> None:
    picture = np.zeros((1, 4, 4, 3), np.float32)
    latents = np.array([-1.0, 3.0], np.float32)
    same = SimpleNamespace(pixels=picture, latents=latents)
    assert quality.psnr(same, same) == quality.IDENTICAL
    assert quality.psnr(SimpleNamespace(pixels=picture + 0.1, latents=latents), same) == pytest.approx(20)
    rays = SimpleNamespace(pixels=picture[:0], latents=latents)  # latents span 4
    moved = SimpleNamespace(pixels=picture[:0], latents=latents + np.float32(0.4))
    assert quality.psnr(moved, rays) == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "peak", "expected"),
    [(0.0, 1.0, quality.IDENTICAL), (1e-7, 1.0, quality.NEARLY), (0.1, 0.0, -quality.IDENTICAL),
     (np.nan, 1.0, -quality.IDENTICAL), (np.inf, 1.0, -quality.IDENTICAL)],
)  # fmt: skip
def test_only_what_is_equal_is_identical(change: float, peak: float, expected: float) -> None:
    exact = np.zeros(4)
    assert quality.decibels(exact + change, exact, peak) == expected


def test_a_framert_without_its_repository_keeps_no_rows() -> None:
    with pytest.raises(ConfigError, match="without its repository"):
        rows.Environment.capture(None, threads=1)
    environment = rows.Environment.capture(None, threads=1, record=False)
    with pytest.raises(ConfigError, match="record=False"):
        environment.append("step.csv", some_rows(environment))


def test_rows_can_go_to_another_folder(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = rows.Environment.capture(checkout, threads=1)
    path = tmp_path_factory.mktemp("elsewhere") / "rows.csv"
    path.touch()
    assert environment.append(str(path), some_rows(environment)) == path
    assert rows.read(path) == some_rows(environment)


def test_this_checkout_is_found() -> None:
    found = rows.checkout()
    assert found is None or (found / "runtime/bench/rows.py").samefile(rows.__file__)

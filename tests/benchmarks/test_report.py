"""The README's figures are those of the rows, and a README that says something else is noticed."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from framert.runtime.bench.rows import COLUMNS, RESULTS

ROOT = Path(__file__).resolve().parents[2]
MARKED = "# Title\n\n<!-- bench:step -->\nold\n<!-- /bench:step -->\n\nThe rest.\n"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("report")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rest = "2,Some CPU (2 cores),2.13.0,,1.31.0,,,abc123,2026-01-02T03:04:05Z"
    lines = [
        ",".join(COLUMNS),
        f"step_cpu,framert,12x768h8,step,s,0.9,0.9,0.9,0.9,15,{rest.replace('2026', '2025')}",  # an older run
        f"step_cpu,framert,12x768h8,step,s,0.39,0.401,0.42,0.5,15,{rest}",
        f"step_cpu,eager,12x768h8,step,s,1.3,1.4,1.5,1.6,15,{rest}",
        f"step_cpu,framert/eager,12x768h8,rate_ratio,x,3.4,3.456,3.5,3.6,15,{rest}",
        f"step_cpu,framert,12x768h8,velocity_error,relative L2,2e-06,2e-06,2e-06,2e-06,1,{rest}",
    ]
    (tmp_path / RESULTS).mkdir(parents=True)
    quoted = "\n".join(lines).replace("Some CPU (2 cores)", '"Some, CPU"')
    (tmp_path / RESULTS / "step_cpu.csv").write_text(quoted + "\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(MARKED, encoding="utf-8")
    return tmp_path


def test_readme_of_this_project_agrees_with_its_rows(report: ModuleType) -> None:
    readme = ROOT / "README.md"
    assert "<!-- bench:step -->" in readme.read_text(encoding="utf-8")
    assert report.main(["--check"]) == 0


def test_blocks_are_rewritten_and_checked(report: ModuleType, project: Path) -> None:
    assert report.main(["--check"], project) == 1
    assert (project / "README.md").read_text(encoding="utf-8") == MARKED
    assert report.main([], project) == 0
    text = (project / "README.md").read_text(encoding="utf-8")
    assert "| **framert**, ONNX Runtime, fp32 | 401 ms | 390 to 420 |  | 2e-06 |" in text
    assert "| 1400 ms | 1300 to 1500 | 3.46x |" in text
    assert "900 ms" not in text
    assert "15 alternating rounds" in text
    assert "old" not in text
    assert text.startswith("# Title\n\n<!-- bench:step -->\n|")
    assert text.endswith("<!-- /bench:step -->\n\nThe rest.\n")
    assert report.main(["--check"], project) == 0


def test_an_edited_figure_is_noticed(report: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([], project)
    readme = project / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("3.46x", "4.46x"), encoding="utf-8")
    assert report.main(["--check"], project) == 1
    assert "report.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:step -->\n",
        "<!-- /bench:step -->\n<!-- bench:step -->\n",
        "<!-- bench:step -->\n<!-- /bench:stop -->\n",
        "<!-- bench:unheard -->\n<!-- /bench:unheard -->\n",
    ],
    ids=["open", "turned", "mismatched", "unknown"],
)
def test_markers_that_make_no_block_are_refused(report: ModuleType, project: Path, text: str) -> None:
    (project / "README.md").write_text(text, encoding="utf-8")
    assert report.main(["--check"], project) == 2


def test_figures_without_rows_are_noticed(report: ModuleType, project: Path) -> None:
    (project / RESULTS / "step_cpu.csv").unlink()
    assert report.main(["--check"], project) == 1
    assert report.main([], project) == 0
    assert "<!-- bench:step -->\n<!-- /bench:step -->\n" in (project / "README.md").read_text(encoding="utf-8")
    assert report.main(["--check"], project) == 0


def test_damaged_rows_are_refused(report: ModuleType, project: Path) -> None:
    (project / RESULTS / "step_cpu.csv").write_text("bench,impl\nstep_cpu,framert\n", encoding="utf-8")
    assert report.main(["--check"], project) == 2


REST = '2,"Some, CPU",2.13.0,,1.31.0,,,abc123,2026-01-02T03:04:05Z'
MODEL = "blocks 0123456789ab"
SCENES = "32 scenes of 64 pixels from 0, 12 steps"


def write_rows(root: Path, name: str, lines: list[str]) -> None:
    """lines: bench to p80 as written in a file of rows; p99, n and the rest are filled in."""
    text = "\n".join([",".join(COLUMNS), *(f"{line},9,32,{REST}" for line in lines)])
    (root / RESULTS / f"{name}.csv").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def measured(project: Path) -> Path:
    """Rows of three precisions, of which one loses more than it may."""
    steps = {"framert": (0.4, 3.5), "openvino-bf16": (0.2, 7.0), "onnxruntime-int8": (0.14, 9.8)}
    lines = ["step_cpu,eager,12x768h8,step,s,1.4,1.4,1.4"]
    for side, (seconds, ratio) in steps.items():
        lines.append(f"step_cpu,{side},12x768h8,step,s,{seconds},{seconds},{seconds}")
        lines.append(f"step_cpu,{side}/eager,12x768h8,rate_ratio,x,{ratio - 0.1},{ratio},{ratio + 0.2}")
    write_rows(project, "step_cpu", lines)
    lines = []
    for side, psnr, loss in (
        ("onnxruntime-fp32", 100, 0),
        ("openvino-bf16", 41.24, 0.001),
        ("onnxruntime-int8", 33, 0.04),
    ):
        task = f'"image_to_depth; {SCENES}; {MODEL}"'
        if not loss:  # the reference has no distance to itself
            lines.append(f"quality,{side},{task},abs_rel,1,1,0.04,1")
            continue
        lines.append(f"quality,{side},{task},latents_psnr,dB,1,{psnr},1")
        lines.append(f'quality,{side},"edit; {SCENES}; {MODEL}",latents_psnr,dB,1,{psnr + 3},1')
        ratio = f"quality,{side}/onnxruntime-fp32,{task}"
        lines.append(f"quality,{side},{task},velocity_error,1,1,{loss * 2},1")
        lines += [
            f"{ratio},abs_rel_{end}_ratio,x,1,{value},1"
            for end, value in (("loss", loss), ("loss_low", loss - 0.02), ("loss_high", loss + 0.02))
        ]
        lines.append(f"{ratio},psnr_loss_ratio,x,1,{loss / 2},1")
    write_rows(project, "quality", lines)
    lines = [f"serve,onnxruntime-int8,files; {MODEL},bundle_size,MB,1,18.4,1"]
    lines += [f"serve,onnxruntime-int8,load and so on; {MODEL},peak_resident,MiB,1,301,1"]
    lines += ["serve,onnxruntime-int8,files; other ffffffffffff,bundle_size,MB,1,999,1"]
    lines += [f'serve,onnxruntime-int8,"alone: edit 64x64, 50 steps; {MODEL}",latency,s,1,0.51,1']
    lines += [f'serve,onnxruntime-int8,"alone: edit 64x64, 50 steps, against fp32 of x; {MODEL}",psnr,dB,1,34.56,1']
    write_rows(project, "serve", lines)
    return project


def block(report: ModuleType, project: Path, name: str) -> str:
    (project / "README.md").write_text(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n", encoding="utf-8")
    assert report.main([], project) == 0
    return (project / "README.md").read_text(encoding="utf-8")


def test_the_precision_table_sets_speed_beside_quality(report: ModuleType, measured: Path) -> None:
    lines = block(report, measured, "precision").splitlines()
    assert lines[3] == (
        "| **framert**, ONNX Runtime, int8 | 18 MB | 301 MiB | 140 ms | 9.80x | 8.0% | 33.0 dB | "
        "4.00% (2.00% to 6.00%), abs_rel of image_to_depth **beyond 1 %** |"
    )
    assert lines[4] == (
        "| **framert**, OpenVINO, bf16 |  |  | 200 ms | 7.00x | 0.2% | 41.2 dB | "
        "0.10% (-1.90% to 2.10%), abs_rel of image_to_depth |"
    )
    assert lines[5].startswith("| **framert**, ONNX Runtime, fp32 |  |  | 400 ms | 3.50x |  |  | reference |")
    assert any("on blocks, 32 scenes of 64 pixels from 0, 12 steps" in line for line in lines)
    assert lines[-2] == "![speed of a step against its quality, by precision](benchmarks/results/speed_quality.png)"


def append_rows(root: Path, name: str, lines: list[str], rest: str = REST) -> None:
    with (root / RESULTS / f"{name}.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"{line},9,32,{rest}\n" for line in lines))


def test_the_precision_table_mixes_no_settings(report: ModuleType, measured: Path) -> None:
    """An older evaluation over other scenes, however bad, is another question's answer."""
    before = block(report, measured, "precision")
    task = f'"image_to_depth; 200 scenes of 64 pixels from 0, 30 steps; {MODEL}"'
    older = [
        f"quality,openvino-bf16,{task},latents_psnr,dB,1,9,1",
        f"quality,openvino-bf16,{task},velocity_error,1,1,9,1",
    ]
    append_rows(measured, "quality", older, REST.replace("2026", "2025"))
    assert block(report, measured, "precision") == before


def test_a_smaller_loss_that_is_beyond_the_limit_is_named(report: ModuleType, measured: Path) -> None:
    losses = zip(("loss", "loss_low", "loss_high"), (0.0009, 0.02, 0.03), strict=True)  # below the largest loss
    task = f'"image_to_depth; {SCENES}; {MODEL}"'
    ratio = f"quality,openvino-bf16/onnxruntime-fp32,{task}"
    append_rows(measured, "quality", [f"{ratio},iou_{end}_ratio,x,1,{value},1" for end, value in losses])
    assert "abs_rel of image_to_depth, **1 other beyond 1 %** |" in block(report, measured, "precision")


def test_the_table_of_tasks_has_every_loss_with_its_interval(report: ModuleType, measured: Path) -> None:
    task = f'"edit; {SCENES}; {MODEL}"'
    lines = [f"quality,onnxruntime-fp32,{task},psnr,dB,1,27.04,1"]
    lines += [f'quality,onnxruntime-fp32,"identity; {SCENES}; {MODEL}",colours,1,1,1,1']
    lines += [
        f"quality,openvino-bf16/onnxruntime-fp32,{task},psnr_{end}_ratio,x,1,{value},1"
        for end, value in (("loss", -0.001), ("loss_low", -0.002), ("loss_high", 0.0005))
    ]
    append_rows(measured, "quality", lines)
    found = block(report, measured, "quality").splitlines()
    assert found[1] == "| task | metric, median of ONNX Runtime, fp32 | OpenVINO, bf16 | ONNX Runtime, int8 |"
    assert found[3] == (
        "| `image_to_depth` | abs_rel 0.04 | 0.10% (-1.90% to 2.10%) | 4.00% (2.00% to 6.00%) **beyond 1 %** |"
    )
    assert "| `edit` | psnr 27 dB | -0.10% (-0.20% to 0.05%) |  |" in found
    assert "blocks, 32 scenes of 64 pixels from 0, 12 steps." in found[-2]
    assert "Scored by thresholds alone, which are not judged: `identity`." in found[-2]


def test_quantizers_stand_side_by_side(report: ModuleType, project: Path) -> None:
    lines = []
    for side, factor in (("framert", 1), ("nncf-products 3.4.0", 2)):
        for state, more in (("as trained", 1), ("planted outliers", 3)):
            rest = f"20 steps; {state}; {MODEL}"
            lines += [
                f"quantizers,{side},noise {level}; {rest},velocity_error,1,1,{error * factor * more},1"
                for level, error in ((1.0, 0.01), (0.1, 0.02))
            ]
            lines += [f"quantizers,{side},noise 1.0; {rest},velocity_error_largest,1,1,9,1"]
            lines += [f'quantizers,{side},"a, b; {rest}",latents_psnr,dB,1,{50 / factor / more},1']
            lines += [f"quantizers,{side},three requests packed; {rest},packed_psnr,dB,1,{100 / factor},1"]
    lines += [f"quantizers,modelopt 0.47.0,noise 1.0; 20 steps; as trained; {MODEL},velocity_error,1,1,0.05,1"]
    write_rows(project, "quantizers", lines)
    stale = f"quantizers,modelopt 0.47.0,noise 1.0; 4 steps; as trained; {MODEL},velocity_error,1,1,0.9,1"
    append_rows(project, "quantizers", [stale], REST.replace("2026", "2025"))
    found = block(report, project, "quantizers").splitlines()
    assert found[3] == "| **framert**: per-token scales | 1.0% to 2.0% | 50.0 dB | yes | 3.0% to 6.0% | 16.7 dB |"
    assert found[4] == (
        "| NNCF, framert's products (3.4.0) | 2.0% to 4.0% | 25.0 dB | to 50 dB | 6.0% to 12.0% | 8.3 dB |"
    )
    assert found[5] == "| ModelOpt SmoothQuant, framert's products (0.47.0) | 5.0% to 5.0% |  |  |  |  |"


def test_the_step_table_has_our_other_sides(report: ModuleType, measured: Path) -> None:
    text = block(report, measured, "step")
    assert "| **framert**, OpenVINO, bf16 | 200 ms | 200 to 200 | is itself 7.00x eager fp32 |  |" in text
    assert "| published algorithm, PyTorch eager, fp32 | 1400 ms | 1400 to 1400 | 3.50x |  |" in text


def test_the_serve_table_has_the_gate_beside_the_speed(report: ModuleType, measured: Path) -> None:
    text = block(report, measured, "serve")
    assert "blocks; 2 threads of Some, CPU; commit abc123 (2026-01-02)." in text
    assert (
        "| **framert**, ONNX Runtime, int8 | alone: edit 64x64, 50 steps | latency | 0.51 s | 9 s | 34.6 dB |" in text
    )


def test_a_packed_load_has_its_worst_pictures_beside_it(report: ModuleType, measured: Path) -> None:
    side = "serve,onnxruntime-int8"
    lines = [f'{side},"packed: 4 requests of edit, depth; {MODEL}",throughput,requests/s,1,7,1']
    lines += [
        f'{side},"packed: {kind}, against fp32 of x; {MODEL}",psnr,dB,1,{psnr},1'
        for kind, psnr in (("edit", 40), ("depth", 31.5))
    ]
    append_rows(measured, "serve", lines)
    assert "packed: 4 requests of edit, depth | throughput | 7 requests/s |  | 31.5 dB |" in block(
        report, measured, "serve"
    )


def test_the_memory_table_is_of_one_run(report: ModuleType, project: Path) -> None:
    case = "published configuration, random weights, denoiser=int4,text_encoder=int8; image_to_depth 512x512, 2 steps"
    write_rows(project, "memory_cpu", [f'memory_cpu,onnxruntime,"{case}",peak_resident,GiB,3.5,3.5,3.5'])
    other = case.replace("512x512", "64x64")
    row = f'memory_cpu,onnxruntime,"{other}",peak_resident,GiB,1.5,1.5,1.5'
    append_rows(project, "memory_cpu", [row], REST.replace("2026", "2025"))
    text = block(report, project, "memory")
    assert "| ONNX Runtime, denoiser=int4,text_encoder=int8 | 3.50 GiB |" in text
    assert "1.50" not in text
    assert "image_to_depth 512x512, 2 steps" in text


@pytest.mark.parametrize(
    "name", ["precision", "quality", "quantizers", "serve", "memory", "scaling", "kernels", "denoiser"]
)
def test_blocks_without_rows_are_empty(report: ModuleType, project: Path, name: str) -> None:
    (project / RESULTS / "step_cpu.csv").unlink()
    assert block(report, project, name) == f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n"


def test_a_plot_names_the_rows_it_was_drawn_from(
    report: ModuleType, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (measured / "README.md").write_text("# Title\n", encoding="utf-8")
    assert report.main(["--check"], measured) == 1
    assert "speed_quality.png is not drawn" in capsys.readouterr().err
    assert report.main([], measured) == 0
    file = measured / RESULTS / "speed_quality.png"
    with Image.open(file) as image:
        assert image.size[0] > 500
    before = file.read_bytes()
    assert report.main(["--check"], measured) == 0
    assert report.main([], measured) == 0
    assert file.read_bytes() == before  # what agrees is left alone
    rows = measured / RESULTS / "quality.csv"
    rows.write_text(rows.read_text(encoding="utf-8").replace("41.24", "42.24"), encoding="utf-8")
    assert report.main(["--check"], measured) == 1
    rows.unlink()
    assert report.main([], measured) == 0
    assert not file.exists()  # a plot without rows


def test_a_scaling_plot_is_drawn_from_its_rows(report: ModuleType, project: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = []
    for tokens in (64, 512, 4096):
        for requests in (1, 8):
            plural = "s" if requests > 1 else ""
            case = f"12 layers 768 wide; {tokens} tokens in {requests} request{plural} of 1 frames"
            lines.append(f"scaling_cpu,onnxruntime-fp32,{case},step,s,0.1,{tokens / 5000},0.1")
            lines.append(f"scaling_cpu,onnxruntime-fp32,{case},roofline,s,0.1,{tokens / 9000},0.1")
    write_rows(project, "scaling_cpu", lines)
    assert "](benchmarks/results/scaling.png)" in block(report, project, "scaling")
    assert (project / RESULTS / "scaling.png").stat().st_size > 5000


def test_a_foreign_picture_is_no_plot(report: ModuleType, measured: Path) -> None:
    (measured / "README.md").write_text("# Title\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(measured / RESULTS / "speed_quality.png")
    assert report.main(["--check"], measured) == 1


def test_a_readme_without_blocks_agrees(report: ModuleType, project: Path) -> None:
    (project / "README.md").write_text("# Title\n", encoding="utf-8")
    assert report.main(["--check"], project) == 0

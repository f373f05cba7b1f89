"""The README's figures are those of the rows, and a README that says something else is noticed."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

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


def test_a_readme_without_blocks_agrees(report: ModuleType, project: Path) -> None:
    (project / "README.md").write_text("# Title\n", encoding="utf-8")
    assert report.main(["--check"], project) == 0

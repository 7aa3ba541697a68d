"""Tables on narrow terminals: no digit of compile, ladder, matrix or doctor is lost, and no two rows are called alike.

The ladder's own table is in ``tests/tools/ladder``.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from backends.mnn.doctor.remedy import remedy
from backends.mnn.summary import figures
from backends.mnn.verify.logits import Measurement
from ir.evaluate.divergence import Distance
from tests.support.paths import EXAMPLE
from tests.support.runs import shown_at
from tools.compile.job import Request, compile_model
from tools.compile.report import show_result
from tools.doctor.command import diagnose, releases_of
from tools.doctor.words import show
from tools.matrix.model import Matrix, Row
from tools.matrix.report import markdown_page, show_matrix
from tools.shared.tables import Column, show_table

WIDTHS = (40, 60, 80, 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_cells_are_whole_and_in_order(width):
    rng = random.Random(width)
    for _ in range(20):
        count = rng.randint(2, 12)
        columns = [Column(f"head{number}", right=rng.random() < 0.5) for number in range(count)]
        rows = [[f"r{row}", *(f"{rng.random():.{rng.randint(2, 16)}f}" for _ in columns[1:])] for row in range(3)]
        text = shown_at(width, lambda console, rows=rows, columns=columns: show_table(console, columns, rows))
        assert max(map(len, text.splitlines())) <= width
        for row in rows:
            found = [word for line in text.splitlines() if line.split()[:1] == row[:1] for word in line.split()[1:]]
            assert found == row[1:]


def test_a_cell_wider_than_the_terminal_goes_on_in_the_next_line():
    text = shown_at(30, lambda console: show_table(console, [Column("a"), Column("b")], [["x", "1234567890" * 6]]))
    assert "".join(re.findall(r"\d+", text)) == "1234567890" * 6


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return compile_model(Request(str(EXAMPLE), tmp_path_factory.mktemp("shown") / "model", "default"))


@pytest.mark.parametrize("width", [60, 80])
def test_the_summary_of_a_compilation_has_every_digit(result, width):
    def show_all(console: Console) -> None:
        show_result(console, result, timing=True)

    text, wide = shown_at(width, show_all), shown_at(400, show_all)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for row in result.figures.rows:
        for cell in row:
            assert set(cell.split()) <= set(text.split())
    # The table of passes and everything else: the same numbers, wherever lines end.
    numbers = re.compile(r"\d[\d.,e%+-]*")
    assert set(numbers.findall(wide.replace("written to", ""))) - set(numbers.findall(text)) <= _of_path(result)


def _of_path(result) -> set[str]:
    """Numbers of the path of the folder, which may be folded."""
    return set(re.findall(r"\d[\d.,e%+-]*", str(result.out)))


def measurement(memory: str, precision: str, option: int, reference: str, kl: float) -> Measurement:
    distance = Distance(positions=10, max_abs=1.0, max_logit=9.0, kl=kl, top1=0.9)
    settings = {"memory": memory, "precision": precision, "threads": 1, "dynamic_option": option}
    return Measurement("3.6.1", "Linux", settings, reference, 5, distance, 4, 4)


def test_no_two_rows_of_measurements_are_called_alike():
    found = figures(
        [
            measurement("normal", "high", 0, "float", 0.1),
            measurement("normal", "low", 0, "float", 0.2),
            measurement("normal", "low", 0, "float", 0.2),
            measurement("low", "low", 0, "float", 0.3),
            measurement("low", "low", 2, "float", 0.4),
        ]
    )
    names = [row[:2] for row in found.rows]
    assert len(names) == len(set(names)) == 4
    assert names[0][0] == "normal, high" and names[-1][0] == "low 2" and "dynamic_option 2" in found.title


def matrix() -> Matrix:
    """Two families, one of them compiled for two targets, on five releases."""
    releases = ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")
    rows = [
        Row("qwen2", "fp32", releases, "portable"),
        Row("qwen2", "int4{block=32 symmetric}", releases, "portable"),
        Row("a-family-with-a-very-long-name", "int8", releases, "portable"),
        Row("a-family-with-a-very-long-name", "int8", releases, "3.6.1"),
    ]
    cells = {
        (row.key, release): {"status": "right", "error": 10.0 ** -(3 + place), "checks": {}}
        for row in rows
        for place, release in enumerate(releases)
    }
    return Matrix(releases, {"3.4.0": "no wheel"}, rows, cells, seconds=12.0)


@pytest.mark.parametrize("width", [60, 80])
def test_the_matrix_has_every_number_and_no_two_rows_are_called_alike(width):
    text = shown_at(width, lambda console: show_matrix(console, matrix()))
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for place in range(5):
        assert text.count(f"✓ 1e-{3 + place}") == 4
    assert all(release in text for release in matrix().releases)
    assert "(portable)" in text and "(3.6.1)" in text
    lines = [line.rsplit("|", 6)[0] for line in markdown_page(matrix(), "today").splitlines() if "✓" in line]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("width", [60, 80])
def test_the_doctor_has_every_digit(result, width, tmp_path: Path):
    (tmp_path / "llm.mnn").write_bytes((result.out / "llm.mnn").read_bytes())
    report = diagnose(tmp_path, releases_of("all"))
    report.runs.update(
        {release.version: "max error 1.2345678e-05 of logits that reach 14.25" for release in report.releases}
    )
    text = shown_at(width, lambda console: show(console, report, remedy(report)))
    assert "…" not in text
    for release in report.releases:
        assert f"{release.version} " in text
    assert text.count("1.2345678e-05") == len(report.releases)
    assert {item.code for item in report.findings} <= set(re.findall(r"\b[A-Z]\d{3}\b", text))

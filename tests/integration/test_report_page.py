"""The report in a real browser: it renders, and it asks for nothing."""

import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from harness import NeedPackage
from PIL import Image

from train.fit import FitOutcome

BROWSER = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Every name and address but the file itself leads nowhere.
    *("--host-resolver-rules=MAP * 127.0.0.1:9", "--hide-scrollbars"),
)


class Cells(HTMLParser):
    """Texts of the cells of one table."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self._table = table
        self._inside = False
        self._cell = False
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._inside = ("id", self._table) in attrs
        if tag == "td" and self._inside:
            self._cell = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.texts[-1] += data.strip()


@pytest.fixture
def browse(need_debian_package: NeedPackage, digits_fit: FitOutcome, tmp_path: Path) -> list[str]:
    need_debian_package("chromium", program="chromium")
    page = digits_fit.run.report_file.as_uri()
    return [*BROWSER, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1600", page]


def test_the_browser_shows_the_figures(browse: list[str], digits_fit: FitOutcome) -> None:
    done = subprocess.run(
        [*browse[:-1], "--dump-dom", browse[-1]],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    cells = Cells("confusion")
    cells.feed(done.stdout)
    counts = [int(text or 0) for text in cells.texts]
    assert counts == [count for row in digits_fit.evaluation.confusion for count in row]
    assert f"{100 * digits_fit.evaluation.accuracy:.2f} %" in done.stdout


def test_the_page_is_drawn(browse: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    subprocess.run(
        [*browse[:-1], f"--screenshot={picture}", browse[-1]],
        capture_output=True,
        timeout=120,
        check=True,
    )
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1200
    # The confusion matrix's diagonal and the curves: blue on white, over much of the page.
    blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 80)
    assert blue.sum() > 5000
    assert blue.any(axis=1).sum() > 300

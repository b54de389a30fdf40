"""Facts about the pages in a real browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.pipeline.comparison.compare import Compared, compare
from potstill.pipeline.comparison.request import compared_as_asked
from potstill.pipeline.report import Report
from potstill.pipeline.views.compare_views import comparison_html
from potstill.pipeline.views.html import report_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *("--enable-logging=stderr", "--window-size=1400,1000", "--virtual-time-budget=4000", "--dump-dom"),
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here"),
]

# Each page in a frame of a phone's and of a desktop's width, everything unfolded, then measured as it was laid out.
GAUGE = """<!doctype html><body><script>
const wanted = PAGES, found = {};
for (const name of wanted) for (const width of [390, 1280]) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px";
  frame.src = name;
  frame.onload = () => {
    const page = frame.contentDocument;
    for (const each of page.querySelectorAll("details")) each.open = true;
    const overlaps = [];
    for (const drawing of page.querySelectorAll("svg")) {
      const texts = [...drawing.querySelectorAll("text")]
        .map(each => [each.textContent, each.getBoundingClientRect()]).filter(([, box]) => box.width);
      texts.forEach(([one, a], index) => texts.slice(index + 1).forEach(([other, b]) => {
        if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2)
          overlaps.push(one + " / " + other);
      }));
    }
    const root = page.scrollingElement;
    found[name + " " + width] = {
      excess: root.scrollWidth - root.clientWidth, heading: page.querySelector("h1").textContent, overlaps,
      drawings: [...page.querySelectorAll("svg")].filter(each => each.getBoundingClientRect().width).length,
      smallest: Math.min(...[...page.querySelectorAll("svg text")].map(each => each.getBoundingClientRect().height)
        .filter(height => height)),
    };
    if (Object.keys(found).length == 2 * wanted.length) {
      const result = document.createElement("pre");
      result.id = "found";
      result.textContent = JSON.stringify(found);
      document.body.append(result);
    }
  };
  document.body.append(frame);
}
</script>"""


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document once it has loaded, and what the browser's console said."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def judged(samples: ModuleType, folder: Path, reports: list[Report]) -> Compared:
    """Runs beside a profile of the first one's machine, with budgets and a condition that fails."""
    names: list[Path] = []
    for number, report in enumerate(reports):
        names.append(folder / f"run-{number}.json")
        names[-1].write_text(report.model_dump_json())
    names.append(folder / "profile.json")
    layers = samples.operators(samples.LAYERS, 0.3)
    text = samples.profile_text(["a-very-long-name-of-a-model.onnx"], on=reports[0].machine, layers=layers)
    names[-1].write_text(text)
    return compared_as_asked(names, fail_if=["p99_ms>0.1"], budgets=["p50_ms=0.26", "p50_ms=0.25", "accuracy=98.4%"])


@pytest.fixture(scope="module")
def measured(samples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What the browser found about each page at each width, and its console."""
    folder = tmp_path_factory.mktemp("pages")
    report = samples.sample_report()
    names = [
        samples.Sketch(f"{n:02d}-a-very-long-name-of-a-step-{n}", 350 - n, 1 + n / 3, 10**6, 10**7) for n in range(12)
    ]
    long = samples.sample_report(names, name="a-name-as-long-as-" + 60 * "x")
    other = samples.sample_report(on=samples.machine("Another Processor"), name="elsewhere")
    regression = samples.as_regression(report)
    several = samples.with_several_targets(report)
    pages = {
        "regression.html": report_html(regression),
        "mixed.html": comparison_html(compare([(folder / "a", regression), (folder / "b", report)])),
        "report.html": report_html(report),
        "long.html": report_html(long),
        "compare.html": comparison_html(compare([(folder / "a", report), (folder / "b", other), (folder / "c", long)])),
        "several.html": report_html(several),
        "judged.html": comparison_html(judged(samples, folder, [several, other, report])),
    }
    for name, text in pages.items():
        (folder / name).write_text(text)
    gauge = folder / "gauge.html"
    gauge.write_text(GAUGE.replace("PAGES", json.dumps(list(pages))))
    document, console = browse(gauge, folder / "profile")
    found = re.search(r'<pre id="found">(.*?)</pre>', document, flags=re.DOTALL)
    assert found is not None, document[-500:]
    return json.loads(html.unescape(found[1])), console


class TestInABrowser:
    def test_the_console_stays_empty(self, measured: tuple[dict[str, Any], list[str]]) -> None:
        assert measured[1] == []

    def test_a_broken_page_would_be_noticed(self, tmp_path: Path) -> None:
        page = tmp_path / "broken.html"
        page.write_text("<!doctype html><script>nonsense()</script>")
        _, console = browse(page, tmp_path / "profile")
        assert any("nonsense is not defined" in line for line in console)

    def test_no_page_is_wider_than_a_phone_or_a_desktop(self, measured: tuple[dict[str, Any], list[str]]) -> None:
        assert {name: each["excess"] for name, each in measured[0].items() if each["excess"] > 0} == {}
        assert len(measured[0]) == 14

    def test_no_text_of_a_drawing_lies_over_another(self, measured: tuple[dict[str, Any], list[str]]) -> None:
        assert {name: each["overlaps"] for name, each in measured[0].items() if each["overlaps"]} == {}

    def test_the_drawings_are_there_and_their_letters_are_large_enough(
        self, measured: tuple[dict[str, Any], list[str]]
    ) -> None:
        for page, each in measured[0].items():
            # Runs of different metrics have no scatter in common.
            assert each["drawings"] >= (2 if page.startswith("mixed") else 4)
            assert each["smallest"] >= 11

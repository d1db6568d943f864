"""Reports: what a browser shows of a registration, and of a list."""

import re
import shutil

import numpy as np
import pytest

from rrl_match import Registration
from rrl_match.io.report import write_index, write_report
from rrl_match.registration import TiePoints
from rrl_match.transforms import Affine

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
B = RNG.integers(0, 256, (66, 80, 3), dtype=np.uint8)
POINTS = np.array([(10.0, 20), (30, 40)])
TIE_POINTS = TiePoints(POINTS, POINTS, np.ones(2, np.float32), np.zeros(2), np.array([True, False]))
FOUND = Registration(Affine(np.eye(3)), model="affine", probability=0.97, tie_points=TIE_POINTS)
REFUSED = Registration(reason="the <images> differ", advice="crop A")


def record(result, **more):
    """As in registration.json."""
    return {
        "name": "one",
        "image_a": "a & b.png",
        "image_b": "sub/b.png",
        "ok": result.ok,
        "reason": result.reason,
        "model": result.model,
        "matrix": [[1.0, 0, 5], [0, 1, -3]] if result.ok else None,
        "probability": result.probability,
        "agreement": result.agreement,
        "size_a": [90, 70],
        "notes": ["read <b>whole</b>"],
        **more,
    }


def report(folder, result):
    write_report(folder, record(result), result, A, B)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_report_is_one_file_with_everything(tmp_path):
    page = report(tmp_path, FOUND)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing from elsewhere
    assert page.count("data:image/jpeg;base64,") == 5
    assert "<h1>a &amp; b.png registered to b.png</h1>" in page
    assert "97%" in page
    assert "1  0  5<br>0  1  -3" in page
    assert "read &lt;b&gt;whole&lt;/b&gt;" in page
    assert page.count("<circle") == 2
    assert page.count("<path") == 1  # residuals of inliers
    assert re.findall(r'name="view" value="([^"]+)"', page) == [
        "after",
        "before",
        "checkerboard",
        "error",
        "tie-points",
    ]
    assert "$" not in page


def test_report_of_a_refused_pair_says_why_and_what_next(tmp_path):
    page = report(tmp_path, REFUSED)
    assert "Refused: the &lt;images&gt; differ." in page
    assert "crop A" in page
    assert page.count('type="radio"') == 1


def test_index_shows_the_doubtful_pairs_first(tmp_path):
    for name in ("sure", "unsure", "refused"):
        (tmp_path / name).mkdir()
        report(tmp_path / name, REFUSED if name == "refused" else FOUND)
    records = [
        record(FOUND, name="sure"),
        record(FOUND, name="unsure", probability=0.6),
        record(REFUSED, name="refused"),
        {"name": "broken", "error": "b.png is empty"},
    ]
    write_index(tmp_path, records)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "2 registered, 1 refused, 1 with errors" in page
    names = re.findall(r"<td>(?:<a href=\"[^\"]*\">)?(\w+)(?:</a>)?</td><td>(?:ok|refused|error)", page)
    assert names == ["broken", "refused", "unsure", "sure"]
    for link in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert (tmp_path / link).is_file()
    head = page.partition("<h1>")[0].replace("4 pairs", "")
    of_report = (tmp_path / "sure" / "report.html").read_text(encoding="utf-8").partition("<h1>")[0]
    assert re.sub("<title>.*</title>", "<title></title>", of_report) == head


@pytest.fixture
def browser():
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.slow
def test_report_works_in_a_browser(tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    report(tmp_path, FOUND)
    browser.get((tmp_path / "report.html").as_uri())
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert sizes == [80] * 5
    after = browser.find_element(By.CSS_SELECTOR, "[data-view=after]")
    wipe = browser.find_element(By.ID, "wipe")
    before = after.value_of_css_property("clip-path")
    wipe.send_keys(Keys.ARROW_RIGHT * 10)  # by keyboard alone
    assert after.value_of_css_property("clip-path") != before
    browser.find_element(By.CSS_SELECTOR, "input[value=checkerboard]").send_keys(Keys.SPACE)
    assert not after.is_displayed()
    assert not wipe.is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "[data-view=checkerboard]").is_displayed()
    for view in ("error", "tie-points"):
        browser.find_element(By.CSS_SELECTOR, f"input[value={view}]").send_keys(Keys.SPACE)
        assert browser.find_element(By.CSS_SELECTOR, f"[data-view={view}]").is_displayed()
    assert not browser.find_element(By.CSS_SELECTOR, "[data-view=checkerboard]").is_displayed()
    assert "2 tie points" in browser.find_element(By.ID, "caption").text
    browser.find_element(By.CSS_SELECTOR, "input[value=after]").send_keys(Keys.SPACE)
    blink = browser.find_element(By.ID, "blink")
    for pressed in ("true", "false"):
        blink.send_keys(Keys.ENTER)
        assert blink.get_attribute("aria-pressed") == pressed
    assert browser.get_log("browser") == []

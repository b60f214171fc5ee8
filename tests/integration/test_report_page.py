"""The report's page in a real Chromium: nothing runs, nothing is fetched, nothing overflows."""

import base64
import json
import shutil

import pytest

from llambert.gates import Gate
from llambert.held import PricesConfig
from llambert.plan import Range, Rate, Work, as_json, estimate
from llambert.report import report
from llambert.storage import Folder
from tests.finished_run import RECORDS, finished_run, manifest, settings, write_curve

_RUNS = "window.ran = true"
HOSTILE = (
    f"<script>{_RUNS}</script><img src=x onerror='{_RUNS}'></style></svg>"
    f"<svg onload=\"{_RUNS}\"><a href='javascript:{_RUNS}'>{{{{ 6 * 7 }}}} https://example.com/x"
)
LONG = "unbroken" * 40
PHONE = 360  # CSS pixels
_CASCADE = {
    **{"least_certain": 4990, "threshold": 0.6, "answered": 4900, "changed": 700, "gold": None},
    "cost": {"answers": 5000, "asked": 5000, "seconds": 320.0, "device": "gpu"}
    | {"records_per_s": 17.0, "device_seconds": 640.0},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The address of the page of a run that is hostile wherever a run can be."""
    folder = tmp_path_factory.mktemp("report")
    mark = f"{HOSTILE} {LONG}"
    made = finished_run(folder, mark, (f"no {HOSTILE}", f"yes {HOSTILE}"))
    curve = write_curve(folder, mark)
    told = settings(mark, (f"no {HOSTILE}", f"yes {HOSTILE}"))
    made["cascade"] = Folder(str(folder / "cascade")), manifest("cascade", RECORDS, _CASCADE)
    prices = PricesConfig(currency="EUR", llm_device_hour=36.0, encoder_device_hour=3.6)
    rate = Rate("tokens", 1000.0, mark, margin=0.5, device="gpu")
    work = Work(Range.exactly(1000), "annotate", "llm", Range.exactly(100), Range.exactly(2))
    plan = {
        "created": "2031-05-06T07:08:09+00:00",
        "rates": {"annotate": as_json(rate)},
        "prices": prices.model_dump(),
        "done": [],
        "llambert": estimate({"annotate": work}, {"annotate": rate}, prices),
    }
    gates = [Gate("llm_accuracy", 0.8, 9, 10, mark)]
    report(mark, made, told, Folder(str(folder / "report")), gates, plan, curve, prices)
    return (folder / "report" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that logs what a page says and asks for."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser, page):
    """The page, freshly opened on a desktop screen; tests set another device or medium."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    return browser


# WCAG 2.2, "relative luminance" and "contrast ratio", of the colours that elements end up with.
_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const light = colour => {
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = light(getComputedStyle(document.body).backgroundColor);
const contrast = colour => {
  const ink = light(colour);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
};
const least = (query, property) => Math.min(...[...document.querySelectorAll(query)]
  .map(each => contrast(getComputedStyle(each)[property])));
return {paper, text: least('p, td, th, h1, h2, figcaption', 'color'),
        figures: least('svg text', 'fill'),
        series: Math.min(...['llm', 'baseline', 'llambert', 'combined'].map(who => contrast(
          getComputedStyle(document.body).getPropertyValue('--series-' + who))))};
"""


def test_nothing_runs_and_nothing_is_fetched(opened, page):
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {page}
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert opened.execute_script("return window.ran") is None


def test_a_hostile_record_stays_text(opened):
    for kind in ("script", "img", "iframe", "object", "embed", "form", "base", "svg a"):
        assert not opened.find_elements("css selector", kind), kind
    links = "return [...document.links].every(each => each.getAttribute('href').startsWith('#'))"
    assert opened.execute_script(links)
    attributes = (
        "return [...document.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    )
    assert not [name for name in opened.execute_script(attributes) if name.startswith("on")]
    assert opened.title.startswith(HOSTILE)
    for section in ("gates", "cascade", "plan", "curve"):  # each section is there
        assert opened.find_elements("css selector", f"#{section}")
    places = ("header", ".warnings", ".confusion", "#mistakes ~ blockquote", "pre", "#plan + p")
    for place in places:
        shown = [each.text for each in opened.find_elements("css selector", place)]
        assert any(HOSTILE in text for text in shown), place


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_on_a_light_and_on_a_dark_screen(opened, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    found = opened.execute_script(_CONTRAST)
    assert (found["paper"] < 0.05) if scheme == "dark" else (found["paper"] > 0.99)
    assert found["text"] >= 4.5 and found["figures"] >= 4.5  # WCAG 2.2, 1.4.3
    assert found["series"] >= 3  # 1.4.11: lines and marks


def test_a_phone_does_not_scroll_sideways(opened):
    phone = {"width": PHONE, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert opened.execute_script("return document.documentElement.scrollWidth") == PHONE
    outside = """return [...document.querySelectorAll('body *')].filter(each =>
      each.getBoundingClientRect().right > innerWidth + 1 && !each.closest('.wide'))
      .map(each => each.outerHTML.slice(0, 200))"""
    assert opened.execute_script(outside) == []
    tables = opened.find_elements("css selector", "table")
    assert tables and all(
        each.find_elements("xpath", "ancestor::*[@class='wide']") for each in tables
    )
    scrolls = """return [...document.querySelectorAll('.wide')]
      .some(each => each.scrollWidth > each.clientWidth)"""
    assert opened.execute_script(scrolls)


def test_paper_is_white_and_has_all_of_it(opened):
    dark = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert opened.execute_script(_CONTRAST)["paper"] > 0.99
    assert not opened.find_element("css selector", "nav").is_displayed()
    a4 = {"width": 718, "height": 1047, "deviceScaleFactor": 1, "mobile": False}  # less margins
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", a4)
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(wide) == 0
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")

"""The page in a real browser: it renders, its slider works, nothing is fetched, nothing is complained of."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest

import prismfl
from prismfl.report import status
from prismfl.report.card import build_card
from prismfl.report.page import build_report
from prismfl.report.status import Status
from prismfl.run.folder import read_rounds
from prismfl.run.loop import Silent

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# Chromium speaks its protocol on file descriptors 3 and 4, a null byte after each message: no port, no library.
LAUNCH = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 20) for word in sys.argv[1:3])
os.dup2(reads, 3), os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a headless browser, driven over pipes."""

    def __init__(self, profile):
        theirs, self.out = os.pipe()
        self.into, told = os.pipe()
        words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        words += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs), str(told), *words],
            pass_fds=(theirs, told),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(told)
        self.numbers, self.events, self.rest, self.session = itertools.count(1), [], b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **values):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": values}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            heard = self.receive()
            if heard.get("id") == number:
                assert "error" not in heard, heard
                return heard["result"]
            self.events.append(heard)

    def receive(self):
        while b"\0" not in self.rest:
            more = os.read(self.into, 65536)
            assert more, "the browser is gone"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def find(self, expression):
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.out)
        self.process.terminate()
        self.process.wait(30)
        os.close(self.into)


SHOWN = "[...document.querySelectorAll('.viewer img')].filter(one => one.offsetParent).map(one => one.dataset.told)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory, fabricate, evaluate_as):
    """The browser with a report open, of a run whose classes have hostile names."""
    names = ("<script>document.title='bad'</script>", '"><img src=x onerror="document.title=1">', "$x$", "cat", "dog")
    folder = fabricate(tmp_path_factory.mktemp("browser") / "run", grids=3, classes=names)
    evaluate_as(folder, class_shares=[0.2] * 5, class_names=list(names))
    browser.open(build_report([folder.root]))
    return browser


def test_the_page_renders(opened):
    assert opened.find("document.title") == "run – prismfl report"
    assert opened.find("document.querySelectorAll('figure svg').length") > 10
    heights = "[...document.querySelectorAll('figure svg')].map(one => one.getBoundingClientRect().height)"
    assert all(height > 100 for height in opened.find(heights))
    assert opened.find("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


def test_the_slider_follows_the_keyboard(opened):
    assert opened.find(SHOWN) == ["after round 6"]
    opened.find("document.querySelector('input[type=range]').focus()")
    opened.press("ArrowLeft", 37)
    assert opened.find(SHOWN) == ["after round 4"]
    assert opened.find("document.querySelector('input[type=range]').getAttribute('aria-valuetext')") == "after round 4"
    assert opened.find("document.querySelector('output').value") == "after round 4"
    opened.press("Home", 36)
    assert opened.find(SHOWN) == ["after round 2"]
    assert opened.find("document.querySelector('input[type=range]').labels[0].textContent") == "Round"


def test_play_begins_anew_from_the_end(opened):
    opened.find("document.querySelector('input[type=range]').focus()")
    opened.press("End", 35)
    opened.find("document.querySelector('.viewer button').click()")
    assert opened.find(SHOWN) == ["after round 2"]
    opened.find("document.querySelector('.viewer button').click()")
    assert opened.find("document.querySelector('.viewer button').textContent") == "Play"


def test_a_phone_needs_no_sideways_scrolling(opened):
    opened.ask("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    try:
        assert opened.find("document.documentElement.scrollWidth") <= 360
    finally:
        opened.ask("Emulation.clearDeviceMetricsOverride")


def test_dark_pages_are_dark(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    before = opened.find(ground)
    opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert opened.find(ground) != before


def test_nothing_is_fetched_and_nothing_complained_of(opened):
    asked = [e["params"]["request"]["url"] for e in opened.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file://", "data:")) for url in asked)
    assert sum(url.startswith("file://") for url in asked) == 1
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in opened.events if event.get("method") in kinds] == []


def test_each_of_several_runs_has_its_own_slider_whatever_its_number_of_grids(browser, tmp_path, fabricate):
    roots = [fabricate(tmp_path / name, grids=grids).root for name, grids in (("a", 1), ("b", 3), ("c", 2))]
    browser.events.clear()
    browser.open(build_report(roots, tmp_path / "page.html"))
    assert browser.find(SHOWN) == ["after round 6"] * 3
    seen = "[...document.querySelectorAll('.controls')].map(one => one.offsetParent !== null)"
    assert browser.find(seen) == [True, True] and browser.find("document.querySelectorAll('.viewer').length") == 3
    for index, others in ((0, ["after round 6", "after round 4", "after round 6"]), (1, None)):
        browser.find(f"document.querySelectorAll('input[type=range]')[{index}].focus()")
        browser.press("ArrowLeft", 37)
        assert browser.find(SHOWN) == (others or ["after round 6", "after round 4", "after round 3"])
    assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]


@pytest.mark.parametrize("width", [1280, 420])
def test_status_and_card_fit_any_width_and_complain_of_nothing(browser, tmp_path, tiny, width):
    folder = prismfl.train(tiny(), out=tmp_path / "run").folder
    with Status(Silent(), folder.root) as page:
        page.started(0, 2)
        for record in read_rounds(folder):
            page.round_done(record, 2)
        page.round_done(read_rounds(folder)[-1] | {"left_out": {"2": "a reason that is as long as reasons are"}}, 2)
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    try:
        for path in (folder.root / "status.html", build_card(folder.root), build_report([folder.root])):
            browser.events.clear()
            browser.open(path)
            assert browser.find("document.documentElement.scrollWidth") <= width, path.name
            assert browser.find("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
            kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            assert [event for event in browser.events if event.get("method") in kinds] == []
    finally:
        browser.ask("Emulation.clearDeviceMetricsOverride")


def test_a_page_of_a_run_under_way_looks_again_by_itself(browser, tmp_path, fabricate, monkeypatch):
    monkeypatch.setattr(status, "_REFRESH", 1)
    folder = fabricate(tmp_path / "run", rounds=4, done=2, grids=0)
    page = Status(Silent(), folder.root)
    page.started(1, 4)
    browser.events.clear()
    browser.open(folder.root / "status.html")
    assert "1 of 4" in browser.find("document.body.textContent")
    page.started(2, 4)
    browser.events.clear()
    while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
        browser.events.append(browser.receive())
    assert "2 of 4" in browser.find("document.body.textContent")

"""The page in a browser, if there is a Chromium: it fits its window, asks for nothing, and shows its pictures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed, so the page was not looked at")

# A page around the report, of one origin with it, that measures it inside a frame of the wanted size.
PROBE = """<!doctype html><body style="margin:0"><pre id="found"></pre>
<iframe src="/report.html" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
document.querySelector("iframe").onload = function () {{
  const view = this.contentWindow, page = view.document.documentElement;
  const boxes = [...view.document.querySelectorAll(".box")];
  document.getElementById("found").textContent = JSON.stringify({{
    width: view.innerWidth, needed: page.scrollWidth, height: page.scrollHeight,
    resources: view.performance.getEntriesByType("resource").map(entry => entry.name),
    scrolling: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
    pictures: [...view.document.querySelectorAll("svg.picture")].map(svg => svg.getBoundingClientRect().width),
  }});
}};
</script>"""


@pytest.fixture
def served(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the page and the probe, and what has been asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            size = re.fullmatch(r"/probe-(\d+)-(\d+)", self.path)
            body = b""
            if size:
                body = PROBE.format(width=size[1], height=size[2]).encode()
            elif self.path == "/report.html":
                body = page.read_bytes()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_fits_its_window_and_asks_for_nothing(served, tmp_path, width, height):
    address, asked = served
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=10000"]
    command += ["--window-size=1400,1000", "--dump-dom", f"{address}/probe-{width}-{height}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert written, done.stderr[-2000:]
    found = json.loads(unescape(written[1]))
    assert found["width"] == width
    assert found["needed"] <= width
    assert found["height"] > 2 * height
    assert found["resources"] == []
    assert set(asked) - {"/favicon.ico"} == {f"/probe-{width}-{height}", "/report.html"}  # the probe has no icon
    assert min(found["pictures"]) > 300
    if width < 500:
        assert found["scrolling"] >= 3  # wide tables scroll inside their own box

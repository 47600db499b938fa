"""A headless Chromium over the W3C WebDriver protocol, which chromedriver speaks as plain HTTP."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from sundog.rayapi.local import free_ports

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1100,900", "--no-proxy-server"]  # fmt: skip


def missing() -> str:
    """Why there is no browser to test with; empty where there is one."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"{name} is not installed (apt-get install chromium chromium-driver)"
    return ""


class Browser:
    """One window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._path = f"/session/{session}"

    def ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self._client.request(
            method, self._path + path, json=body if method == "POST" else None
        )
        assert answer.is_success, answer.text[:1000]
        return answer.json()["value"]

    def open(self, url: str) -> None:
        self.ask("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.ask("POST", "/execute/sync", script=script, args=list(arguments))

    def find(self, css: str) -> str:
        found = self.ask("POST", "/element", using="css selector", value=css)
        return f"/element/{found[_ELEMENT]}"

    def click(self, css: str) -> None:
        self.ask("POST", f"{self.find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self.ask("POST", f"{self.find(css)}/value", text=text)

    def clear(self, css: str) -> None:
        self.ask("POST", f"{self.find(css)}/clear")

    def text(self, css: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", css))

    def draw(self, css: str, points: list[tuple[int, int]]) -> None:
        """A stroke with the mouse through points relative to the middle of an element."""
        origin = {_ELEMENT: self.find(css).rpartition("/")[2]}
        moves: list[dict[str, Any]] = [
            {"type": "pointerMove", "duration": 30, "origin": origin, "x": x, "y": y}
            for x, y in points
        ]
        down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        actions = [moves[0], down, *moves[1:], up]
        pointer = {"type": "pointer", "id": "mouse", "actions": actions}
        self.ask("POST", "/actions", actions=[pointer])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def wait(self, what: str, check: Callable[[], Any], timeout_s: float = 60) -> Any:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = check()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come about; the page: {self.text('body')[:800]}")

    def problems(self) -> list[str]:
        """What the browser's console complained of."""
        entries = self.ask("POST", "/se/log", type="browser")
        return [e["message"] for e in entries if e["level"] == "SEVERE"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    port = free_ports(1)[0]
    with (folder / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    base = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=base, timeout=120, trust_env=False) as client:
            _wait_for_driver(client)
            options = {"args": [*_OPTIONS, f"--user-data-dir={folder / 'profile'}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            body = {"capabilities": {"alwaysMatch": wanted}}
            answer = client.post("/session", json=body)
            assert answer.is_success, answer.text[:1000]
            session = answer.json()["value"]["sessionId"]
            yield Browser(client, session)
            client.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(30)


def _wait_for_driver(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if client.get("/status").json()["value"]["ready"]:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")

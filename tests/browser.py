"""A headless Chromium for tests of pages, driven over WebDriver's HTTP with nothing but `requests`."""

import base64
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for a reference to an element


def missing() -> str:
    """Why no browser can be driven here; empty if one can."""
    lacking = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(lacking)} not installed (Debian: chromium, chromium-driver)" if lacking else ""


class Browser:
    """One session of Chromium: `with Browser() as browser: browser.open(page)`."""

    def __init__(self, width: int = 1280, height: int = 900, touch: bool = False) -> None:
        self._size, self._touch = (width, height), touch

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if b"started successfully on port" in line:
                port = int(line.decode().split("port ")[1].rstrip(". \n"))
                break
        else:
            raise RuntimeError("chromedriver did not start")
        width, height = self._size
        arguments = [*FLAGS, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"]
        options: dict[str, Any] = {"binary": shutil.which("chromium"), "args": arguments}
        if self._touch:
            metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True, "mobile": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._at = f"http://127.0.0.1:{port}/session"
        answer = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._at += f"/{answer['sessionId']}"
        self._call("POST", "/timeouts", {"script": 60_000, "pageLoad": 60_000})
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.communicate()
            self._profile.cleanup()

    def open(self, page: Path) -> None:
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of the body of a function; a promise is waited for."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, seconds: float = 120) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while True:
            value = self.run(f"return {script}")
            if value or time.monotonic() > end:
                assert value, f"never true: {script}"
                return value
            time.sleep(0.1)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        self.drag(selector, [(x, y)])

    def drag(self, selector: str, points: list[tuple[float, float]]) -> None:
        """Press at the first point, in shares of an element's width and height, move through the others, let go."""
        box = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center', inline: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", selector,
        )  # fmt: skip
        places = [(round(box[0] + x * box[2]), round(box[1] + y * box[3])) for x, y in points]

        def move(place: tuple[int, int], duration: int) -> dict[str, Any]:
            return {"type": "pointerMove", "duration": duration, "x": place[0], "y": place[1], "origin": "viewport"}

        steps: list[dict[str, Any]] = [move(places[0], 0), {"type": "pointerDown", "button": 0}]
        steps += [move(place, 30) for place in places[1:]]
        if len(places) > 1:
            steps.append(
                {"type": "pause", "duration": 300}
            )  # else a touch is a fling, and the next one only stops that
        steps.append({"type": "pointerUp", "button": 0})
        kind = "touch" if self._touch else "mouse"
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": steps}
        self._call("POST", "/actions", {"actions": [pointer]})

    def hover(self, selector: str, x: float, y: float) -> None:
        box = self.run("const b = document.querySelector(arguments[0]).getBoundingClientRect();"
                       "return [b.left, b.top, b.width, b.height]", selector)  # fmt: skip
        at = {"type": "pointerMove", "duration": 0, "origin": "viewport",
              "x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}  # fmt: skip
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [at]}]})

    def keys(self, selector: str, text: str) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[ELEMENT]}/value", {"text": text})

    def slide(self, selector: str, value: float | str) -> None:
        """Put a slider or a choice somewhere, and tell the page as a hand does."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const name of ['input', 'change']) e.dispatchEvent(new Event(name, {bubbles: true}))",
            selector, value,
        )  # fmt: skip

    def theme(self, name: str) -> None:
        """What the system prefers: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def console(self) -> list[str]:
        """What the page has said on the console since the last call: errors of scripts and refused requests too."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        if whole:
            shot = self._call("POST", "/goog/cdp/execute", {
                "cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": True},
            })["data"]  # fmt: skip
        else:
            shot = self._call("GET", "/screenshot")
        path.write_bytes(base64.b64decode(shot))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = requests.request(method, self._at + path, json=body, timeout=100)
        value = answer.json()["value"]
        if answer.status_code >= 400:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value

"""A headless Chromium, driven over the WebDriver protocol (W3C) by chromedriver's HTTP server."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

FOUND = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Left": "\ue012", "Right": "\ue014", "Up": "\ue013"}


class Browser:
    """A window."""

    def __init__(self, size=(1400, 1000)):
        self._driver = subprocess.Popen(
            [FOUND[0], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                port = line.rstrip(".\n").rpartition(" ")[2]
                break
        self._url = f"http://127.0.0.1:{port}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += [f"--window-size={size[0]},{size[1]}", "--hide-scrollbars"]
        options = {"binary": FOUND[1], "args": flags}
        logs = {"browser": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        answer = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/{answer['sessionId']}"

    def _call(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def prefer(self, scheme):
        """As for a user who prefers "dark" or "light" colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._call("/goog/cdp/execute", command)

    def open(self, url):
        self._call("/url", {"url": url})

    def run(self, script, *arguments):
        """The value of JavaScript, such as "return document.title"."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def element(self, selector):
        found = self._call("/element", {"using": "css selector", "value": selector})
        return f"/element/{found[_ELEMENT]}"

    def click(self, selector):
        self._call(self.element(selector) + "/click", {})

    def type(self, selector, text):
        self._call(self.element(selector) + "/value", {"text": text})

    def press(self, *keys):
        """Press keys wherever the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def hover(self, selector, x, y):
        """Move the mouse to x, y from the middle of an element."""
        origin = {_ELEMENT: self.element(selector).rpartition("/")[2]}
        move = {"type": "pointerMove", "x": x, "y": y, "origin": origin, "duration": 0}
        self._call("/actions", {"actions": [{"type": "pointer", "id": "m", "actions": [move]}]})

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def wait(self, script, *arguments):
        """Wait until JavaScript has a true value, and return it."""
        for _ in range(400):
            if value := self.run(script, *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"it did not become true: {script}; {self.text('body')}")

    def errors(self):
        """What the page has written to the console."""
        return self._call("/se/log", {"type": "browser"})

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self._call("/screenshot")))

    def close(self):
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait()
            self._driver.stdout.close()

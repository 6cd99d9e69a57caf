"""A running server for the tests of real clients: `tessera serve` on a port of its own, with a model that nobody trained.

TESSERA names the binary (default: target/debug/tessera). The model says nonsense, so tests look at shapes, at what constraints
promise, and at equality; CHROMIUM names the browser of the page's tests (default: chromium on the PATH).
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = "synth:llama,layers=2,width=256,heads=4,kv_heads=2,head_dim=64,feed_forward=512,vocabulary=4096,context=32768,format=Q8_0,seed=3"
# Tokens of a reply that a test stops: some seconds on a quick machine, so that a slow browser finds it still running.
LONG = 16000
KEY = "a-key-for-tests"


class Server:
    def __init__(self, *flags):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        binary = os.environ.get("TESSERA", str(ROOT / "target/debug/tessera"))
        command = [binary, "serve", MODEL, "--port", str(self.port), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.process.stderr.read()}")
            try:
                urllib.request.urlopen(self.url + "/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server does not answer")

    def get(self, path, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as response:
            return json.load(response)

    def idle(self):
        """Waits until nothing runs; what is left of requests after that is a leak."""
        for _ in range(100):
            models = self.get("/v1/engine")["models"]
            if all(m["running"] == 0 and m["waiting"] == 0 and m["cache"]["held"] == 0 for m in models):
                return
            time.sleep(0.05)
        raise AssertionError(f"the engine still holds {models}")

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=40) == 0, self.process.stderr.read()


@pytest.fixture(scope="session")
def server():
    server = Server("--pooling", "mean")
    yield server
    server.idle()
    server.stop()


@pytest.fixture(scope="session")
def guarded():
    """A server that wants an API key."""
    server = Server("--api-key", KEY)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def model(server):
    return server.get("/v1/models")["data"][0]["id"]


@pytest.fixture(scope="session")
def chromium():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no browser: install Debian's package `chromium`, or name one in CHROMIUM"
    return found

"""mlx-lm's own server with its caches in pages: a process of its own, asked over HTTP by several clients at once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_flash.lm import tiny_model
from mlx_flash.lm.models import TINY

SERVER = Path(__file__).parents[1] / "support" / "paged_server.py"
SECONDS = 120  # to start, or to answer: a busy machine takes its time
HEAD = "All of these prompts begin alike, so that a server keeps the keys of this sentence once. "
PROMPTS = ["a", HEAD + "One", HEAD + "Two goes on for a while.", "Another prompt", HEAD + "One", HEAD + "Three"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model as mlx-lm loads it."""
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny_model()
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps(TINY))
    tokenizer._tokenizer.save_pretrained(path)
    return path


@contextmanager
def serving(folder: Path, paged: bool, said: list[str]):
    """The address of a running server; `said`, when it has ended, what it printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, SERVER, str(int(paged)), "--model", folder, "--port", str(port), "--temp", "0"]
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _awaited(process, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            said.append(process.communicate(timeout=SECONDS)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            said.append(process.communicate()[0])


def _awaited(process, address: str) -> str:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            return address
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server did not start: {process.poll()}")


def completion(address: str, prompt: str) -> str:
    asked = {"prompt": prompt, "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.loads(answer.read())["choices"][0]["text"]


def completions(folder: Path, paged: bool) -> tuple[list[str], str]:
    """The texts of all prompts, asked twice: by clients at once, and one after another. And what the server said."""
    said: list[str] = []
    with serving(folder, paged, said) as address, ThreadPoolExecutor(len(PROMPTS)) as clients:
        texts = list(clients.map(lambda prompt: completion(address, prompt), PROMPTS))
        texts += [completion(address, prompt) for prompt in PROMPTS]
    return texts, said[0]


@pytest.mark.slow
@pytest.mark.process
def test_the_server_gives_the_same_texts_from_pages(folder):
    want, _ = completions(folder, paged=False)
    got, said = completions(folder, paged=True)
    assert got == want and all(want) and len(set(want)) > 3
    *_, report = re.findall(r"served (\d+) of (\d+) attention calls \((\d+) decode from pages, (\d+) prefill", said)
    served, asked, decoded, _ = map(int, report)
    assert served == asked and decoded > 2 * 24 * len(PROMPTS) // 2, said

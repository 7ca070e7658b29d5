"""Coverage-guided fuzzing with atheris: each reader of files, for a while, within 2 GiB and 20 s an input.

    pip install atheris; PYTHONPATH=.:tests python tests/reliability/fuzz.py --seconds 60

tests/test_hostile.py tries the same readers with hypothesis, without atheris. Ends with 1 where a reader raised
anything but its own sentence, hung, or took too much memory; the input is kept under the --out folder.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MEMORY_MIB, TIMEOUT_S = 2048, 20


def reader(name: str, folder: Path):
    """(function of bytes that reads them as a `name` file, beginnings to start from); other errors are findings."""
    from mla_jax import config, rows, runs
    from mla_jax.data.readers import Source
    from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
    from mla_jax.interop import tensor_files
    from mla_jax.interop.hf_config import HFConfig, model_knobs
    from mla_jax.judge import rubric

    run = runs.RunFolder(folder)

    def reply(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for each in rubric.RUBRICS.values():
            for pairwise in (False, True):
                try:
                    rubric.parse_reply(text, each, pairwise)
                except rubric.ReplyError:
                    continue

    def stories(data: bytes) -> None:
        path = folder / ("stories.jsonl" if data[:1] == b"{" else "stories.txt")
        path.write_bytes(data)
        for _ in Source(path, "data.path", "refuse").stories():
            pass

    def tokenizer(data: bytes) -> None:
        run.tokenizer.write_bytes(data)
        loaded = Tokenizer.load(run.tokenizer)
        loaded.decode(loaded.encode("the fox"))

    def run_folder(data: bytes) -> None:
        run.metrics.write_bytes(data)
        rows.read_rows(run.metrics)
        run.data.write_bytes(data)
        runs.read_data(run)

    def safetensors(data: bytes) -> None:
        (folder / tensor_files.NAME).write_bytes(data)
        tensor_files.read(folder)

    def hf_config(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        model_knobs(HFConfig(folder / "config.json"))

    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    readers = {
        "reply": (reply, [b'{"reason": "x", "grammar": 7, "creativity": 3, "consistency": 10, "winner": "tie"}']),
        "config": (
            lambda data: config.loads(data.decode("utf-8", "replace"), "config.json"),
            [path.read_bytes() for path in sorted(GOLDEN.glob("config_format*.json"))],
        ),
        "stories": (stories, [b'{"text": "once"}\n', b"once\n<|endoftext|>\nupon\n"]),
        "tokenizer": (tokenizer, [train_tokenizer(iter(["the little fox found a key. "] * 50), 300)]),
        "run_folder": (
            run_folder,
            [b'{"fingerprint": "ab", "tokenizer_sha256": "cd"}', b'{"step": 1, "kind": "eval"}'],
        ),
        "safetensors": (safetensors, [len(header).to_bytes(8, "little") + header + bytes(8)]),
        "hf_config": (hf_config, [b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "vocab_size": 9}']),
    }
    return readers[name]


NAMES = ("reply", "config", "stories", "tokenizer", "run_folder", "safetensors", "hf_config")


def fuzz(name: str, seconds: int, out: Path) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["mla_jax", "json"]):
        from mla_jax.errors import UserError

        folder = Path(tempfile.mkdtemp(prefix="mla_jax-fuzz-"))
        read, seeds = reader(name, folder)

    def one(data: bytes) -> None:
        try:
            read(data)
        except UserError as error:
            assert "\n" not in str(error)

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={TIMEOUT_S}", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={out}/{name}-", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--only", default="", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="where inputs that broke something are kept")
    parser.add_argument("--one", choices=NAMES, help="fuzz this one in this process")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        fuzz(arguments.one, arguments.seconds, arguments.out)
    broken = 0
    for name in arguments.only.split(",") if arguments.only else NAMES:
        command = [sys.executable, __file__, "--one", name, "--seconds", str(arguments.seconds)]
        done = subprocess.run([*command, "--out", str(arguments.out)], capture_output=True, text=True)
        runs = re.findall(r"#(\d+)", done.stderr) or ["0"]
        peak = re.findall(r"rss: (\d+)Mb", done.stderr) or ["?"]
        said = "nothing found" if done.returncode == 0 else f"BROKEN:\n{done.stderr[-3000:]}"
        print(f"{name}: {int(runs[-1]):,} inputs, {peak[-1]} MiB, {said}", flush=True)
        broken += done.returncode != 0
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

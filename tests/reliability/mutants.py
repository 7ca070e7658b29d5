"""Mutation testing: seeded small mistakes, one at a time, in a copy of the code; each should turn a test red.

    PYTHONPATH=. python tests/reliability/mutants.py --count 200 --out mutants.jsonl    (an hour or two on 2 CPU cores)

A survivor is a mistake that no test sees: mended by a test, or explained in docs/reliability.md.
"""

import argparse
import ast
import copy
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "PYTHONDONTWRITEBYTECODE": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

import flax.linen  # noqa: E402, F401 - for the children, like the others; nothing of mla_jax may be imported here
import grain  # noqa: E402, F401
import hypothesis  # noqa: E402, F401
import jax  # noqa: E402, F401
import openai  # noqa: E402, F401
import orbax.checkpoint  # noqa: E402, F401
import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = "tests/test_config.py tests/test_config_rules.py"
SAMPLER = "tests/test_sampler.py tests/test_sampler_rows.py tests/test_sampler_ends.py tests/test_sampler_requests.py"
# source -> functions ("" = all of it), and the tests that are to notice
TARGETS: dict[str, tuple[tuple[str, ...], str]] = {
    "mla_jax/config.py": ((), CONFIG),
    "mla_jax/config_bounds.py": ((), CONFIG),
    "mla_jax/config_rules.py": ((), CONFIG),
    "mla_jax/config_derive.py": ((), CONFIG),
    "mla_jax/migrations.py": ((), "tests/test_config.py"),
    "mla_jax/typed.py": ((), CONFIG),
    "mla_jax/accounting.py": ((), "tests/test_accounting.py"),
    "mla_jax/model/attention.py": (
        ("causal_mask", "visible", "at"),
        "tests/test_attention_meaning.py tests/test_model.py",
    ),
    "mla_jax/model/moe.py": (("route", "router_bias_update"), "tests/test_moe.py"),
    "mla_jax/sample/methods.py": ((), "tests/test_methods.py"),
    "mla_jax/sample/threshold.py": ((), "tests/test_methods.py"),
    "mla_jax/sample/request.py": ((), SAMPLER),
    "mla_jax/sample/sampler.py": ((), SAMPLER),
    "mla_jax/judge/rubric.py": (("parse_reply", "_grade", "_last_object"), "tests/test_judge_rubric.py"),
}
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def places(tree: ast.Module, functions: tuple[str, ...]) -> Iterator[tuple[ast.AST, str]]:
    """(node, kind of mistake) that can be made inside functions, annotations and docstrings left out."""
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.FunctionDef) or (functions and outer.name not in functions):
            continue
        for statement in outer.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                    yield node, "comparison"
                elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
                    yield node, "operator"
                elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                    yield node, "number"
                elif isinstance(node, ast.Constant) and type(node.value) is bool:
                    yield node, "truth"
                elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                    yield node, "not"
                elif isinstance(node, ast.If | ast.IfExp):
                    yield node, "condition"
                elif isinstance(node, ast.Raise):
                    yield node, "raise"


def mutate(node: ast.AST, kind: str) -> None:
    """Make the mistake in place."""
    if kind == "comparison":
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif kind == "operator":
        node.op = SWAPS[type(node.op)]()
    elif kind == "number":
        node.value += 1
    elif kind == "truth":
        node.value = not node.value
    elif kind == "not":
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "raise":
        node.exc, node.cause = ast.Name("AssertionError", ast.Load()), None


def all_mutants() -> list[tuple[str, int, int, str, str]]:
    """(file, index of the place, line, kind, mutated source)."""
    found = []
    for file, (functions, _) in TARGETS.items():
        if not (REPOSITORY / file).exists():
            continue
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        for index, (node, kind) in enumerate(places(tree, functions)):
            changed = copy.deepcopy(tree)
            target, _ = list(places(changed, functions))[index]
            mutate(target, kind)
            found.append((file, index, node.lineno, kind, ast.unparse(ast.fix_missing_locations(changed))))
    return found


def choose(mutants: list[tuple], count: int, rng: random.Random) -> list[tuple]:
    """`count` of them, from every file as evenly as its number allows: the rules alone could fill the list."""
    by_file: dict[str, list[tuple]] = {}
    for mutant in rng.sample(mutants, len(mutants)):
        by_file.setdefault(mutant[0], []).append(mutant)
    chosen: list[tuple] = []
    while len(chosen) < min(count, len(mutants)):
        for waiting in by_file.values():
            if waiting and len(chosen) < count:
                chosen.append(waiting.pop())
    return chosen


def change(file: str, source: str) -> str:
    """The lines that differ, as one: "old -> new"."""
    plain = ast.unparse(ast.parse((REPOSITORY / file).read_text(encoding="utf-8")))
    lines = difflib.ndiff(plain.splitlines(), source.splitlines())
    return " ".join(f"{line[0]} {line[2:].strip()}" for line in lines if line[0] in "+-")


def passes(copy_of_code: Path, tests: str, timeout: float) -> bool:
    """Whether these tests are green, in a child of this process: what it has imported need not be imported again."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "r+b") as nowhere:
            for number in (0, 1, 2):
                os.dup2(nowhere.fileno(), number)
        os.chdir(copy_of_code)
        sys.path[:0] = [str(copy_of_code), str(copy_of_code / "tests")]
        os.environ["PYTHONPATH"] = str(copy_of_code)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        os._exit(pytest.main([*options, *(name for name in tests.split() if Path(name).exists())]))
    deadline = time.monotonic() + timeout
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(0.05)
    return done[1] == 0


def survives(copy_of_code: Path, file: str, source: str, timeout: float) -> bool:
    """Whether the file's tests stay green with this source in its place."""
    path = copy_of_code / file
    original = path.read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    try:
        return passes(copy_of_code, TARGETS[file][1], timeout)
    finally:
        path.write_text(original, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a mutant")
    parser.add_argument("--again", type=Path, help="an --out of before, of the same code: its survivors only")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    mutants = all_mutants()
    chosen = choose(mutants, arguments.count, random.Random(arguments.seed))
    if arguments.again:
        rows = map(json.loads, arguments.again.read_text().splitlines())
        survivors = {tuple(row["id"]) for row in rows if row["verdict"] == "survived"}
        chosen = [mutant for mutant in mutants if mutant[:2] in survivors]
    done = {tuple(json.loads(line)["id"]) for line in arguments.out.open()} if arguments.out.exists() else set()
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, arguments.out.open("a", encoding="utf-8") as out:
        code = Path(folder) / "code"
        shutil.copytree(REPOSITORY, code, ignore=shutil.ignore_patterns(".git", ".venv", ".matrix", "runs", ".gpudata"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "compiled")
        for tests in sorted({tests for _, tests in TARGETS.values()}):
            if not done and not passes(code, tests, 10 * arguments.timeout):
                sys.exit(f"{tests}: red without any mistake")
        for file, index, line, kind, source in sorted(chosen, key=lambda mutant: mutant[:2]):
            if (file, index) in done:
                continue
            began = time.monotonic()
            verdict = "survived" if survives(code, file, source, arguments.timeout) else "killed"
            tally[verdict] += 1
            row = {"id": [file, index], "line": line, "kind": kind, "verdict": verdict, "mistake": change(file, source)}
            out.write(json.dumps(row | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
            out.flush()
            if verdict == "survived":
                print(f"{file}:{line} {kind} survived: {row['mistake']}", flush=True)
    print(f"{len(mutants)} possible; of {len(chosen)} now: {dict(tally)}")


if __name__ == "__main__":
    main()

"""Where a step's time goes: a jax.profiler trace as a table of time by kernel class and by part of the model.

    python -m mla_jax.bench.profile TRACE_FOLDER [--steps 10]

TRACE_FOLDER is what `train.profile_steps` or `bench.train_step --trace` wrote. Kernels are classed by their names; the
part of the model comes from the scopes in the program's text (program.txt, where there is one) or in the trace. Run
with XLA_FLAGS=--xla_gpu_enable_command_buffer= : kernels inside CUDA graphs carry no names of operations.
"""

import argparse
import collections
import dataclasses
import re
import sys
import warnings
from pathlib import Path

from mla_jax import markdown
from mla_jax.errors import UserError, run_command

PROGRAM = "program.txt"

# The first that matches the kernel's or the operation's name.
CLASSES = {
    "attention": r"fmha|flash|cudnn|__cudnn|sdpa|tokamax",
    "collective": r"nccl|all[-_]reduce|all[-_]gather|reduce[-_]scatter|all[-_]to[-_]all|collective[-_]permute",
    "product": r"gemm|nvjet|cutlass|cublas|xmma|matmul|\bdot\b|dot_general|dot[._]\d|^dot|ynn",
    "scatter, gather": r"scatter|gather",
    "transpose, copy": r"transpose|copy|memcpy|bitcast",
    "reduction": r"reduce",
    "random bits": r"rng|threefry|philox",
    "elementwise": r"fusion|loop_|wrapped_|convert|broadcast|select|concatenate|pad|slice|exponential|memset",
}
SCOPES = ("attention", "ffn", "logits", "loss", "newton_schulz", "optimizer")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One execution on the device. name: kernel's; op: HLO instruction's or ""; scope: JAX's name stack or ""."""

    name: str
    op: str
    scope: str
    start_ns: float
    duration_ns: float


def read_kernels(folder: Path) -> list[Kernel]:
    """What ran on the first device in the newest trace under `folder`. Raises UserError when there is none."""
    import jax

    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise UserError(f"{str(folder)!r} holds no trace (*.xplane.pb): give what train.profile_steps=10 wrote.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the profiler's own types
        planes = list(jax.profiler.ProfileData.from_file(str(traces[-1])).planes)
        devices = sorted((p for p in planes if p.name.startswith("/device:")), key=lambda plane: plane.name)
        lines = [line for line in (devices[0].lines if devices else []) if line.name.startswith("Stream")]
        if not lines:  # a CPU, or a TPU: no streams, but events that name their operation
            lines = [line for plane in devices[:1] or planes for line in plane.lines if line.name != "XLA Modules"]
        on_streams = bool(devices) and bool(lines) and lines[0].name.startswith("Stream")
        return [kernel for line in lines for event in line.events if (kernel := _kernel(event, on_streams))]


def _kernel(event: object, on_stream: bool) -> Kernel | None:
    stats = {str(name): value for name, value in event.stats}
    op = str(stats.get("hlo_op", ""))
    if not on_stream and not op:
        return None  # of the host: threads, Python
    scope = str(stats.get("tf_op") or stats.get("name") or "")
    return Kernel(event.name, op, scope, float(event.start_ns), float(event.duration_ns))


def scopes_of(program: str) -> dict[str, str]:
    """{instruction: op_name} of a compiled program's text."""
    found = re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]+)\"", program, flags=re.MULTILINE)
    return dict(found)


def kernel_class(kernel: Kernel) -> str:
    """One of CLASSES, or "other"."""
    for text in (kernel.name, kernel.op):
        for name, pattern in CLASSES.items():
            if re.search(pattern, text, flags=re.IGNORECASE):
                return name
    return "other"


def part_of(kernel: Kernel, scopes: dict[str, str]) -> str:
    """E.g. "ffn, backward": the innermost known scope and the direction, from the name stack; "?" without one."""
    stack = scopes.get(kernel.op) or kernel.scope
    part = next((s for s in reversed(re.findall(r"[\w]+", stack)) if s in SCOPES), "")
    if not part:
        return "?" if not stack else "other"
    if part in ("optimizer", "newton_schulz"):
        return part
    return f"{part}, backward" if "transpose(" in stack else part


def busy_ns(kernels: list[Kernel]) -> float:
    """Length of the union of all executions: streams overlap."""
    total, end = 0.0, float("-inf")
    for k in sorted(kernels, key=lambda k: k.start_ns):
        begin = max(k.start_ns, end)
        total += max(0.0, k.start_ns + k.duration_ns - begin)
        end = max(end, k.start_ns + k.duration_ns)
    return total


def report(folder: Path, steps: int, top: int = 15) -> str:
    """Markdown tables, milliseconds a step: by class, by part, and the longest kernels. Raises UserError."""
    kernels = read_kernels(folder)
    if not kernels:
        raise UserError(f"{str(folder)!r} holds a trace without device work: trace steps that run on the device.")
    program = folder / PROGRAM
    scopes = scopes_of(program.read_text(encoding="utf-8")) if program.is_file() else {}
    span = max(k.start_ns + k.duration_ns for k in kernels) - min(k.start_ns for k in kernels)
    busy = busy_ns(kernels)
    lines = [
        f"{steps} steps: {span / steps / 1e6:.2f} ms a step from first to last kernel, busy {busy / span:.1%}, "
        f"{len(kernels) / steps:,.0f} kernels a step.",
        "",
    ]
    for title, key in (("class", kernel_class), ("part", lambda k: part_of(k, scopes))):
        lines += [_table(title, kernels, key, steps), ""]
    lines.append(_table("kernel", kernels, lambda k: f"`{(k.op or k.name)[:70]}`", steps, top))
    return "\n".join(lines)


def _table(title: str, kernels: list[Kernel], key: object, steps: int, top: int | None = None) -> str:
    time_of, count_of = collections.Counter(), collections.Counter()
    for kernel in kernels:
        name = key(kernel)
        time_of[name] += kernel.duration_ns
        count_of[name] += 1
    whole = sum(time_of.values())
    rows = (
        (name, f"{ns / steps / 1e6:.3f}", f"{ns / whole:.1%}", f"{count_of[name] / steps:.1f}")
        for name, ns in time_of.most_common(top)
    )
    return markdown.table((title, "ms a step", "share", "kernels a step"), rows)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10, help="steps that the trace holds")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}; a trace holds at least 1: say how many.")
    print(report(args.folder, args.steps))


if __name__ == "__main__":
    sys.exit(run_command(main))

"""docs/architecture.md says what each room does not import; the code keeps to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mla_jax"
PLAIN = (
    "errors",
    "files",
    "places",
    "checksums",
    "markdown",
    "terminal",
    "typed",
    "migrations",
    "accounting",
    "sizing",
)
ARRAYS = ("jax", "flax", "optax", "orbax")
TRAINER = ("mla_jax.train", "optax")
# Room (a module or package of mla_jax): what it does not import, at any depth of its own files.
NOT_IMPORTED = {
    **{name: ARRAYS for name in PLAIN},
    "config": ARRAYS,
    "config_bounds": ARRAYS,
    "config_rules": ARRAYS,
    "world": ARRAYS,
    "runs": TRAINER,
    "restore": TRAINER,
    "data": ("mla_jax.model", "mla_jax.kernels", "mla_jax.sample", *TRAINER),
    "model": ("mla_jax.data", "mla_jax.sample", *TRAINER),
    "kernels": ("mla_jax.data", "mla_jax.sample", *TRAINER),
    "sample": ("optax", "mla_jax.train.step", "mla_jax.train.loop", "mla_jax.train.state", "mla_jax.train.setup"),
    "judge": TRAINER,
    "interop": ("torch", *TRAINER),
}


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1]] * bool(node.level) + [node.module or ""])
            yield from (f"{base.strip('.')}.{name.name}" for name in node.names)


@pytest.mark.parametrize("room", NOT_IMPORTED)
def test_a_room_does_not_see_what_it_is_said_not_to(room: str) -> None:
    folder = PACKAGE / room
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    found = [(path.name, name) for path in paths for name in imported(path)]
    assert found or room in ("terminal", "markdown", "migrations")
    wrong = [(file, name) for file, name in found for no in NOT_IMPORTED[room] if f"{name}.".startswith(f"{no}.")]
    assert not wrong


def test_kernels_take_of_the_model_what_imports_no_kernel() -> None:
    """Plain functions alone: `model` imports `kernels`, and a circle would hang on the order of imports."""
    names = [name for path in (PACKAGE / "kernels").glob("*.py") for name in imported(path)]
    taken = {name.split(".")[2] for name in names if name.startswith("mla_jax.model.")}
    assert taken == {"functions", "moe_router"}
    for name in taken:
        assert not [i for i in imported(PACKAGE / "model" / f"{name}.py") if i.startswith("mla_jax")], name

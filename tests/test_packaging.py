"""The wheel works where the repository is out of reach, the lock fits, quickstart.sh refuses in sentences."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[1]
LOCKS = ("requirements-lock.txt", "requirements-dev-lock.txt")


def run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} left {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)], cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel)], cwd=target)
    return target


def run_installed(installed: Path, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on the wheel's files as a user would, whose XLA has no flags for tests.

    -S skips .pth files, hence an editable install of the repository.
    """
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return run([sys.executable, "-S", *arguments], cwd=cwd, env=env)


def test_wheel_carries_every_source_file_and_config(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("mla_jax", "mla_jax"), ("configs", "mla_jax/configs")):
        files = list((REPO / folder).rglob("*.py"))
        assert files
        missing = {f"{prefix}/{f.relative_to(REPO / folder).as_posix()}" for f in files} - names
        assert not missing
    strangers = {name for name in names if not re.match(r"mla_jax(/|-[\d.]+\w*\.dist-info/)", name)}
    assert not strangers
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_declares_the_console_script(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(entry_points).decode())
    module, function = scripts["console_scripts"]["mla-jax"].split(":")
    tree = ast.parse(archive.read(module.replace(".", "/") + ".py"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_installed_wheel_loads_a_named_config(installed: Path, tmp_path: Path):
    code = (
        "import json, sys, mla_jax; c = mla_jax.load_config('mla_rope', **{'train.steps': 7});"
        "print(json.dumps([mla_jax.__file__, c.train.steps, c.model.attention, sys.path]))"
    )
    done = run_installed(installed, ["-c", code], cwd=tmp_path)
    file, steps, attention, path = json.loads(done.stdout.splitlines()[-1])
    assert str(REPO) not in path
    assert Path(file).is_relative_to(installed)
    assert (steps, attention) == (7, "mla")


def test_installed_wheel_trains_from_an_empty_folder(installed: Path, tmp_path: Path):
    run_installed(installed, ["-m", "mla_jax.main", "--config", "smoke", "--workdir", "r"], cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    config = json.loads((tmp_path / "r" / "config.json").read_text())["config"]
    assert (tmp_path / "r" / "checkpoints" / str(config["train"]["steps"])).is_dir()


def lock_lines(name: str) -> list[str]:
    lines = (REPO / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_names_versions_and_python_markers_only(name: str):
    pattern = r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version (<|>=) "3\.12")?'
    strangers = [line for line in lock_lines(name) if not re.fullmatch(pattern, line)]
    assert not strangers


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_satisfies_what_the_package_asks_for(python: str):
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pinned: dict[str, str] = {}
    for line in (line for name in LOCKS for line in lock_lines(name)):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert pin.name not in pinned, f"{pin.name} is pinned twice for Python {python}"
            (pinned[pin.name],) = (spec.version for spec in pin.specifier)
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    broken = [str(r) for r in asked if not r.specifier.contains(pinned.get(r.name.lower(), "0"))]
    assert not broken


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the launch scripts' set-up reads, in a path with a space."""
    place = tmp_path / "a checkout"
    shutil.copytree(REPO / "launch", place / "launch")
    for name in (*LOCKS, "pyproject.toml"):
        shutil.copy(REPO / name, place)
    return place


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def refusal(checkout: Path, **env: str) -> str:
    """Run quickstart.sh, which has to refuse: exit code 2, nothing made. Returns its one line on stderr."""
    before = sorted(checkout.rglob("*"))
    env = {name: value for name, value in os.environ.items() if name != "MLA_JAX_VENV"} | env
    command = ["bash", str(checkout / "launch" / "quickstart.sh")]
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(checkout.rglob("*")) == before
    return done.stderr


def test_quickstart_refuses_an_old_python(checkout: Path, tmp_path: Path):
    old = tmp_path / "bin" / "old"
    write_program(old, f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 10, 9)\n$2"')
    message = refusal(checkout, PYTHON=str(old))
    assert "Python 3.11 or newer is needed" in message
    assert "(3.10)" in message


def test_quickstart_refuses_a_python_without_venv(checkout: Path, tmp_path: Path):
    bare = tmp_path / "bin" / "bare"
    write_program(bare, 'case "$*" in *ensurepip*) exit 1 ;; *print*) echo 3.12 ;; esac')
    assert "apt install python3.12-venv" in refusal(checkout, PYTHON=str(bare))


def test_quickstart_refuses_a_full_disk(checkout: Path, tmp_path: Path):
    write_program(tmp_path / "bin" / "df", "echo header; echo disk 9 9 102400 99% /")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert "has 100 MB free" in refusal(checkout, PATH=path, PYTHON=sys.executable)


def test_quickstart_leaves_a_strangers_environment_alone(checkout: Path):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").touch()
    assert "was not made by this script" in refusal(checkout, PYTHON=sys.executable)


def test_quickstart_says_that_a_finished_run_is_kept(tmp_path: Path):
    """Its function alone: from the name of the first run to the folder that this one goes to."""
    run = tmp_path / "quickstart"
    (run / "checkpoints" / "7").mkdir(parents=True)
    (run / "config.json").write_text('{"config": {"train": {"steps": 7}}}')
    part = '''source <(sed -n '/^free_workdir/,/^}/p' "$0"); python="$1"; free_workdir "$2"'''
    command = ["bash", "-c", part, str(REPO / "launch" / "quickstart.sh"), sys.executable, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{run}-2\n"
    assert done.stderr == f"{run} holds a finished run, which is kept: the next goes to {run}-2.\n"
    (run / "checkpoints" / "7").rmdir()  # interrupted: it goes on where it is
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{run}\n", "")

"""figures: files are drawn without pyplot, whose backend is the caller's."""

import re
from pathlib import Path

import mla_jax
from mla_jax import figures


def test_a_figure_is_drawn_and_pyplot_knows_nothing_of_it(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before = pyplot.get_backend()
    figure, (above, below) = figures.subplots(2, figsize=(3, 2))
    above.plot([1, 2])
    below.plot([2, 1])
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert figures.subplots(1, squeeze=False)[1].shape == (1, 1)
    assert not pyplot.get_fignums() and pyplot.get_backend() == before


def test_no_module_touches_the_backend_of_its_caller() -> None:
    """A notebook in which a run was trained would show no figures any more."""
    files = Path(mla_jax.__file__).parent.rglob("*.py")
    found = [file.name for file in files if re.search(r"matplotlib\.use\(|import pyplot|\bplt\.", file.read_text())]
    assert not found

from argparse import Namespace

from mla_jax.world.report import corpus_figures, markdown


def test_report_runs_and_counts():
    figures = corpus_figures(300, 2)
    assert figures["distinct stories"] == 1 and 120 <= figures["words a story, mean"] <= 250
    lines = "\n".join(markdown(Namespace(stories=60, train=60, held_out=20, seed=2))).split("\n")
    assert sum(line.startswith(tuple(f"{i}. " for i in range(1, 11))) for line in lines) == 10
    assert any(line.startswith("| 5 | ") for line in lines)

"""Markdown tables."""

from mla_jax import markdown


def test_a_table() -> None:
    made = markdown.table(iter(("", "n")), ((name, n) for name, n in (("a|b", 1), ("two\n lines", 2.5))))
    assert made == "|  | n |\n|---|---|\n| a\\|b | 1 |\n| two lines | 2.5 |"
    assert markdown.table(("x",), ()) == "| x |\n|---|"

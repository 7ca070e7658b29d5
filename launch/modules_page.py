"""docs/modules.md: every module with the first sentence of its docstring.    python launch/modules_page.py"""

import argparse
import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "modules.md"
HEAD = """# Modules

Every module of `mla_jax` with the first sentence of its docstring; made by `python launch/modules_page.py`.
[architecture.md](architecture.md) says how they fit together.
"""


def page() -> str:
    """The whole text of docs/modules.md."""
    by_package: dict[str, list[str]] = {}
    for path in sorted((REPO / "mla_jax").rglob("*.py")):
        package = path.parent.relative_to(REPO).as_posix()
        text = first_sentence(path)
        if path.stem == "__init__":
            by_package.setdefault(package, []).insert(0, text)
        else:
            by_package.setdefault(package, []).append(f"* `{path.stem}`: {text}")
    parts = [HEAD]
    for package, lines in sorted(by_package.items()):
        about = [] if lines[0].startswith("* ") else [lines.pop(0)]
        parts.append("\n\n".join([f"## {package}/", *filter(None, about), "\n".join(lines)]))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def first_sentence(path: Path) -> str:
    """Of the module's docstring, on one line; "" without one."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    line = " ".join(paragraph.split())
    return re.split(r"(?<=[a-z0-9)`\"'])\. (?=[A-Z`])", line)[0].rstrip(".")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")

"""Writes the golden config of the format being built: the previous format's, migrated.

    python tests/golden/make_config.py

Run it after adding a knob; once a format is released its file is never written again, and FORMAT goes up by one.
"""

from pathlib import Path

from mla_jax import config, migrations

GOLDEN = Path(__file__).parent


def main() -> None:
    before = GOLDEN / f"config_format{migrations.FORMAT - 1}.json"
    text = config.dumps(config.loads(before.read_text(encoding="utf-8"), str(before)))
    (GOLDEN / f"config_format{migrations.FORMAT}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

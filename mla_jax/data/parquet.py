"""Stories in a column of a parquet file, a few hundred rows in memory at a time."""

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from mla_jax.errors import brief

if TYPE_CHECKING:
    from mla_jax.data.readers import Count, Source

_ROWS = 256
_BUFFER = 2**20  # bytes read ahead of a column, instead of a whole row group


def read_parquet(source: "Source", file: IO[bytes], count: "Count") -> Iterator[str]:
    """The story column's rows in order; nulls are no stories. Raises UserError (a column, pyarrow or data is missing).

    The column is `data.text_field`, or the first of `readers.TEXT_FIELDS` that the file has.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise source.fail(
            "reading parquet needs pyarrow, which is not installed", "pip install '.[data]' in the checkout"
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
        column = _column(source, parquet.schema_arrow)
        number = 0
        for batch in parquet.iter_batches(_ROWS, columns=[column], use_threads=False):
            # As bytes: decoding, its errors and their remedies are the same for every kind of file.
            for value in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                number += 1
                if value is not None:
                    yield source.decode_row(value, f"row {number}", count)
    except (pyarrow.ArrowException, OSError) as error:
        reason = brief(error).rstrip(".")
        raise source.fail(f"its parquet data is damaged or cut short ({reason})", "copy the file again") from None


def _column(source: "Source", schema: Any) -> str:
    """The name of the column of stories. Raises UserError when none of `source.text_fields` is one of text."""
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        if types.is_dictionary(kind):
            return is_text(kind.value_type)
        checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
        return any(check(kind) for check in checks)

    for name in source.text_fields:
        if schema.get_field_index(name) >= 0 and is_text(schema.field(name).type):
            return name
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)[:200] or "none"
    asked = " or ".join(map(repr, source.text_fields))
    raise source.fail(
        f"it has no column {asked} of text (its columns: {found})",
        f"rename the column of the stories to '{source.text_fields[0]}'{source.or_set('data.text_field to its name')}",
    )

"""What a Parquet file says of its columns: by Arrow fields, as VOParquet, and as astropy's own tables do."""

from __future__ import annotations

import json

import pyarrow as pa

from builder.archive.votable import Field, declaration, field_of
from builder.model.column import RAGGED, Column
from builder.model.columns import DEFAULT_BINS, columns_of
from builder.model.own import described, ucd_of
from builder.model.schema import public_schema

_DATATYPES = {"float32": "float", "float64": "double", "int32": "int", "int64": "long", "bool": "boolean"}


def parquet_schema(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> pa.Schema:
    """Return the schema of a config's shards: the `datasets` features, and what is known of every column.

    Parameters
    ----------
    bins, own
        As for `builder.model.columns.columns_of`.
    """
    return with_descriptions(public_schema(config, bins, own), columns_of(config, bins, own))


def with_descriptions(schema: pa.Schema, columns: tuple[Column, ...]) -> pa.Schema:
    """Add to a schema what is known of its columns.

    Fields, also those within a struct, get ``unit``, ``description``, ``ucd`` and ``source`` as metadata. The file gets
    the header of VOParquet 1.0 (IVOA Note, 2025), a VOTable without data with all columns but structs, and
    ``table_meta_yaml``, from which `astropy.table.Table.read` takes units and descriptions.
    """
    known = {column.name: column for column in columns}
    schema = pa.schema([_described(field, known) for field in schema], schema.metadata)
    said = [known.get(field.name) for field in schema]
    fields = [_field(column) for column in said if column is not None]
    votable = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n<RESOURCE type="results">\n<TABLE>\n'
        f"{''.join(map(declaration, fields))}</TABLE>\n</RESOURCE>\n</VOTABLE>\n"
    )
    header = {
        "datatype": [
            {"name": field.name, **({"unit": column.unit, "description": column.meaning} if column else {})}
            for field, column in zip(schema, said, strict=True)
        ]
    }
    return schema.with_metadata(
        {
            **(schema.metadata or {}),
            "IVOA.VOTable-Parquet.version": "1.0",
            "IVOA.VOTable-Parquet.content": votable,
            "table_meta_yaml": json.dumps(header),  # which is YAML, too
        }
    )


def _described(field: pa.Field, known: dict[str, Column], struct: str = "") -> pa.Field:
    name = struct + field.name
    if name in known:
        return described(field, known[name])
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([_described(part, known, f"{name}.") for part in field.type]))
    return field


def _field(column: Column) -> Field:
    datatype = _DATATYPES.get(column.dtype, "char")
    size = "x".join("*" if length == RAGGED else str(length) for length in reversed(column.shape))
    field = field_of(column)
    return field._replace(
        datatype=datatype, arraysize="*" if datatype == "char" else size, ucd=ucd_of(column), description=column.meaning
    )

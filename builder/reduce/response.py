"""The matrix of an RMF file, for those who fold models themselves; the reduction never needs it."""

from __future__ import annotations

import numpy as np

from builder.model.errors import ProductError
from builder.model.records import Response
from builder.reduce.ogip import Table, extension


def read_response(tables: list[Table], file: str) -> Response:
    """The redistribution matrix among the tables of an RMF file.

    Groups without channels, and padding beyond what N_GRP and N_CHAN say, are left out.

    Raises
    ------
    ProductError
        ``unreadable_rmf``: there is none, or it contradicts itself.
    """
    table = extension(tables, "RSP_MATRIX", file, "rmf")
    energy_lo, energy_hi, n_grp = table.columns("ENERG_LO", "ENERG_HI", "N_GRP")
    groups = n_grp.astype(np.int64)
    if np.any(groups < 0):
        raise ProductError("unreadable_rmf", f"{file}: N_GRP has numbers below 0")
    f_chan, n_chan = (table.lists(name, groups) for name in ("F_CHAN", "N_CHAN"))
    energy = np.repeat(np.arange(groups.size), groups)
    matrix = table.lists("MATRIX", np.bincount(energy, n_chan.astype(np.float64), groups.size).astype(np.int64))
    try:
        return Response(
            table.integer(f"TLMIN{table.column_number('F_CHAN')}", 1),
            energy_lo.astype(np.float64),
            energy_hi.astype(np.float64),
            groups.astype(np.int32),
            f_chan.astype(np.int32),
            n_chan.astype(np.int32),
            matrix.astype(np.float32),
        )
    except ValueError as error:
        raise ProductError("unreadable_rmf", f"{file}: {error}") from None

"""Names of the depth models that are built in and need no weights."""

from __future__ import annotations

PARALLAX = "Parallax"
NULL = "NULL"

"""What the rows of an input say, in 8 bytes each: read before a batch begins, so that nothing is asked in vain."""

from __future__ import annotations

from array import array

from shared_engine.answer_file.identity import Digests, digest_of
from shared_engine.cli.batch.rows import Input
from shared_engine.errors import InvalidInputError

_LOOKED_AT = 10


class Survey(Digests):
    """The rows of an input: what each says, as 8 bytes. Without an input, none.

    Raises:
        InvalidInputError: it can't be read, or seems to be something else.
    """

    def __init__(self, rows: Input | None = None) -> None:
        super().__init__()
        self.rows = 0
        has_objects = False
        for number, text in () if rows is None else rows.rows():
            self.digests.extend(array("Q", bytes(8 * (number - 1 - len(self.digests)))))  # blank lines
            self.digests.append(digest_of(text))
            self.rows += 1
            if self.rows <= _LOOKED_AT:
                has_objects = has_objects or (text.startswith(b"{") and text.endswith(b"}"))
        if rows is not None and not rows.is_table and self.rows and not has_objects:
            raise InvalidInputError(
                f"{rows.name}: none of its first lines is a JSON object; it must be JSON lines, an object in each, or "
                ".csv, .tsv or .parquet"
            )

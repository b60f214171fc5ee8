"""CSV read record by record, so that a broken quote costs one record and not those after it."""

import csv
from collections import deque
from collections.abc import Iterator

from llambert.columns import LINE_BYTES, Unreadable

_AGAIN_CHARACTERS = 2**29  # of a file, read twice or more because quotes are left open


class CsvLines:
    """A CSV file's lines, of which those of the record being read can be read again."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        # bytes that are not UTF-8 are kept as surrogates, found later
        self._lines: Iterator[str] = (
            line.decode("utf-8", "surrogateescape") + "\n" for line in lines
        )
        self._record: list[str] = []
        self._characters = 0  # of the record
        self._again: deque[str] = deque()
        self._allowance = _AGAIN_CHARACTERS
        self.problem: Unreadable | None = None  # what is wrong with the file from here on

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._record and self._characters > LINE_BYTES:
            raise csv.Error(f"a record of more than {LINE_BYTES} characters")
        try:
            line = self._again.popleft() if self._again else next(self._lines)
        except Unreadable as error:  # what was read so far is sound
            self.problem = error
            raise StopIteration from error
        self._record.append(line)
        self._characters += len(line)
        return line

    def begin(self) -> None:
        """The next line begins a record."""
        self._record.clear()
        self._characters = 0

    def retreat(self) -> None:
        """Only the first line of the record is spent; the others are to be read again."""
        self._again.extendleft(reversed(self._record[1:]))
        # Where every line opens a quote, each would be followed to the limit: no end in sight
        self._allowance -= self._characters
        if self._allowance < 0:
            self._again.clear()
            self._lines = iter(())
            self.problem = Unreadable("too many quotes are left open; the rest was not read")
        self.begin()


def csv_header(lines: CsvLines) -> list[str] | None:
    csv.field_size_limit(LINE_BYTES)  # the default would refuse long texts
    try:
        header = next(csv.reader(lines, strict=True), None)
    except csv.Error as error:
        raise Unreadable(f"its first line is no CSV: {error}") from error
    if header is None and lines.problem is not None:
        raise lines.problem
    return header


def csv_records(lines: CsvLines) -> Iterator[list[str] | str]:
    """The fields of each record, or, of one that breaks the rules of quoting, what is wrong.

    A quote left open ends where a later quote is not followed by a comma or the line's end, at
    the limit of a record, or at the end of the file. The record is then its first line alone, and
    reading goes on with the second: so one stray quote costs one record. Two kinds of damage
    cannot be told from data: lines between two stray quotes that happen to make a legal record,
    and later lines of a broken record that happen to have as many fields as the header.
    """
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"the quotes of the record are not those of CSV: {error}"
            lines.retreat()
            reader = csv.reader(lines, strict=True)
            continue
        if fields:  # a blank line is no record
            yield fields

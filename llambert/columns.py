"""Columns as they should be: strings that are UTF-8, ids of one type; the rest is refused."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

INT64 = range(-(2**63), 2**63)
LINE_BYTES = 64 * 2**20  # a longer line is not a record but a broken file


class Unreadable(Exception):
    """The file, or the rest of it, is not what its format promises."""


class Refusals:
    """Why rows of a batch are refused; the first reason stays."""

    def __init__(self, rows: int) -> None:
        self.reason = pa.nulls(rows, pa.string())
        self.detail = pa.nulls(rows, pa.string())

    def mark(self, mask: Any, reason: str, detail: Any = None) -> None:
        """Refuse the rows of `mask` (booleans); `detail` is a string or an array of them."""
        mask = pc.fill_null(pa.array(mask, pa.bool_()), False)
        mask = pc.and_(mask, pc.is_null(self.reason))
        if not pc.any(mask).as_py():
            return
        self.reason = pc.if_else(mask, reason, self.reason)
        if detail is not None:
            self.detail = pc.if_else(mask, detail, self.detail)


def strings(values: list[str | None], refusals: Refusals) -> pa.Array:
    """The values as an array; one that UTF-8 cannot hold is refused."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        sound = [v is None or not any("\ud800" <= c <= "\udfff" for c in v) for v in values]
        refusals.mark([not s for s in sound], "undecodable", "invalid UTF-8")
        kept = [v if s else None for v, s in zip(values, sound, strict=True)]
        return pa.array(kept, pa.string())


def _is_binary_like(kind: pa.DataType) -> bool:
    strings = {pa.string(), pa.large_string(), pa.string_view()}
    return kind in strings | {pa.binary(), pa.large_binary(), pa.binary_view()}


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def utf8(array: pa.Array, refusals: Refusals, otherwise: str) -> pa.Array:
    """A string array of `array`; bytes that are not UTF-8 are undecodable, other types refused."""
    array = _plain(array)
    if not _is_binary_like(array.type):
        detail = f"the column is of type {array.type}"
        refusals.mark(pc.is_valid(array), otherwise, detail)
        return pa.nulls(len(array), pa.string())
    binary = array.cast(pa.binary())
    try:
        return binary.cast(pa.string())  # checks UTF-8, which the Parquet reader does not
    except pa.ArrowInvalid:
        sound = pa.array([_is_utf8(value) for value in binary.to_pylist()], pa.bool_())
        refusals.mark(pc.invert(sound), "undecodable", "invalid UTF-8")
        return pc.if_else(sound, binary, pa.scalar(None, pa.binary())).cast(pa.string())


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def id_column(array: pa.Array, id_type: pa.DataType, refusals: Refusals) -> pa.Array:
    """Ids of a typed column as `id_type`, int64 or string; what does not fit is refused."""
    array = _plain(array)
    detail = f"the id column is of type {array.type}, the corpus' ids are {id_type}"
    if id_type != pa.int64():
        if _is_binary_like(array.type):
            return utf8(array, refusals, "bad_id")
        if is_scalar(array.type):
            return array.cast(pa.string())
    elif pa.types.is_unsigned_integer(array.type):
        large = pc.greater(array, pa.scalar(2**63 - 1, pa.uint64()))
        refusals.mark(large, "bad_id", detail)
        return pc.if_else(large, pa.scalar(None, array.type), array).cast(pa.int64())
    elif pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    refusals.mark(pc.is_valid(array), "bad_id", detail)
    return pa.nulls(len(array), id_type)


def is_text(kind: pa.DataType) -> bool:
    """Whether a Parquet column of this type can hold texts; one of type null holds none yet."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_binary_like(value) or pa.types.is_null(value)


def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of this type can be cast to strings, value by value."""
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        return False
    try:
        pa.nulls(0, kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def as_strings(array: pa.Array, refusals: Refusals) -> pa.Array:
    """A further column as strings; null where it has no such form."""
    array = _plain(array)
    if _is_binary_like(array.type):
        return utf8(array, refusals, "undecodable")
    return array.cast(pa.string()) if is_scalar(array.type) else pa.nulls(len(array), pa.string())


def json_ids(values: list[Any], id_type: pa.DataType, refusals: Refusals) -> pa.Array:
    """Ids of JSON values as `id_type`, int64 or string; what does not fit is refused."""
    integers = [type(v) is int for v in values]  # a bool is not an id
    if id_type == pa.int64():
        good = [i and v in INT64 for v, i in zip(values, integers, strict=True)]
    else:
        good = [i or isinstance(v, str) for v, i in zip(values, integers, strict=True)]
    bad = [v is not None and not g for v, g in zip(values, good, strict=True)]
    refusals.mark(bad, "bad_id", f"the id is not of the corpus' type, {id_type}")
    kept = [v if g else None for v, g in zip(values, good, strict=True)]
    if id_type == pa.int64():
        return pa.array(kept, pa.int64())
    return strings([None if v is None else str(v) for v in kept], refusals)

"""The tables that stages hand to one another: columns, types, meanings.

`id` columns are `int64` where the corpus' own ids are integers and `string` otherwise, so
that labels join to the source table; `with_id_type` makes the variant.
"""

import pyarrow as pa

# One record as read from a corpus. `refused` is null for a good record; a refused record keeps
# its place (source, row) and whatever of id and text could be read.
RECORD = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("source", pa.string()),  # URI of the file
        pa.field("row", pa.int64()),  # position in the file, from 0; -1: the file as a whole
        pa.field("refused", pa.string()),  # one of REFUSALS, or null
    ]
)

# Why a record, or a whole file, is quarantined.
REFUSALS = {
    "null_text": "the text is null",
    "empty_text": "the text is empty or only white space",
    "not_a_string": "the text is not a string",
    "null_id": "the id is null",
    "bad_id": "the id does not have the type of the other ids",
    "duplicate_id": "an earlier record (by file name, then row) has the same id",
    "undecodable": "the line is not valid UTF-8, JSON or CSV, or has no such field",
    "corrupt_file": "the file, or the rest of it, cannot be read",
    "unknown_label": "the gold label is none of the task's labels or their further spellings",
    "in_test": "a gold training record whose text is in the gold test set",
}

QUARANTINE = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("refused", pa.string()),
        pa.field("detail", pa.string()),  # the reader's message, where there is one
    ]
)

SAMPLE = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string())])

# A token that the LLM might have begun its answer with, decoded, and its probability (0..1).
CANDIDATE = [pa.field("token", pa.string()), pa.field("probability", pa.float32())]

# One answer of the LLM, as it came: append-only, paid for once.
RESPONSE = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text_hash", pa.int64()),  # of the record's text when it was asked
        pa.field("response", pa.string()),  # null: the request failed
        pa.field("error", pa.string()),  # why the request failed, or null
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),  # the text was cut to the model's window
        # the likeliest first tokens of the answer with their probabilities, from which those of
        # the labels are computed when parsing; null where the engine gives none
        pa.field("first_token", pa.list_(pa.struct(CANDIDATE))),
    ]
)

# The answers of the current sample, parsed.
ANNOTATION = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("response", pa.string()),
        pa.field("label", pa.string()),  # null: rejected or failed
        pa.field("reject_reason", pa.string()),  # see parse.REJECTS; null: labelled
        pa.field("confidence", pa.float32()),  # probability of `label`, or null
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
    ]
)

# One record with its gold label.
GOLD = pa.schema(
    [pa.field("id", pa.string()), pa.field("text", pa.string()), pa.field("label", pa.string())]
)

# One labelled record of the corpus. On request
# (label.probabilities) there is a list of float32 too, `probabilities`, in the model's order.
LABEL = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("confidence", pa.float32()),  # probability of `label`
    ]
)


def with_id_type(schema: pa.Schema, id_type: pa.DataType) -> pa.Schema:
    """`schema` with its `id` column of `id_type`."""
    index = schema.get_field_index("id")
    return schema.set(index, pa.field("id", id_type))

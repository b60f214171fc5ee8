"""LlamBERT: label a large corpus at encoder cost and close to LLM quality."""

__version__ = "0.1.0"

STAGES = (
    *("corpus", "sample", "annotate", "train", "evaluate", "label"),
    *("cascade", "review"),  # on request
    *("report", "tracking"),  # the latter on request too
)

"""The LLM behind annotate: vLLM on this cluster, an HTTP endpoint, or recorded answers.

Each engine is a function `ask(rows, config, task, counter)`: a Ray Dataset of id, text and
text_hash in, a Dataset of `schema.RESPONSE` out, with exactly one row for each row in.
"""

"""A job that leaves the corpus' inventory, the sample and the LLM's labels.

ray job submit --working-dir . -- python jobs/annotate.py RUN.yaml [--set a.b=c]
"""

import sys

from llambert.cli import main

main(["run", *sys.argv[1:], "--until", "annotate"])

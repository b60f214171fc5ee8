"""A job that leaves the fine-tuned encoders and how good they are, and what comes before.

ray job submit --working-dir . -- python jobs/train.py RUN.yaml [--set a.b=c]
"""

import sys

from llambert.cli import main

main(["run", *sys.argv[1:], "--until", "evaluate"])

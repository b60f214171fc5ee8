"""A job that leaves every label of the corpus and the report, and all that comes before.

ray job submit --working-dir . -- python jobs/label.py RUN.yaml [--set a.b=c]
"""

import sys

from llambert.cli import main

main(["run", *sys.argv[1:]])

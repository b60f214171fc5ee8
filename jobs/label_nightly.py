"""A job that labels the files that are new or changed since the last night of the same model.

ray job submit --working-dir . -- python jobs/label_nightly.py RUN.yaml [--set a.b=c] [--model DIR]
"""

import sys

from llambert.cli import main

main(["nightly", *sys.argv[1:]])

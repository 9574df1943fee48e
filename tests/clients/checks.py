"""Checks that fail loudly and are counted, for the programs beside this file."""

import sys

count = 0


def check(what, right):
    global count
    count += 1
    if not right:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")

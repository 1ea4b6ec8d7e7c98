"""Measure the grid, or the mechanisms and subjects that are named, and write the record and the page."""

import sys

from support.conformance import page, record

if __name__ == "__main__":
    record.write(record.measured(only=sys.argv[1:]))
    page.write(*record.read())

"""Prints the contents of a config's data and its packing: `longvita data report --text`.

python tools/inspect_data.py CONFIG [section.field=value ...] [--allow-missing]

For each source it prints the samples, those that the mix selects, their tokens and tiles, the lengths of samples, and
the quarantined ones with the reasons. Then it prints the packed sequences of the first epoch: their fill, a drawing of
the first ones (one row per sequence, one letter per document, a space for padding), and the balance of their work.
"""

from __future__ import annotations

import sys

from longvita.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["data", "report", "--text"]
    main()

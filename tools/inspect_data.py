"""Shows what a config's data holds and how it is packed: `longvita data report --text`.

python tools/inspect_data.py CONFIG [section.field=value ...] [--allow-missing]

For each source: samples, those that the mix takes, their tokens and tiles, the length of samples, and what is set
aside and why. Then the packed sequences of the first epoch: how full they are, a picture of the first ones, one row a
sequence, one letter a document (a space is padding), and how evenly their work is divided.
"""

from __future__ import annotations

import sys

from longvita.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["data", "report", "--text"]
    main()

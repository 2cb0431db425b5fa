from __future__ import annotations

import re
from graphlib import TopologicalSorter

from tests.conftest import REPOSITORY

DATA = REPOSITORY / "longvita" / "data"
IMPORT = re.compile(r"^\s*(?:from|import) longvita\.data\.(\w+)", re.MULTILINE)


def test_folders_do_not_import_each_other_in_a_circle():
    folders = {path.parent.name for path in DATA.glob("*/__init__.py")}
    imported: dict[str, set[str]] = {folder: set() for folder in folders}
    for folder in folders:
        for path in (DATA / folder).rglob("*.py"):
            imported[folder] |= folders.intersection(IMPORT.findall(path.read_text(encoding="utf-8"))) - {folder}
    order = list(TopologicalSorter(imported).static_order())  # Raises CycleError.
    assert order.index("storage") < order.index("mix") < order.index("audit")

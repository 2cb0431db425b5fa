"""The commands of README.md."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

TEST_COMMAND = "bash scripts/test.sh"


def readme_commands() -> list[str]:
    """Return the commands of the README's bash blocks in order; lines that end with a backslash are joined."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        joined = re.sub(r"\\\n\s*", "", block)
        commands += [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return commands

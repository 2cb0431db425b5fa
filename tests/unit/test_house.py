"""Rules for the tree that a program can check: device names, file lengths, packages, pins."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LONGEST_FUNCTION = 60
LONGEST_FILE = 500
CODE_FOLDERS = ("longvita", "megatron_patches", "tools", "scripts", "tests", "configs")
PLATFORM_LAYER = (
    "longvita/platforms/",
    "megatron_patches/",
    "tests/stubs/",
    "tests/unit/platforms/",
    "tests/unit/patches/",
    "tests/unit/commands/test_doctor.py",
    "tests/distributed/platforms/",
)
ME = "tests/unit/test_house.py"
LAUNCHERS = ("longvita/processes.py", "tools/reading_path.py")
"""Files that start ranks. Only they read environment variables."""

DEVICE_WORDS = re.compile(r"(?<![a-z])(cuda|npus?)(?![a-z])", re.IGNORECASE)
DEVICE_LIBRARIES = re.compile(
    r"torch_npu|transformer_engine|\bflash_attn\b|\b(nccl|hccl)\b|(import|from) (apex|mindspeed)\b|mindspeed\.[a-z]",
    re.IGNORECASE,
)
MARKERS = re.compile(r"pytest\.mark\.npu")
# Folders of one machine, split so that this file does not contain them.
MACHINE_PATHS = re.compile("|".join(("/" + "work/", "/" + "tmp/", "/" + "root/", r"(?<![\w/])" + "shared" + "/")))


def files(*suffixes: str, folders: tuple[str, ...] = CODE_FOLDERS) -> list[str]:
    """Paths below the repository, with forward slashes."""
    found = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]
    return sorted(found)


PYTHON = files(".py")
LIBRARY = [name for name in PYTHON if not name.startswith("tests/")]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def tree(name: str) -> ast.Module:
    return ast.parse(read(name))


def test_there_are_files_to_check():
    assert "longvita/config/schema.py" in LIBRARY
    assert "megatron_patches/__init__.py" in LIBRARY
    assert len(PYTHON) > len(LIBRARY) > 20


@pytest.mark.parametrize("text", ["torch.cuda", "torch_npu", "NPU", "is_npu_available", "two NPUs", "'npu'"])
def test_the_search_finds_devices(text):
    assert DEVICE_WORDS.search(text)


@pytest.mark.parametrize("text", ["input", "inputs", "barracuda", "num_punctuation"])
def test_the_search_leaves_other_words_alone(text):
    assert not DEVICE_WORDS.search(text)


def test_devices_are_named_in_the_platform_layer_only():
    found = []
    for name in files(".py", ".sh", ".yaml"):
        if name == ME or name.startswith(PLATFORM_LAYER):
            continue
        assert not DEVICE_WORDS.search(name), name
        for number, line in enumerate(read(name).splitlines(), 1):
            if DEVICE_WORDS.search(MARKERS.sub("", line)):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_folders_of_devices_do_not_import_each_other():
    found = []
    for name in files(".py", folders=("longvita/platforms", "megatron_patches")):
        own = Path(name).parent.name
        for other in {"cpu", "cuda", "npu"} - {own}:
            if own in ("cpu", "cuda", "npu") and re.search(rf"(platforms|megatron_patches)\.{other}\b", read(name)):
                found.append(f"{name} imports {other}")
    assert found == []


def test_libraries_of_devices_are_named_in_the_platform_layer_only():
    found = []
    for name in LIBRARY:
        if not name.startswith(PLATFORM_LAYER):
            lines = enumerate(read(name).splitlines(), 1)
            found += [f"{name}:{number}: {line.strip()}" for number, line in lines if DEVICE_LIBRARIES.search(line)]
    assert found == []


def test_no_path_of_one_machine():
    found = []
    tops = [path.name for path in REPOSITORY.iterdir() if path.suffix in (".py", ".md", ".toml", ".txt")]
    for name in [*files(".py", ".sh", ".yaml", ".md", folders=(*CODE_FOLDERS, "docs", ".ci")), *tops]:
        for number, line in enumerate(read(name).splitlines(), 1):
            if MACHINE_PATHS.search(line) and not line.startswith("#!"):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_files_are_short():
    lengths = {name: len(read(name).splitlines()) for name in PYTHON}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short():
    found = {}
    for name in PYTHON:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found[f"{name}:{node.lineno}: {node.name}"] = length
    assert found == {}


def test_every_module_has_a_docstring():
    missing = [name for name in LIBRARY if len((ast.get_docstring(tree(name)) or "").split()) < 3]
    assert missing == []


def test_there_are_no_todo_comments():
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [name for name in files(".py", ".sh", ".yaml") if name != ME and pattern.search(read(name))]
    assert found == []


def test_only_launchers_read_environment_variables():
    found = []
    for name in LIBRARY:
        if name in LAUNCHERS:
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_every_package_is_importable_by_setuptools():
    packages = {str(Path(name).parent) for name in files(".py", folders=("longvita", "megatron_patches"))}
    missing = [package for package in packages if not (REPOSITORY / package / "__init__.py").is_file()]
    assert missing == []


def test_constraints_pin_every_package_of_setup():
    pins = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in read("constraints.txt").splitlines()
        if "==" in line
    }
    listed = re.findall(r'^\s+"([A-Za-z][A-Za-z0-9_.-]*)(?:\[\w+\])?[^"]*",', read("setup.py"), flags=re.MULTILINE)
    wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in listed}
    assert len(wanted) > 20
    assert wanted - pins == set()


def test_other_python_versions_are_refused_with_the_reason(monkeypatch):
    namespace = {"__name__": "__main__", "__file__": str(REPOSITORY / "setup.py")}
    monkeypatch.setattr("sys.version_info", (3, 10, 12, "final", 0))
    with pytest.raises(SystemExit, match=r"(?s)Python 3.11 or 3.12, and this is Python 3.10.*Reason: .*Fix: "):
        exec(compile(read("setup.py"), "setup.py", "exec"), namespace)

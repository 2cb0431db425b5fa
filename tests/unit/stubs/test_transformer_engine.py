"""The stub of Transformer Engine has the signatures of its source, and refuses what it does not compute.

The source is the folder TRANSFORMER_ENGINE_SOURCE (a wheel of 2.20.2, unpacked) or the installed package; where there
is neither, the comparison is deselected and listed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest

STUB = Path(__file__).parents[2] / "stubs" / "te" / "transformer_engine"


def _source() -> Path | None:
    folder = os.environ.get("TRANSFORMER_ENGINE_SOURCE")
    if folder:
        return Path(folder) / "transformer_engine"
    spec = importlib.util.find_spec("transformer_engine")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


SOURCE = _source()
DPA = "pytorch/attention/dot_product_attention/dot_product_attention.py"
# File of the stub, class or None, function: the file of the source where it is another one.
FUNCTIONS: list[tuple[str, str | None, str, str | None]] = [
    ("pytorch/module/linear.py", "Linear", "__init__", None),
    ("pytorch/module/linear.py", "Linear", "forward", None),
    ("pytorch/module/layernorm_linear.py", "LayerNormLinear", "__init__", None),
    ("pytorch/module/layernorm_linear.py", "LayerNormLinear", "forward", None),
    ("pytorch/attention/dot_product_attention.py", "DotProductAttention", "__init__", DPA),
    ("pytorch/attention/dot_product_attention.py", "DotProductAttention", "forward", DPA),
    ("pytorch/attention/dot_product_attention.py", "DotProductAttention", "set_context_parallel_group", DPA),
    ("pytorch/attention/rope.py", None, "apply_rotary_pos_emb", None),
    ("pytorch/optimizers/__init__.py", "FusedAdam", "__init__", "pytorch/optimizers/fused_adam.py"),
    ("pytorch/optimizers/__init__.py", "FusedAdam", "step", "pytorch/optimizers/fused_adam.py"),
    ("pytorch/optimizers/__init__.py", "MultiTensorApply", "__call__", "pytorch/optimizers/multi_tensor_apply.py"),
    ("pytorch/module/base.py", None, "get_dummy_wgrad", None),
    ("pytorch/fp8.py", None, "fp8_autocast", "pytorch/quantization.py"),
]
# The norms pass **kwargs to these; the stubs have their parameters instead.
NORMS = {
    "pytorch/module/layernorm.py": ("LayerNorm", "pytorch/ops/basic/layer_norm.py"),
    "pytorch/module/rmsnorm.py": ("RMSNorm", "pytorch/ops/basic/rmsnorm.py"),
}


def _parameters(path: Path, owner: str | None, name: str) -> list[tuple[str, str]]:
    """Names and defaults, those that are given by name alone behind a star."""
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    if owner is not None:
        tree = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner)
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    arguments = function.args
    missing = ["" for _ in range(len(arguments.args) - len(arguments.defaults))]
    found = list(zip([one.arg for one in arguments.args], missing + [ast.unparse(d) for d in arguments.defaults]))
    if arguments.kwonlyargs:
        found.append(("*", ""))
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((one.arg, "" if default is None else ast.unparse(default)))
    return found


needs_source = pytest.mark.gpu if SOURCE is None else pytest.mark.timeout(60)


@needs_source
@pytest.mark.parametrize(("file", "owner", "name", "place"), FUNCTIONS, ids=lambda value: str(value))
def test_signatures_are_those_of_the_source(file: str, owner: str | None, name: str, place: str | None) -> None:
    assert SOURCE is not None
    stub = _parameters(STUB / file, owner, name)
    source = _parameters(SOURCE / (place or file), owner, name)
    assert [parameter for parameter, _ in stub] == [parameter for parameter, _ in source]
    # An enumeration is not in the stub; all other defaults are the source's.
    different = {a[0] for a, b in zip(stub, source, strict=True) if a[1] != b[1]}
    assert different <= {"load_balancing_strategy"}


@needs_source
@pytest.mark.parametrize("file", NORMS)
def test_norms_have_the_parameters_that_the_source_passes_on(file: str) -> None:
    assert SOURCE is not None
    owner, place = NORMS[file]
    stub = dict(_parameters(STUB / file, owner, "__init__"))
    source = dict(_parameters(SOURCE / file, owner, "__init__"))
    passed = dict(_parameters(SOURCE / place, owner, "__init__"))
    taken = source | {name: default for name, default in passed.items() if name not in source}
    assert stub == taken | {"*": ""}


def test_what_is_not_computed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUB.parent))
    spec = importlib.util.spec_from_file_location("te_refuse", STUB / "refuse.py")
    assert spec is not None and spec.loader is not None
    refuse = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refuse)
    refuse.only("Linear", overlap=False, nothing=None, zero=0)
    with pytest.raises(NotImplementedError, match=r"Linear does not compute \{'overlap': True\}"):
        refuse.only("Linear", overlap=True)


ABSENT = {"cast_to_fp8", "_SplitAlongDim", "get_workspace", "apply_rotary_pos_emb"}
"""Names that megatron-core 0.16.1 imports only from older versions, or in a `try`."""


def _names(module: str) -> set[str]:
    """Names that a module of the source defines, imports or contains."""
    assert SOURCE is not None
    place = SOURCE.parent / module.replace(".", "/")
    inside = {one.stem for one in place.iterdir()} if place.is_dir() else set()
    text = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inside.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            inside |= {one.asname or one.name for one in node.names}
            if place.is_dir() and isinstance(node, ast.ImportFrom) and node.level == 1 and node.names[0].name == "*":
                inside |= _names(f"{module}.{node.module}")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            inside.add(node.id)
    return inside


@needs_source
def test_what_megatron_core_imports_is_in_the_source() -> None:
    """If a name is missing, megatron-core continues as if the library were missing."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None and spec.submodule_search_locations
    missing: dict[str, set[str]] = {}
    for file in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        if "fsdp" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            if module and module.split(".")[0] == "transformer_engine":
                lacking = {one.name for one in node.names} - _names(module)  # type: ignore[union-attr]
                missing.setdefault(module, set()).update(lacking)
    assert missing and set().union(*missing.values()) == ABSENT, missing

"""Which folder may import which, and what the edge device must not need."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Arrows go down only.
MAY_IMPORT = {
    "plugins": {"plugins"},
    "runtime": {"plugins", "runtime"},
    "export": {"plugins", "runtime", "export"},
    "benchmarks": {"plugins", "runtime", "export", "benchmarks"},
}
HEAVY = {"onnx", "onnx_ir", "onnxscript", "scipy", "torch", "transformers"}
# An operator's ONNX form is written with onnx, and only the exporter loads that file.
MAY_LOAD_ONNX = "onnx_function.py"


def modules_of(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imports(tree: ast.AST, *, top_level_only: bool) -> Iterator[tuple[str, int]]:
    """Dotted names that are imported when the program runs; those for type checkers are skipped."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # `from visionllm_edge import export` names the folder in its second half.
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), top_level_only=top_level_only)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level_only:
            continue
        else:
            yield from imports(node, top_level_only=top_level_only)


def wrong_arrows(folder: str, source: str) -> list[str]:
    wrong = []
    for name, line in imports(ast.parse(source), top_level_only=False):
        parts = name.split(".")
        if parts[0] == "visionllm_edge" and parts[1] not in MAY_IMPORT[folder]:
            wrong.append(f"line {line}: {folder} imports {name}")
    return wrong


def heavy_imports(source: str, *, top_level_only: bool, allowed: frozenset[str]) -> list[str]:
    tree = ast.parse(source)
    return [
        f"line {line}: {name}"
        for name, line in imports(tree, top_level_only=top_level_only)
        if name.split(".")[0] in HEAVY - allowed
    ]


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_go_one_way(folder: str) -> None:
    modules = modules_of(folder)
    assert modules
    found = {
        str(path.relative_to(REPOSITORY)): wrong
        for path in modules
        if (wrong := wrong_arrows(folder, path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("folder", ["plugins", "runtime", "benchmarks"])
def test_the_edge_side_loads_nothing_heavy(folder: str) -> None:
    found = {}
    for path in modules_of(folder):
        allowed = frozenset({"onnx"} if path.name == MAY_LOAD_ONNX else ())
        # The runtime has no use for these even inside a function; the others load them on demand.
        heavy = heavy_imports(
            path.read_text(encoding="utf-8"), top_level_only=folder != "runtime", allowed=allowed
        )
        if heavy:
            found[str(path.relative_to(REPOSITORY))] = heavy
    assert found == {}


def test_export_stays_off_the_path_of_the_command_line() -> None:
    source = (REPOSITORY / "export" / "cli.py").read_text(encoding="utf-8")
    assert heavy_imports(source, top_level_only=True, allowed=frozenset()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from visionllm_edge.export.cli import compile_",
        "from visionllm_edge import export",
        "import visionllm_edge.benchmarks.latency",
        "def late():\n    import visionllm_edge.export",
        "try:\n    import visionllm_edge.export\nexcept ImportError:\n    pass",
    ],
)
def test_a_wrong_arrow_is_seen(source: str) -> None:
    assert len(wrong_arrows("runtime", source)) == 1


def test_a_heavy_import_is_seen() -> None:
    late = "def f():\n    import torch.nn"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"
    nothing = frozenset[str]()
    assert heavy_imports("from torch import nn", top_level_only=True, allowed=nothing)
    assert heavy_imports(late, top_level_only=False, allowed=nothing)
    assert not heavy_imports(late, top_level_only=True, allowed=nothing)
    assert not heavy_imports(typed, top_level_only=False, allowed=nothing)


HELP_WITHOUT_THE_EXPORTER = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import click
from click.testing import CliRunner
from visionllm_edge.runtime.cli import main

names = main.list_commands(click.Context(main))
told = {}
for arguments in [[], *[[name] for name in names]]:
    result = CliRunner().invoke(main, [*arguments, "--help"])
    told[" ".join(arguments)] = [result.exit_code, result.output]
print(json.dumps(told))
"""


def test_every_help_text_works_without_the_exporter() -> None:
    blocked = sorted(HEAVY | {"pycocotools", "safetensors", "sentencepiece"})
    code = f"BLOCKED = {blocked!r}\n{HELP_WITHOUT_THE_EXPORTER}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    expected = {"", "run", "chat", "inspect", "compile", "verify", "demo", "eval"}
    assert set(told) >= expected
    for name, (exit_code, text) in told.items():
        assert exit_code == 0, f"{name}: {text}"
        assert text.startswith("Usage:"), name
        assert name in text


def test_no_file_grows_over_600_lines() -> None:
    long = {}
    for folder in (*MAY_IMPORT, "tests"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > 600:
                    long[str(path.relative_to(REPOSITORY))] = lines
    assert long == {}

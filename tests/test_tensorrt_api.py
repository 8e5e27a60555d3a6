"""Every name that our code uses on TensorRT exists in every release that we support, or is probed.

The enterprise libraries cannot be installed here; the members of their classes were read from the
published bindings (`data/make_tensorrt_api.py`). What an expression is is told by names: `trt` is
the module, `engine` an engine, and so on, in the files named here and by that convention only.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.backends import fake_tensorrt
from visionllm_edge.runtime.engines import tensorrt_module

REPOSITORY = Path(__file__).resolve().parents[1]
API = json.loads((REPOSITORY / "tests" / "data" / "tensorrt_api.json").read_text("utf-8"))
MEMBERS: Mapping[str, Mapping[str, str]] = API["members"]
EVERY_RELEASE = "".join(str(index) for index in range(len(API["releases"])))
FILES = sorted(
    [
        *REPOSITORY.glob("runtime/backends/tensorrt*.py"),
        *REPOSITORY.glob("runtime/engines/*.py"),
        *REPOSITORY.glob("plugins/tensorrt_glue/*.py"),
    ]
)
# Variables and attributes by name -> class of the object.
OBJECTS = {
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "registry": "IPluginRegistry",
    "timing_cache": "ITimingCache",
}
# The same words for something else: file -> word -> class, or None for nothing of TensorRT's.
EXCEPTIONS: Mapping[str, Mapping[str, str | None]] = {
    "tensorrt_stage.py": {"context": None},
    "gpu.py": {"runtime": None},
    "python_plugin.py": {"builder": "IExprBuilder", "context": None},
    "driver.py": {"context": None, "runtime": None},
    # The decorators' own package, `tensorrt.plugin`, which is not in the data.
    "aot.py": {"module": None, "builder": None, "network": None, "context": None},
    "record.py": {"engine": None},
    "seal.py": {"builder": None},
}
# Only `context.context` of the stage's own record is TensorRT's.
NESTED = {("tensorrt_stage.py", "context.context"): "IExecutionContext"}
# Fields of the record that `tensorrt_module.load` gives, which is called `trt` too.
RECORD = {"module", "version", "product", "capabilities", "backend"}
# Ours or Python's, on an object that only shares the name.
PYTHON = {"__name__", "__init__", "__dict__"}
# A capability of the record -> further names that come with it.
COMES_WITH = {"compute_capabilities": {"num_compute_capabilities", "set_compute_capability"}}


def owner_of(node: ast.expr, file: str, known: Mapping[str, str]) -> str | None:
    """Class of an expression, "" for the module, None for what is not TensorRT's."""
    if isinstance(node, ast.Name):
        if node.id in EXCEPTIONS.get(file, {}):
            return EXCEPTIONS[file][node.id]
        if node.id in ("trt", "module"):
            return ""
        word = node.id
    elif isinstance(node, ast.Attribute):
        nested = NESTED.get((file, ast.unparse(node)))
        if nested is not None:
            return nested
        if node.attr in ("trt", "_trt"):
            return ""
        inner = owner_of(node.value, file, known)
        if inner == "" and node.attr == "module":
            return ""
        if inner is not None:
            name = f"{inner}.{node.attr}" if inner else node.attr
            return name if name in MEMBERS else None
        word = node.attr
    elif isinstance(node, ast.Call):
        return None
    else:
        return None
    if word in EXCEPTIONS.get(file, {}):
        return EXCEPTIONS[file][word]
    return known.get(word) or OBJECTS.get(word)


def made_here(tree: ast.AST, file: str) -> dict[str, str]:
    """Variables that are assigned a new object of a class of the module."""
    known: dict[str, str] = {"trt": ""}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = owner_of(node.value.func, file, known)
            for target in node.targets:
                if made and isinstance(target, ast.Name):
                    known[target.id] = made
    return known


def uses(tree: ast.AST, file: str) -> Iterator[tuple[str, str, int]]:
    known = made_here(tree, file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = owner_of(node.value, file, known)
            record = owner == "" and node.attr in RECORD
            if owner is not None and not record and node.attr not in PYTHON:
                yield owner, node.attr, node.lineno


def probed(tree: ast.AST) -> set[str]:
    """Names that the file asks for before it uses them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            enough = {"hasattr": 2, "getattr": 3}.get(node.func.id)
            if enough is not None and len(node.args) >= enough:
                found |= {str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("capabilities"):
            key = str(node.slice.value) if isinstance(node.slice, ast.Constant) else ""
            found |= set(tensorrt_module._CAPABILITIES.get(key, "").split("."))
            found |= COMES_WITH.get(key, set())
    return found


def wrong_names(source: str, file: str) -> list[str]:
    tree = ast.parse(source)
    asked = probed(tree)
    wrong = []
    for owner, name, line in uses(tree, file):
        where = MEMBERS[owner].get(name, "")
        if where != EVERY_RELEASE and name not in asked:
            lacking = [
                release for index, release in enumerate(API["releases"]) if str(index) not in where
            ]
            wrong.append(f"{file}:{line}: {owner or 'module'}.{name} is not in {lacking}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_name_exists_or_is_probed(path: Path) -> None:
    assert wrong_names(path.read_text("utf-8"), path.name) == []


def test_enough_is_seen() -> None:
    """The convention finds what it should: a file that renames its variables would hide them."""
    found = {
        f"{owner}.{name}"
        for path in FILES
        for owner, name, _ in uses(ast.parse(path.read_text("utf-8")), path.name)
    }
    assert found >= {
        ".Runtime",
        ".ILogger",
        "TensorLocation.HOST",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "Runtime.deserialize_cuda_engine",
        "Runtime.engine_host_code_allowed",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "IPluginRegistry.load_library",
        "Builder.create_network",
        "Builder.build_serialized_network",
        "IBuilderConfig.add_optimization_profile",
        "OnnxParser.parse_from_file",
        "IPluginRegistry.register_creator",
        ".IPluginV3",
    }, sorted(found)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("engine.get_tensor_nam(0)", "ICudaEngine.get_tensor_nam"),
        ("self._engine.device_memory_size", "ICudaEngine.device_memory_size"),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "EXPLICIT_BATCH"),
        ("b = trt.Builder(log)\nb.platform_has_fast_fp16", "Builder.platform_has_fast_fp16"),
        ("context.is_stream_capturable(1)", "is_stream_capturable"),
        ("config.set_flag(trt.module.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("trt.OnnxParsr(network, log)", "module.OnnxParsr"),
        ("if hasattr(engine, 'other'):\n    engine.get_aliased_input_tensor('x')", "get_aliased"),
    ],
)
def test_a_wrong_name_is_seen(source: str, name: str) -> None:
    (wrong,) = wrong_names(source, "planted.py")
    assert name in wrong


def test_a_probed_name_passes() -> None:
    probe = "if hasattr(engine, 'get_aliased_input_tensor'):\n    "
    assert wrong_names(probe + "engine.get_aliased_input_tensor('x')", "planted.py") == []


@pytest.mark.parametrize(
    ("kind", "owner"),
    [
        (fake_tensorrt.AliasingEngine, "ICudaEngine"),
        (fake_tensorrt.CapturableContext, "IExecutionContext"),
        (fake_tensorrt.IPluginRegistry, "IPluginRegistry"),
        (fake_tensorrt.Runtime, "Runtime"),
        (fake_tensorrt.DataType, "DataType"),
        (fake_tensorrt.TensorIOMode, "TensorIOMode"),
        (fake_tensorrt.TensorLocation, "TensorLocation"),
        (fake_tensorrt.TensorFormat, "TensorFormat"),
        (fake_tensorrt.Severity, "ILogger.Severity"),
        (fake_tensorrt.ExecutionContextAllocationStrategy, "ExecutionContextAllocationStrategy"),
    ],
)
def test_the_fake_has_no_members_of_its_own(kind: Any, owner: str) -> None:
    mine = set(getattr(kind, "__members__", None) or [n for n in dir(kind) if n[0] != "_"])
    assert mine - MEMBERS[owner].keys() == set()

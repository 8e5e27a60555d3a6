"""What is shipped is what is there: the package list, the links for type checkers, the wheel."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from visionllm_edge.plugins.cpu.build import find_compiler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "export", "plugins", "runtime")
# Files that explain the source tree and are of no use once installed.
NOT_SHIPPED = {".md"}
# Recorded measurements belong to the repository, not to an installation.
RECORDS = "benchmarks/results/"


def setuptools_table() -> Mapping[str, object]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    table = project["tool"]["setuptools"]
    assert isinstance(table, dict)
    return table


def source_files(folder: str) -> list[Path]:
    """Files of one folder, relative to the repository; what a build leaves behind is no source."""
    return sorted(
        path.relative_to(REPOSITORY)
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    )


def shipped_files() -> set[str]:
    """What the wheel must hold, read from the tree and the package-data patterns."""
    table = setuptools_table()
    patterns = table["package-data"]
    assert isinstance(patterns, dict)
    files = set()
    for folder in FOLDERS:
        for path in source_files(folder):
            package = ".".join(("visionllm_edge", *path.parent.parts))
            data = [*patterns["*"], *nested_patterns(patterns, package)]
            name = path.name
            if path.suffix == ".py" or any(fnmatch.fnmatch(name, pattern) for pattern in data):
                files.add(path.as_posix())
    return files


def nested_patterns(patterns: Mapping[str, list[str]], package: str) -> list[str]:
    """Patterns such as ``checkpoint/*`` of a package, as seen from that sub-folder."""
    found = list(patterns.get(package, []))
    parent, _, folder = package.rpartition(".")
    for pattern in patterns.get(parent, []):
        head, slash, rest = pattern.partition("/")
        if slash and head == folder:
            found.append(rest)
    return found


def test_every_package_is_listed() -> None:
    there = {
        ".".join(("visionllm_edge", *path.parent.parts))
        for folder in FOLDERS
        for path in source_files(folder)
        if path.name == "__init__.py"
    }
    assert there == set(setuptools_table()["packages"])  # type: ignore[call-overload]


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in FOLDERS:
        for path in source_files(folder):
            if path.suffix == ".py":
                assert (REPOSITORY / path.parent / "__init__.py").is_file(), path.parent


def test_links_for_type_checkers_match_the_mapping() -> None:
    mapping = setuptools_table()["package-dir"]
    links = {
        f"visionllm_edge.{link.name}": link.resolve()
        for link in (REPOSITORY / ".typing" / "visionllm_edge").iterdir()
    }
    assert isinstance(mapping, dict)
    assert links == {name: (REPOSITORY / folder) for name, folder in mapping.items()}
    for folder in FOLDERS:
        assert (REPOSITORY / folder / "py.typed").is_file()


def test_every_file_is_shipped_or_documentation() -> None:
    left_out = {
        path.as_posix()
        for folder in FOLDERS
        for path in source_files(folder)
        if path.suffix not in NOT_SHIPPED and not path.as_posix().startswith(RECORDS)
    } - shipped_files()
    assert left_out == set(), "add them to package-data, or to NOT_SHIPPED if they are not needed"


def build_wheel(tree: Path, out: Path) -> Path:
    """Build a wheel of a copy of the tree, so that no left-over of a build gets in."""
    for folder in FOLDERS:
        skip = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(REPOSITORY / folder, tree / folder, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(out)]
    done = subprocess.run(
        [*command, *build_options(), str(tree)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def build_options() -> list[str]:
    """Use the setuptools that is here, if it is new enough; else pip fetches one.

    Environments of Python 3.12 and newer start without setuptools.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        major = int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if major >= 77 else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(folder / "tree", folder / "out")


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    # The compiled kernels are there if this machine has a compiler; nothing else may be.
    library = {name for name in names if name.endswith(".so")}
    if find_compiler() is not None:
        assert library == {"visionllm_edge/plugins/cpu/_kernels.abi3.so"}
    # One library serves every Python from 3.10 on.
    assert "-cp310-abi3-" in wheel.name
    assert names - metadata - library == {f"visionllm_edge/{name}" for name in shipped_files()}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_license_is_whole() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text

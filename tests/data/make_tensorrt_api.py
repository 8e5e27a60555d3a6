"""Write ``tensorrt_api.json``: the classes of published TensorRT bindings and their members.

The bindings are ordinary wheels, the libraries behind them are not. So each wheel is imported, in
a process of its own, against empty stand-ins for the libraries that gcc makes from the list of
symbols that the wheel wants. Run by hand when a release is added (Linux, needs pip, gcc, binutils):

    python tests/data/make_tensorrt_api.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASES = {
    "10.3": "tensorrt_cu12_bindings==10.3.0",
    "10.13": "tensorrt_cu12_bindings==10.13.3.9",
    "10.16": "tensorrt_cu12_bindings==10.16.1.11",
    "11.4": "tensorrt_cu12_bindings==11.4.0.106",
    "rtx 1.7": "tensorrt_rtx_cu13_bindings==1.7.1.116",
}
OUTPUT = Path(__file__).with_name("tensorrt_api.json")
# The wheels' own C entry points; everything else they want is the C and C++ libraries'.
ENTRY_POINT = re.compile(r"^(create\w+_INTERNAL|get\w+|initLibNvInferPlugins)$")
DUMP = """
import importlib, inspect, json, sys
module = importlib.import_module(sys.argv[1])
out = {"": [name for name in dir(module) if not name.startswith("_")] + ["__version__"]}
def visit(prefix, owner):
    for name, value in vars(owner).items():
        if inspect.isclass(value) and not name.startswith("_") and name != "__class__":
            out[prefix + name] = [m for m in dir(value) if not m.startswith("_")] + ["__init__"]
            visit(prefix + name + ".", value)
for name in out[""]:
    value = getattr(module, name, None)
    if inspect.isclass(value):
        out[name] = [m for m in dir(value) if not m.startswith("_")] + ["__init__"]
        visit(name + ".", value)
print(json.dumps(out))
"""


def main() -> None:
    """Download, import and write."""
    members: dict[str, dict[str, list[int]]] = {}
    for index, requirement in enumerate(RELEASES.values()):
        for owner, names in _members(requirement).items():
            for name in names:
                members.setdefault(owner, {}).setdefault(name, []).append(index)
    content = {
        "releases": list(RELEASES),
        "requirements": list(RELEASES.values()),
        # Which releases have a member, as digits that count through "releases".
        "members": {
            owner: {name: "".join(map(str, where)) for name, where in sorted(names.items())}
            for owner, names in sorted(members.items())
        },
    }
    lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in content["members"].items())  # type: ignore[attr-defined]
    head = {k: v for k, v in content.items() if k != "members"}
    text = json.dumps(head)[:-1] + ', "members": {\n' + ",\n".join(lines) + "\n}}\n"
    OUTPUT.write_text(text, encoding="utf-8")
    print(f"{OUTPUT.name}: {len(members)} classes, {len(text)} bytes")


def _members(requirement: str) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "wheel")
        (binary,) = (folder / "wheel").glob("tensorrt*/tensorrt*.so")
        _make_libraries(binary, folder / "libraries")
        done = subprocess.run(
            [sys.executable, "-c", DUMP, binary.parent.name],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(folder / "libraries"),
                "PYTHONPATH": str(folder / "wheel"),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
        return found


def _make_libraries(binary: Path, folder: Path) -> None:
    """Stand-ins for the NVIDIA libraries that a bindings file names."""
    folder.mkdir()
    dynamic = _output("readelf", "--dynamic", "--wide", str(binary))
    needed = re.findall(r"\[(lib(?:nv|tensorrt)[^\]]+)\]", dynamic)
    symbols = {line.split()[-1] for line in _output("nm", "-D", "-u", str(binary)).splitlines()}
    wanted = sorted(symbol for symbol in symbols if ENTRY_POINT.match(symbol))
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in wanted))
    for library in needed:
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run(["gcc", *flags, str(source)], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()

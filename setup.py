"""The one thing that pyproject.toml cannot say in a stable way: the library of CPU kernels.

It is optional: where no C++ compiler is, the installation goes on without it and the ONNX functions
run instead. Everything else stands in pyproject.toml.
"""

import runpy

from setuptools import Extension, setup

LIBRARY = runpy.run_path("plugins/cpu/sources.py")

setup(
    ext_modules=[
        Extension(
            f"visionllm_edge.plugins.cpu.{LIBRARY['LIBRARY_STEM']}",
            sources=[f"plugins/{path}" for path in LIBRARY["SOURCES"]],
            depends=[f"plugins/{path}" for path in LIBRARY["HEADERS"]],
            extra_compile_args=list(LIBRARY["FLAGS"]),
            language="c++",
            optional=True,
            # The library never calls Python, so one build serves every version.
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

"""llama.cpp, through its own ``llama-bench``: a GGUF file, with and without huge pages.

Flash attention is off: on the processors tried, decoding behind a long context is slower with it.
The weights are unpacked into the layout of the processor's kernels, which is llama.cpp's default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from visionllm_edge.benchmarks.peers.measure import Workload
from visionllm_edge.benchmarks.peers.peer import Peer, Run

__all__ = ["LLAMA_CPP"]

# The C library asks for huge pages for large blocks (glibc 2.35 and newer).
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def _runs(program: str, model: str, workload: Workload) -> Mapping[str, tuple[Run, ...]]:
    common = (program, "-m", model, "-t", str(workload.threads), "-fa", "0", "-o", "json")
    prompt = ("-p", str(workload.prompt), "-n", "0", "-r", str(workload.prefills))
    depths = ",".join(map(str, workload.contexts))
    decode = ("-p", "0", "-n", str(workload.steps), "-d", depths, "-r", "2")
    return {
        name: (
            Run(common + prompt, _read, environment),
            Run(common + decode, _read, environment),
        )
        for name, environment in (("llama.cpp", {}), ("llama.cpp, huge pages", _HUGE_PAGES))
    }


def _read(stdout: str) -> dict[str, object]:
    rows = json.loads(stdout[stdout.index("[") :])
    decode = {str(row["n_depth"]): row["avg_ts"] for row in rows if row["n_gen"]}
    prompts = [row for row in rows if row["n_prompt"]]
    out: dict[str, object] = {
        "version": f"llama.cpp {rows[0]['build_commit']}, {rows[0]['model_type']}",
        "model_bytes": rows[0]["model_size"],
    }
    if decode:
        out["decode"] = decode
    for row in prompts:
        out["prefill"] = row["avg_ts"]
        out["first_token_s"] = row["avg_ns"] / 1e9
    return out


LLAMA_CPP = Peer(
    name="llama-cpp",
    model="GGUF file, Q4_0 is its fastest",
    program="llama-bench of a Release build",
    runs=_runs,
)

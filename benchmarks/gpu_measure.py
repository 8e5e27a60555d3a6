"""Runs on the device, with torch: launches, checks against float64, times with device events.

torch is imported inside the functions. Kernels are compiled here for this device and launched by
``cuda.bindings`` on torch's memory and stream.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.gpu_cases import (
    CHECKS,
    LIMITS,
    TIMED,
    Attention,
    Pooling,
    copies_beyond_cache,
    relative_errors,
)
from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.grid_sample_prompt_pool import cuda as pool_cuda
from visionllm_edge.plugins.grid_sample_prompt_pool.reference import grid_sample_prompt_pool
from visionllm_edge.plugins.ms_deform_attn import cuda as msda_cuda
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn

if TYPE_CHECKING:
    import torch

__all__ = [
    "Kernels",
    "Launcher",
    "attention_by_grid_sample",
    "check_kernels",
    "measure_kernels",
    "measure_machine",
    "plans",
    "pooling_by_grid_sample",
]

Case = Attention | Pooling
DTYPES = tuple(LIMITS)
_ROUNDS = 30
_WARM_UP = 3


class Launcher(Protocol):
    """Puts one kernel of an operator on torch's current stream."""

    def launch(self, op: str, plan: KernelLaunch, tensors: Sequence[torch.Tensor]) -> None:
        """``tensors`` are the inputs in order, then the outputs."""
        ...


class Kernels:
    """Compiled for one device, launched through the CUDA driver."""

    def __init__(self, sm: int) -> None:
        """Compile and load every operator with kernels."""
        from visionllm_edge.plugins.cuda.compile import KERNEL_OPS, compile_kernels
        from visionllm_edge.plugins.tensorrt_glue.driver import CudaDriver

        self._driver = CudaDriver()
        self.compiled = {op: compile_kernels(op, sm) for op in KERNEL_OPS}
        self._modules = {op: self._driver.load(c.cubin) for op, c in self.compiled.items()}
        self._functions: dict[tuple[str, str], object] = {}

    def launch(self, op: str, plan: KernelLaunch, tensors: Sequence[torch.Tensor]) -> None:
        """See ``Launcher``."""
        import torch

        if plan.empty:
            return
        key = (op, plan.kernel)
        if key not in self._functions:
            self._functions[key] = self._driver.function(self._modules[op], plan.kernel)
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [tensor.data_ptr() for tensor in tensors]
        self._driver.launch(self._functions[key], plan, pointers, stream)


def plans(case: Case, shapes: Sequence[tuple[int, ...]], dtype: str) -> dict[str, KernelLaunch]:
    """Every form of the operator for these shapes, by name; the first is the one that is used."""
    if isinstance(case, Attention):
        return {
            "ours": msda_cuda.launch(shapes, dtype),
            "any": msda_cuda.launch(shapes, dtype, aligned=False),
            "naive": msda_cuda.launch_naive(shapes, dtype),
        }
    return {
        "ours": pool_cuda.launch(shapes, dtype),
        "any": pool_cuda.launch(shapes, dtype, aligned=False),
        "sampled": pool_cuda.launch_sampled(shapes, dtype),
        "naive": pool_cuda.launch_naive(shapes, dtype),
    }


def check_kernels(
    launcher: Launcher, device: str, cases: Sequence[Case] = CHECKS
) -> list[dict[str, object]]:
    """Every case, type and form against the reference in float64, on the inputs as rounded."""
    out: list[dict[str, object]] = []
    for case in cases:
        for dtype in DTYPES:
            tensors = _tensors(case, dtype, device, seed=1)
            true = _true(case, tensors)
            for form, plan in plans(case, [tuple(t.shape) for t in tensors], dtype).items():
                output = _output(case, tensors)
                output.fill_(float("nan"))
                launcher.launch(case.op, plan, [*tensors, output])
                errors = relative_errors(_numpy(output), true)
                out.append(
                    {
                        "case": case.name,
                        "dtype": dtype,
                        "form": form,
                        "kernel": plan.kernel,
                        **errors,
                        "limit": LIMITS[dtype],
                        "passed": errors["max_relative_error"] <= LIMITS[dtype],
                    }
                )
    return out


def measure_kernels(
    launcher: Launcher,
    device: str,
    copy_gb_per_s: float,
    cases: Sequence[Case] = TIMED,
    dtypes: Sequence[str] = DTYPES,
) -> list[dict[str, object]]:
    """Times of ours and of torch's grid_sample form, eager and compiled, at the real sizes."""
    import torch

    out: list[dict[str, object]] = []
    cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    for case in cases:
        for dtype in dtypes:
            moved = case.moved_bytes(dtype)
            count = copies_beyond_cache(moved, cache_bytes)
            first = _tensors(case, dtype, device, seed=1)
            # Sets of their own memory and, for the floats, their own content.
            sets = [first, *(_shuffled(first) for _ in range(count - 1))]
            results = [_output(case, first) for _ in sets]
            row: dict[str, Any] = {"case": case.name, "dtype": dtype, "buffers": count}
            for form, plan in plans(case, [tuple(t.shape) for t in first], dtype).items():
                row[f"{form}_kernel"] = plan.kernel
                calls = [
                    partial(launcher.launch, case.op, plan, [*inputs, result])
                    for inputs, result in zip(sets, results, strict=True)
                ]
                row[f"{form}_us"], row["by"] = time_us(calls)
            ours = plans(case, [tuple(t.shape) for t in first], dtype)["ours"]
            launcher.launch(case.op, ours, [*first, results[0]])
            wide = _torch_form(case)(*(t.double() if t.is_floating_point() else t for t in first))
            row |= relative_errors(_numpy(results[0]), wide.cpu().numpy())
            row |= _torch_times(case, sets)
            row["gb_per_s"] = moved / row["ours_us"] / 1e3
            row["share_of_copy"] = row["gb_per_s"] / copy_gb_per_s
            row["speedup_over_grid_sample"] = row["grid_sample_us"] / row["ours_us"]
            out.append(row)
            del sets, results
            torch.cuda.empty_cache()
    return out


def measure_machine(device: str) -> dict[str, float]:
    """What this device does at best today: a large copy (read + written) and a matrix product."""
    import torch

    source = torch.empty(2**30, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy_us, _ = time_us([partial(target.copy_, source)])
    del source, target
    size = 8192
    left = torch.randn(size, size, device=device).to(torch.bfloat16)
    right = torch.randn(size, size, device=device).to(torch.bfloat16)
    product = torch.empty_like(left)
    matmul_us, _ = time_us([partial(torch.matmul, left, right, out=product)])
    return {
        "copy_gb_per_s": 2 * 2**30 / copy_us / 1e3,
        "matmul_bf16_tflop_per_s": 2 * size**3 / matmul_us / 1e6,
    }


def time_us(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> tuple[float, str]:
    """Median time of one call in microseconds, by device events, and how it was taken.

    The calls of a round run one after another, each on buffers of its own; a round is replayed as a
    CUDA graph where it can be recorded, so that the host's launch times stay out.
    """
    import torch

    for _ in range(_WARM_UP):
        for call in calls:
            call()
    torch.cuda.synchronize()
    repeats = max(1, 8 // len(calls))

    def round_of_calls() -> None:
        for _ in range(repeats):
            for call in calls:
                call()

    replay, how = round_of_calls, "stream"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            round_of_calls()
        replay, how = graph.replay, "graph"
    # What cannot be recorded is timed without a graph, and the result says so.
    except RuntimeError:
        torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (repeats * len(calls)))
    return statistics.median(times), how


def attention_by_grid_sample(
    value: torch.Tensor,
    sizes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    *,
    levels: Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """Deformable attention as model code writes it, in the values' type throughout.

    ``levels`` spares reading the sizes back from the device.
    """
    import torch
    import torch.nn.functional as functional

    batch, _, heads, depth = value.shape
    queries = locations.shape[1]
    areas = levels if levels is not None else [(h, w) for h, w in sizes.tolist()]
    flat = value.flatten(2).transpose(1, 2).reshape(batch * heads, depth, -1)
    grids = (2 * locations - 1).to(value.dtype).transpose(1, 2).flatten(0, 1)
    sampled, start = [], 0
    for level, (height, width) in enumerate(areas):
        plane = flat[:, :, start : start + height * width].reshape(-1, depth, height, width)
        start += height * width
        grid = grids[:, :, level]
        sampled.append(
            functional.grid_sample(
                plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False
            )
        )
    mix = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    total = (torch.stack(sampled, dim=-2).flatten(-2) * mix).sum(-1)
    return (
        total.view(batch, heads * depth, queries)
        .transpose(1, 2)
        .reshape(batch, queries, heads, depth)
    )


def pooling_by_grid_sample(
    features: torch.Tensor, masks: torch.Tensor, region_image: torch.Tensor
) -> torch.Tensor:
    """Prompt pooling as model code writes it: sample at every pixel, average over the mask."""
    import torch
    import torch.nn.functional as functional

    regions, height, width = masks.shape
    y = torch.arange(height, device=masks.device, dtype=features.dtype) / height
    x = torch.arange(width, device=masks.device, dtype=features.dtype) / width
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1) * 2 - 1
    maps = features[region_image.long()].permute(0, 3, 1, 2)
    sampled = functional.grid_sample(
        maps, grid[None].expand(regions, -1, -1, -1), padding_mode="zeros", align_corners=False
    )
    inside = (masks != 0).to(features.dtype)
    count = (masks != 0).sum(dim=(1, 2)).clamp(min=1).to(features.dtype)
    return torch.einsum("rchw,rhw->rc", sampled, inside) / count[:, None]


def _torch_form(case: Case) -> Callable[..., torch.Tensor]:
    if isinstance(case, Pooling):
        return pooling_by_grid_sample
    levels = case.levels

    def form(*tensors: torch.Tensor) -> torch.Tensor:
        return attention_by_grid_sample(*tensors, levels=levels)

    return form


def _torch_times(case: Case, sets: Sequence[Sequence[torch.Tensor]]) -> dict[str, object]:
    import torch

    form = _torch_form(case)
    eager_us, _ = time_us([partial(form, *inputs) for inputs in sets])
    out: dict[str, object] = {"grid_sample_us": eager_us, "compiled_us": None}
    try:
        compiled = torch.compile(form)
        out["compiled_us"], _ = time_us([partial(compiled, *inputs) for inputs in sets])
    # The compiler needs a host compiler and Triton; without them the eager time stands alone.
    except Exception as e:
        out["compiled_error"] = f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
    return out


def _tensors(case: Case, dtype: str, device: str, *, seed: int) -> list[torch.Tensor]:
    """Inputs on the device: what the specification calls a value has the type, the rest stays."""
    import torch

    # Values and weights, or features: positions of the ports whose type varies.
    typed = (0, 4) if isinstance(case, Attention) else (0,)
    return [
        torch.from_numpy(array).to(device, getattr(torch, dtype) if index in typed else None)
        for index, array in enumerate(case.inputs(seed))
    ]


def _shuffled(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies; the values are rolled along their rows, which keeps shapes and statistics."""
    return [tensors[0].roll(1, dims=-1).contiguous(), *(tensor.clone() for tensor in tensors[1:])]


def _output(case: Case, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if isinstance(case, Attention):
        shape = (tensors[0].shape[0], case.query_count, case.heads, case.depth)
        return tensors[0].new_empty(shape)
    return tensors[0].new_empty((case.regions, case.channels))


def _true(case: Case, tensors: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    wide: Any = [
        t.double().cpu().numpy() if t.is_floating_point() else t.cpu().numpy() for t in tensors
    ]
    reference: Any = ms_deform_attn if isinstance(case, Attention) else grid_sample_prompt_pool
    out: NDArray[np.float64] = reference(*wide)
    return out


def _numpy(tensor: torch.Tensor) -> NDArray[np.float64]:
    out: NDArray[np.float64] = tensor.double().cpu().numpy()
    return out

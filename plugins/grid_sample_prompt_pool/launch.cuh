// From sizes to one launch of prompt pooling, for C++ hosts: the twin of cuda.py.
#ifndef VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_LAUNCH_CUH
#define VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_LAUNCH_CUH

#include "../cuda/launch.cuh"
#include "kernel.cuh"

namespace visionllm {
namespace pool {

constexpr long long MAX_AXIS_PIXELS = 16384;
constexpr long long COUNT_BYTES = 16;  // the fold's static shared memory, padded

inline bool axis_fits(long long pixels, long long cells) {
  return pixels <= MAX_AXIS_PIXELS && 2 * pixels * (cells + 2) <= MAX_INT;
}

// sizes: images, grid height, grid width, channels, regions, height, width. False where the kernel
// cannot count a size, or the type is unknown.
inline bool make_plan(int dtype, bool aligned, const long long* sizes, LaunchPlan* plan) {
  const int bytes = element_bytes(dtype);
  if (bytes == 0 || !set_scalars(plan, sizes, 7)) return false;
  const long long grid_height = sizes[1], grid_width = sizes[2], channels = sizes[3];
  const long long regions = sizes[4];
  if (!axis_fits(sizes[5], grid_height) || !axis_fits(sizes[6], grid_width)) return false;
  if (grid_height * grid_width > MAX_INT || channels > MAX_INT / 2) return false;
  if (regions > MAX_GRID_YZ) return false;
  const bool vector = aligned && channels * bytes % 16 == 0;
  const long long width = vector ? 16 / bytes : 1;
  const long long pairs = (grid_height + 1) * (grid_width + 1);
  const long long partial = ceil_div(FOLD_THREADS * width, 4);
  const long long shared_bytes =
      16 * (pairs > partial ? pairs : partial) + 4 * grid_height * grid_width;
  plan->grid[1] = regions;
  plan->grid[2] = 1;
  if (shared_bytes + COUNT_BYTES > MAX_SHARED_BYTES) {
    VISIONLLM_CHOOSE_TYPE(plan, dtype, pool, sampled);
    plan->grid[0] = ceil_div(channels, SAMPLE_LANES);
    plan->block = SAMPLE_LANES * SAMPLE_GROUPS;
    plan->shared_bytes = 0;
    return true;
  }
  if (vector) {
    VISIONLLM_CHOOSE_TYPE(plan, dtype, pool, fold_vec);
  } else {
    VISIONLLM_CHOOSE_TYPE(plan, dtype, pool, fold_any);
  }
  plan->grid[0] = ceil_div(channels, LANES * width);
  plan->block = FOLD_THREADS;
  plan->shared_bytes = static_cast<int>(shared_bytes);
  return true;
}

}  // namespace pool
}  // namespace visionllm

#ifdef __CUDACC__
// dtype: 0 fp32, 1 fp16, 2 bf16. Pointers in the order of spec.py. Returns a cudaError_t.
inline int visionllm_pool_enqueue(int dtype, const void* const* inputs, void* const* outputs,
                                  long long images, long long grid_height, long long grid_width,
                                  long long channels, long long regions, long long height,
                                  long long width, cudaStream_t stream) {
  const long long sizes[] = {images, grid_height, grid_width, channels, regions, height, width};
  const bool aligned = visionllm::aligned_16(inputs, 3) && visionllm::aligned_16(outputs, 1);
  visionllm::LaunchPlan plan;
  if (!visionllm::pool::make_plan(dtype, aligned, sizes, &plan)) return visionllm::INVALID_VALUE;
  return visionllm::run(plan, inputs, 3, outputs, 1, stream);
}
#endif

#endif  // VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_LAUNCH_CUH

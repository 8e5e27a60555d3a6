// From sizes to one launch of deformable attention, for C++ hosts: the twin of cuda.py.
#ifndef VISIONLLM_EDGE_MS_DEFORM_ATTN_LAUNCH_CUH
#define VISIONLLM_EDGE_MS_DEFORM_ATTN_LAUNCH_CUH

#include "../cuda/launch.cuh"
#include "kernel.cuh"

namespace visionllm {
namespace msda {

// sizes: batch, pixels, heads, depth, levels, queries, points. False where the kernel cannot count
// a size, or the type is unknown.
inline bool make_plan(int dtype, bool aligned, const long long* sizes, LaunchPlan* plan) {
  const int bytes = element_bytes(dtype);
  if (bytes == 0 || !set_scalars(plan, sizes, 7)) return false;
  const long long batch = sizes[0], pixels = sizes[1], heads = sizes[2], depth = sizes[3];
  const long long levels = sizes[4], queries = sizes[5], points = sizes[6];
  if (batch > MAX_GRID_YZ || heads > MAX_GRID_YZ || levels * points > MAX_INT) return false;
  if (heads * depth > MAX_INT || pixels * (heads * depth) > MAX_INT) return false;
  const bool vector = aligned && depth * bytes % 16 == 0;
  const long long chunks = vector ? depth * bytes / 16 : depth;
  const long long lanes = chunks < 1 ? 1 : chunks < THREADS ? chunks : THREADS;
  const long long rows = THREADS / lanes < ROWS ? THREADS / lanes : ROWS;
  if (vector) {
    VISIONLLM_CHOOSE_TYPE(plan, dtype, msda, vec);
  } else {
    VISIONLLM_CHOOSE_TYPE(plan, dtype, msda, any);
  }
  plan->grid[0] = depth > 0 ? ceil_div(queries, rows) : 0;
  plan->grid[1] = heads;
  plan->grid[2] = batch;
  plan->block = static_cast<int>(lanes * rows);
  plan->shared_bytes = 0;
  return true;
}

}  // namespace msda
}  // namespace visionllm

#ifdef __CUDACC__
// dtype: 0 fp32, 1 fp16, 2 bf16. Pointers in the order of spec.py. Returns a cudaError_t.
inline int visionllm_msda_enqueue(int dtype, const void* const* inputs, void* const* outputs,
                                  long long batch, long long pixels, long long heads,
                                  long long depth, long long levels, long long queries,
                                  long long points, cudaStream_t stream) {
  const long long sizes[] = {batch, pixels, heads, depth, levels, queries, points};
  const bool aligned = visionllm::aligned_16(inputs, 5) && visionllm::aligned_16(outputs, 1);
  visionllm::LaunchPlan plan;
  if (!visionllm::msda::make_plan(dtype, aligned, sizes, &plan)) return visionllm::INVALID_VALUE;
  return visionllm::run(plan, inputs, 5, outputs, 1, stream);
}
#endif

#endif  // VISIONLLM_EDGE_MS_DEFORM_ATTN_LAUNCH_CUH

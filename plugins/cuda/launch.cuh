// One kernel launch as a record, for C++ hosts: the twin of launch.py.
//
// plugins/<op>/launch.cuh fills a plan from sizes; `run` hands it to the CUDA runtime. Nothing here
// allocates or synchronises, so that a launch can be captured into a CUDA graph.
#ifndef VISIONLLM_EDGE_CUDA_LAUNCH_CUH
#define VISIONLLM_EDGE_CUDA_LAUNCH_CUH

#include <cstdint>

namespace visionllm {

enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

constexpr long long MAX_INT = 2147483647LL;
constexpr long long MAX_GRID_YZ = 65535;
constexpr long long MAX_SHARED_BYTES = 48 * 1024;
constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
constexpr int MAX_SCALARS = 8;

struct LaunchPlan {
  const char* name;
  const void* kernel;
  long long grid[3];
  int block;
  int shared_bytes;
  int scalars[MAX_SCALARS];
  int scalar_count;
};

inline long long ceil_div(long long size, long long step) { return (size + step - 1) / step; }

// Bytes of an element; 0 for an unknown type.
inline int element_bytes(int dtype) {
  return dtype == FLOAT32 ? 4 : dtype == FLOAT16 || dtype == BFLOAT16 ? 2 : 0;
}

inline bool aligned_16(const void* const* pointers, int count) {
  for (int i = 0; i < count; ++i) {
    if (reinterpret_cast<std::uintptr_t>(pointers[i]) % 16 != 0) return false;
  }
  return true;
}

// Keeps the sizes as the kernel's int arguments; false where one is negative or does not fit.
inline bool set_scalars(LaunchPlan* plan, const long long* sizes, int count) {
  plan->scalar_count = count;
  for (int i = 0; i < count; ++i) {
    if (sizes[i] < 0 || sizes[i] > MAX_INT) return false;
    plan->scalars[i] = static_cast<int>(sizes[i]);
  }
  return true;
}

#ifdef __CUDACC__
// Returns a cudaError_t; 0 is success, also where there is nothing to launch.
inline int run(const LaunchPlan& plan, const void* const* inputs, int input_count,
               void* const* outputs, int output_count, cudaStream_t stream) {
  if (plan.grid[0] == 0 || plan.grid[1] == 0 || plan.grid[2] == 0) return 0;
  constexpr int MAX_POINTERS = 16;
  if (input_count + output_count > MAX_POINTERS) return INVALID_VALUE;
  const void* pointers[MAX_POINTERS];
  void* arguments[MAX_POINTERS + MAX_SCALARS];
  int count = 0;
  for (int i = 0; i < input_count; ++i, ++count) pointers[count] = inputs[i];
  for (int i = 0; i < output_count; ++i, ++count) pointers[count] = outputs[i];
  for (int i = 0; i < count; ++i) arguments[i] = &pointers[i];
  int scalars[MAX_SCALARS];
  for (int i = 0; i < plan.scalar_count; ++i) {
    scalars[i] = plan.scalars[i];
    arguments[count + i] = &scalars[i];
  }
  const dim3 grid(static_cast<unsigned>(plan.grid[0]), static_cast<unsigned>(plan.grid[1]),
                  static_cast<unsigned>(plan.grid[2]));
  return static_cast<int>(cudaLaunchKernel(plan.kernel, grid, dim3(plan.block), arguments,
                                           static_cast<size_t>(plan.shared_bytes), stream));
}
#endif

}  // namespace visionllm

#define VISIONLLM_CHOOSE(PLAN, KERNEL)                        \
  do {                                                        \
    (PLAN)->name = #KERNEL;                                   \
    (PLAN)->kernel = reinterpret_cast<const void*>(&KERNEL);  \
  } while (0)

// Chooses PREFIX_<type>_SUFFIX by the type's number.
#define VISIONLLM_CHOOSE_TYPE(PLAN, DTYPE, PREFIX, SUFFIX)                                  \
  do {                                                                                      \
    if ((DTYPE) == visionllm::FLOAT32) VISIONLLM_CHOOSE(PLAN, PREFIX##_f32_##SUFFIX);       \
    if ((DTYPE) == visionllm::FLOAT16) VISIONLLM_CHOOSE(PLAN, PREFIX##_f16_##SUFFIX);       \
    if ((DTYPE) == visionllm::BFLOAT16) VISIONLLM_CHOOSE(PLAN, PREFIX##_bf16_##SUFFIX);     \
  } while (0)

#endif  // VISIONLLM_EDGE_CUDA_LAUNCH_CUH

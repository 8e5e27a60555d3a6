// Multi-scale deformable attention on CUDA. Raw pointers; shapes in spec.py.
//
// Versions, all with fp32 locations and fp32 sums:
//   naive  one thread per output element, the definition written down. The control.
//   any    the staged form with one element per thread: every depth and alignment.
//   vec    the staged form with 16 bytes per thread: depth * sizeof(T) a multiple of 16, pointers
//          aligned to 16 bytes.
//
// The staged form: a block owns one head and up to 32 queries in a row. Neighbouring queries of one
// head sample neighbouring pixels, so that the block's gathers share cache lines. First the block
// turns locations and attention weights, read once and coalesced, into four corner weights and four
// offsets per sample in shared memory. Then every thread walks the samples of its query and sums its
// channels. A corner outside the level gets weight 0 and the offset of a pixel inside, so that no
// thread branches around a load. Values are finite, and every level holds at least one pixel.
#ifndef VISIONLLM_EDGE_MS_DEFORM_ATTN_KERNEL_CUH
#define VISIONLLM_EDGE_MS_DEFORM_ATTN_KERNEL_CUH

#include "../cuda/common.cuh"

namespace visionllm {
namespace msda {

constexpr int THREADS = 128;  // at most, per block
constexpr int ROWS = 32;      // queries per block, at most
constexpr int TILE = 16;      // samples staged at a time: 4 levels x 4 points in one go
constexpr int STAGED = 4;     // samples a thread stages together: all it has at 4 lanes a query
constexpr int IN_FLIGHT = 2;  // samples whose 8 loads are issued together; divides TILE

// One sample as it lies in memory.
struct Sample {
  float x, y, weight;
  int height, width, start;
};

template <bool ALIGNED, typename T>
__device__ __forceinline__ Sample load_sample(const int* __restrict__ spatial_shapes,
                                              const int* __restrict__ level_start,
                                              const float* __restrict__ location,
                                              const T* __restrict__ weight, int level) {
  Sample sample;
  if (ALIGNED) {
    const float2 pair = __ldg(reinterpret_cast<const float2*>(location));
    sample.x = pair.x;
    sample.y = pair.y;
  } else {
    sample.x = __ldg(location);
    sample.y = __ldg(location + 1);
  }
  sample.weight = to_float(*weight);
  sample.height = __ldg(spatial_shapes + 2 * level);
  sample.width = __ldg(spatial_shapes + 2 * level + 1);
  sample.start = __ldg(level_start + level);
  return sample;
}

// The four corners' weights and offsets, in the order upper left, upper right, lower left, lower
// right. Offsets count elements from channel 0 of the head in pixel 0 of the image.
__device__ __forceinline__ void corners_of(const Sample& sample, int pitch, float4* shares,
                                           int4* offsets) {
  // Pixel centres are whole numbers.
  const float x = sample.x * static_cast<float>(sample.width) - 0.5f;
  const float y = sample.y * static_cast<float>(sample.height) - 0.5f;
  // False for NaN too. Without a corner inside, nothing below may depend on x and y: 0 * inf is NaN.
  const bool touches = x > -1.0f && y > -1.0f && x < sample.width && y < sample.height;
  if (!touches) {
    *shares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *offsets = make_int4(0, 0, 0, 0);
    return;
  }
  const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
  const int right = left + 1, bottom = top + 1;
  const float right_share = x - static_cast<float>(left);
  const float bottom_share = y - static_cast<float>(top);
  const float share_top = top >= 0 ? sample.weight * (1.0f - bottom_share) : 0.0f;
  const float share_bottom = bottom < sample.height ? sample.weight * bottom_share : 0.0f;
  const float share_left = left >= 0 ? 1.0f - right_share : 0.0f;
  const float share_right = right < sample.width ? right_share : 0.0f;
  *shares = make_float4(share_top * share_left, share_top * share_right, share_bottom * share_left,
                        share_bottom * share_right);
  const int row_top = sample.start + max(top, 0) * sample.width;
  const int row_bottom = sample.start + min(bottom, sample.height - 1) * sample.width;
  const int column_left = max(left, 0), column_right = min(right, sample.width - 1);
  *offsets = make_int4((row_top + column_left) * pitch, (row_top + column_right) * pitch,
                       (row_bottom + column_left) * pitch, (row_bottom + column_right) * pitch);
}

template <typename T, typename Access>
__device__ __forceinline__ void staged(const T* __restrict__ value,
                                       const int* __restrict__ spatial_shapes,
                                       const int* __restrict__ level_start,
                                       const float* __restrict__ locations,
                                       const T* __restrict__ weights, T* __restrict__ out,
                                       int pixels, int heads, int depth, int levels, int queries,
                                       int points) {
  constexpr int WIDTH = Access::WIDTH;
  // An odd pitch (in 16-byte units) keeps staging and reading free of bank conflicts.
  __shared__ float4 shares[TILE * (ROWS + 1)];
  __shared__ int4 offsets[TILE * (ROWS + 1)];
  const int chunks = depth / WIDTH;
  const int lanes = min(chunks, THREADS);
  const int rows = static_cast<int>(blockDim.x) / lanes;
  const int row = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int stage_pitch = rows | 1;
  const int head = blockIdx.y, image = blockIdx.z;
  const int first_query = static_cast<int>(blockIdx.x) * rows;
  const int samples = levels * points;
  const int pitch = heads * depth;
  const bool active = first_query + row < queries;
  const T* plane = value + static_cast<size_t>(image) * pixels * pitch + head * depth;
  const size_t image_query = static_cast<size_t>(image) * queries + first_query;

  for (int first_chunk = 0; first_chunk < chunks; first_chunk += lanes) {
    const int chunk = first_chunk + lane;
    const bool writes = active && chunk < chunks;
    float sum[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] = 0.0f;

    for (int first = 0; first < samples; first += TILE) {
      if (first + first_chunk > 0) __syncthreads();  // the tile before is still being read
      for (int round = threadIdx.x; round < rows * TILE; round += STAGED * blockDim.x) {
        // All loads of a round first: the block waits for memory once, not once per sample.
        Sample loaded[STAGED];
#pragma unroll
        for (int i = 0; i < STAGED; ++i) {
          const int at = round + i * blockDim.x, at_row = at / TILE, sample = first + at % TILE;
          loaded[i].x = loaded[i].y = -1.0f;  // outside every level: no corner counts
          loaded[i].height = loaded[i].width = 1;
          if (at_row < rows && first_query + at_row < queries && sample < samples) {
            const size_t from = ((image_query + at_row) * heads + head) * samples + sample;
            const int level = points == 4 ? sample >> 2 : sample / points;
            loaded[i] = load_sample<(WIDTH > 1)>(spatial_shapes, level_start,
                                                 locations + 2 * from, weights + from, level);
          }
        }
#pragma unroll
        for (int i = 0; i < STAGED; ++i) {
          const int at = round + i * blockDim.x, at_row = at / TILE;
          const int slot = at % TILE * stage_pitch + at_row;
          if (at_row < rows) corners_of(loaded[i], pitch, shares + slot, offsets + slot);
        }
      }
      __syncthreads();
      if (writes) {
        const T* from = plane + chunk * WIDTH;
        const int end = min(TILE, samples - first);
        // The last round may pass `end`: those samples are staged with weight 0.
        for (int at = 0; at < end; at += IN_FLIGHT) {
          typename Access::Raw corners[IN_FLIGHT][4];
#pragma unroll
          for (int i = 0; i < IN_FLIGHT; ++i) {
            const int4 offset = offsets[(at + i) * stage_pitch + row];
            corners[i][0] = Access::load(from + offset.x);
            corners[i][1] = Access::load(from + offset.y);
            corners[i][2] = Access::load(from + offset.z);
            corners[i][3] = Access::load(from + offset.w);
          }
#pragma unroll
          for (int i = 0; i < IN_FLIGHT; ++i) {
            const float4 share = shares[(at + i) * stage_pitch + row];
            Access::add_scaled(corners[i][0], share.x, sum);
            Access::add_scaled(corners[i][1], share.y, sum);
            Access::add_scaled(corners[i][2], share.z, sum);
            Access::add_scaled(corners[i][3], share.w, sum);
          }
        }
      }
    }
    if (writes) {
      const size_t to = ((image_query + row) * heads + head) * depth + chunk * WIDTH;
      Access::store(sum, out + to);
    }
  }
}

template <typename T>
__device__ __forceinline__ void naive(const T* __restrict__ value,
                                      const int* __restrict__ spatial_shapes,
                                      const int* __restrict__ level_start,
                                      const float* __restrict__ locations,
                                      const T* __restrict__ weights, T* __restrict__ out, int batch,
                                      int pixels, int heads, int depth, int levels, int queries,
                                      int points) {
  const size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<size_t>(batch) * queries * heads * depth) return;
  const size_t query_head = index / depth;  // (image * queries + query) * heads + head
  const size_t image = query_head / heads / queries;
  const size_t channel = query_head % heads * depth + index % depth;
  float sum = 0.0f;
  for (int level = 0; level < levels; ++level) {
    const int height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    const T* plane = value + (image * pixels + level_start[level]) * heads * depth + channel;
    for (int point = 0; point < points; ++point) {
      const size_t from = (query_head * levels + level) * points + point;
      const float x = locations[2 * from] * static_cast<float>(width) - 0.5f;
      const float y = locations[2 * from + 1] * static_cast<float>(height) - 0.5f;
      if (!(x > -1.0f && y > -1.0f && x < width && y < height)) continue;
      const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
      for (int row = max(top, 0); row <= min(top + 1, height - 1); ++row) {
        for (int column = max(left, 0); column <= min(left + 1, width - 1); ++column) {
          const float share = (1.0f - fabsf(x - static_cast<float>(column))) *
                              (1.0f - fabsf(y - static_cast<float>(row)));
          const size_t pixel = static_cast<size_t>(row) * width + column;
          sum += to_float(weights[from]) * share * to_float(plane[pixel * heads * depth]);
        }
      }
    }
  }
  from_float(sum, out + index);
}

}  // namespace msda
}  // namespace visionllm

#define VISIONLLM_MSDA_PARAMETERS(T)                                                             \
  const T *__restrict__ value, const int *__restrict__ spatial_shapes,                           \
      const int *__restrict__ level_start, const float *__restrict__ locations,                  \
      const T *__restrict__ weights, T *__restrict__ out, int batch, int pixels, int heads,      \
      int depth, int levels, int queries, int points

#define VISIONLLM_MSDA_KERNELS(NAME, T)                                                          \
  extern "C" __global__ void __launch_bounds__(128, 6)                                           \
      msda_##NAME##_vec(VISIONLLM_MSDA_PARAMETERS(T)) {                                          \
    visionllm::msda::staged<T, visionllm::Vector<T> >(value, spatial_shapes, level_start,        \
                                                      locations, weights, out, pixels, heads,    \
                                                      depth, levels, queries, points);           \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(128, 6)                                           \
      msda_##NAME##_any(VISIONLLM_MSDA_PARAMETERS(T)) {                                          \
    visionllm::msda::staged<T, visionllm::Scalar<T> >(value, spatial_shapes, level_start,        \
                                                      locations, weights, out, pixels, heads,    \
                                                      depth, levels, queries, points);           \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(128, 6)                                           \
      msda_##NAME##_naive(VISIONLLM_MSDA_PARAMETERS(T)) {                                        \
    visionllm::msda::naive<T>(value, spatial_shapes, level_start, locations, weights, out, batch, \
                              pixels, heads, depth, levels, queries, points);                    \
  }

VISIONLLM_MSDA_KERNELS(f32, float)
VISIONLLM_MSDA_KERNELS(f16, visionllm::f16)
VISIONLLM_MSDA_KERNELS(bf16, visionllm::bf16)

#endif  // VISIONLLM_EDGE_MS_DEFORM_ATTN_KERNEL_CUH

// Pooling of a feature map over the foreground of a mask, on CUDA. Raw pointers; shapes in spec.py.
//
// Versions, all with fp32 sums:
//   naive     one thread per output element walks all mask pixels: the definition. The control.
//   sampled   a block per region and 32 channels; eight warps share the mask pixels.
//   fold_any  the exact fold (below), one channel per thread: every channel count and alignment.
//   fold_vec  the exact fold, 16 bytes per thread: channels * sizeof(T) a multiple of 16, pointers
//             aligned to 16 bytes.
//
// The fold: a point lies between four cell centres, and which four depends only on the interval of
// its row and of its column. So each pair of intervals sums, over its own mask pixels, the four
// products of distances (exact integers along x); a cell's weight is one of the four sums of each of
// the four pairs around it. Then the result is a weighted sum of cells: no sampling, every mask
// pixel is read once per block, and cells without weight are never read.
#ifndef VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_KERNEL_CUH
#define VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_KERNEL_CUH

#include "../cuda/common.cuh"

namespace visionllm {
namespace pool {

constexpr int LANES = 16;                      // neighbouring threads on neighbouring channels
constexpr int GROUPS = 40;                     // groups of lanes that share the cells
constexpr int FOLD_THREADS = LANES * GROUPS;   // 640: one round over the 25 x 25 pairs of 24 x 24
constexpr int LINES = 4;                       // mask lines a thread reads at a time
constexpr int CELLS = 4;                       // cells whose loads are issued together
constexpr int SAMPLE_LANES = 32, SAMPLE_GROUPS = 8;

// First pixel whose point has cell `cell` as its lower neighbour (cell counts from -1): the smallest
// p with p * cells / pixels - 0.5 >= cell.
__device__ __forceinline__ int interval_begin(int cell, int cells, int pixels) {
  const int numerator = pixels * (2 * cell + 1);
  return numerator <= 0 ? 0 : min((numerator + 2 * cells - 1) / (2 * cells), pixels);
}

template <typename T, typename Access>
__device__ __forceinline__ void fold(const T* __restrict__ features,
                                     const float* __restrict__ masks,
                                     const int* __restrict__ region_image, T* __restrict__ pooled,
                                     int images, int grid_height, int grid_width, int channels,
                                     int height, int width) {
  constexpr int WIDTH = Access::WIDTH;
  VISIONLLM_DYNAMIC_SHARED(float4, shared);
  __shared__ int count;
  const int thread = threadIdx.x, region = blockIdx.y;
  const int pairs_x = grid_width + 1, pairs = (grid_height + 1) * pairs_x;
  const int cells = grid_height * grid_width;
  // sums: per pair the shares of the upper left, upper right, lower left, lower right cell. Later
  // the same memory holds the partial results of the groups.
  float4* sums = shared;
  float* partial = reinterpret_cast<float*>(shared);
  const int sums_size = max(pairs, FOLD_THREADS * WIDTH / 4);
  float* weights = reinterpret_cast<float*>(shared + sums_size);
  const float* mask = masks + static_cast<size_t>(region) * height * width;

  if (thread == 0) count = 0;
  __syncthreads();
  for (int pair = thread; pair < pairs; pair += FOLD_THREADS) {
    const int cell_y = pair / pairs_x - 1, cell_x = pair % pairs_x - 1;
    const int begin_x = interval_begin(cell_x, grid_width, width);
    const int end_x = interval_begin(cell_x + 1, grid_width, width);
    const int begin_y = interval_begin(cell_y, grid_height, height);
    const int end_y = interval_begin(cell_y + 1, grid_height, height);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int found = 0;
    for (int first = begin_y; first < end_y; first += LINES) {
      const float* lines[LINES];
      int in_line[LINES], right[LINES];
#pragma unroll
      for (int i = 0; i < LINES; ++i) {
        lines[i] = mask + static_cast<size_t>(min(first + i, end_y - 1)) * width;
        in_line[i] = right[i] = 0;
      }
      // Distance from the left cell in units of 1 / (2 * width), a whole number.
      int distance = 2 * begin_x * grid_width - width - 2 * width * cell_x;
#pragma unroll 2
      for (int x = begin_x; x < end_x; ++x, distance += 2 * grid_width) {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
          const int foreground = __ldg(lines[i] + x) != 0.0f;
          in_line[i] += foreground;
          right[i] += foreground * distance;
        }
      }
#pragma unroll
      for (int i = 0; i < LINES; ++i) {
        if (first + i >= end_y) break;  // the last line was read again
        const float left_sum = static_cast<float>(in_line[i] * 2 * width - right[i]);
        const float right_sum = static_cast<float>(right[i]);
        const int down = 2 * (first + i) * grid_height - height - 2 * height * cell_y;
        const float low = static_cast<float>(down) / static_cast<float>(2 * height);
        const float high = static_cast<float>(2 * height - down) / static_cast<float>(2 * height);
        sum.x += high * left_sum;
        sum.y += high * right_sum;
        sum.z += low * left_sum;
        sum.w += low * right_sum;
        found += in_line[i];
      }
    }
    sums[pair] = sum;
    if (found > 0) atomicAdd(&count, found);  // integers: the order does not matter
  }
  __syncthreads();

  const int image = __ldg(region_image + region);
  const bool counts = count > 0 && image >= 0 && image < images;
  const float divisor = static_cast<float>(2 * width) * static_cast<float>(max(count, 1));
  for (int cell = thread; cell < cells; cell += FOLD_THREADS) {
    const int y = cell / grid_width, x = cell % grid_width;
    const float4* above = sums + y * pairs_x + x;
    const float4* below = above + pairs_x;
    const float total = (above[0].w + above[1].z) + (below[0].y + below[1].x);
    weights[cell] = counts ? total / divisor : 0.0f;
  }
  __syncthreads();

  const int lane = thread % LANES, group = thread / LANES;
  const int channel = (static_cast<int>(blockIdx.x) * LANES + lane) * WIDTH;
  float result[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) result[i] = 0.0f;
  if (counts && channel < channels) {
    const T* map = features + static_cast<size_t>(image) * cells * channels + channel;
    for (int first = group; first < cells; first += CELLS * GROUPS) {
      typename Access::Raw raw[CELLS];
      float share[CELLS];
#pragma unroll
      for (int i = 0; i < CELLS; ++i) {
        const int cell = first + i * GROUPS;
        share[i] = cell < cells ? weights[cell] : 0.0f;
        raw[i] = typename Access::Raw();
        if (share[i] != 0.0f) raw[i] = Access::load(map + static_cast<size_t>(cell) * channels);
      }
#pragma unroll
      for (int i = 0; i < CELLS; ++i) Access::add_scaled(raw[i], share[i], result);
    }
  }
  constexpr int BLOCK_CHANNELS = LANES * WIDTH;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) partial[group * BLOCK_CHANNELS + lane * WIDTH + i] = result[i];
  __syncthreads();
  const int out_channel = static_cast<int>(blockIdx.x) * BLOCK_CHANNELS + thread;
  if (thread < BLOCK_CHANNELS && out_channel < channels) {
    float total = 0.0f;
#pragma unroll 8
    for (int from = 0; from < GROUPS; ++from) total += partial[from * BLOCK_CHANNELS + thread];
    from_float(total, pooled + static_cast<size_t>(region) * channels + out_channel);
  }
}

// The map at one point, channel by channel: `map` points at the channel in cell 0.
template <typename T>
__device__ __forceinline__ float sample(const T* map, int row, int column, int grid_height,
                                        int grid_width, int channels, int height, int width) {
  const float y = static_cast<float>(row * grid_height) / static_cast<float>(height) - 0.5f;
  const float x = static_cast<float>(column * grid_width) / static_cast<float>(width) - 0.5f;
  const int top = static_cast<int>(floorf(y)), left = static_cast<int>(floorf(x));
  float sum = 0.0f;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int cell_y = top + corner / 2, cell_x = left + corner % 2;
    if (cell_y < 0 || cell_y >= grid_height || cell_x < 0 || cell_x >= grid_width) continue;
    const float share = (1.0f - fabsf(y - static_cast<float>(cell_y))) *
                        (1.0f - fabsf(x - static_cast<float>(cell_x)));
    const size_t cell = static_cast<size_t>(cell_y) * grid_width + cell_x;
    sum += share * to_float(map[cell * channels]);
  }
  return sum;
}

template <typename T>
__device__ __forceinline__ void sampled(const T* __restrict__ features,
                                        const float* __restrict__ masks,
                                        const int* __restrict__ region_image,
                                        T* __restrict__ pooled, int images, int grid_height,
                                        int grid_width, int channels, int height, int width) {
  __shared__ float partial[SAMPLE_GROUPS][SAMPLE_LANES];
  __shared__ int found[SAMPLE_GROUPS];
  const int lane = static_cast<int>(threadIdx.x) % SAMPLE_LANES;
  const int group = static_cast<int>(threadIdx.x) / SAMPLE_LANES;
  const int channel = static_cast<int>(blockIdx.x) * SAMPLE_LANES + lane, region = blockIdx.y;
  const int image = __ldg(region_image + region);
  const bool known = image >= 0 && image < images;
  const float* mask = masks + static_cast<size_t>(region) * height * width;
  const size_t cells = static_cast<size_t>(grid_height) * grid_width;
  float sum = 0.0f;
  int count = 0;
  for (int pixel = group; known && pixel < height * width; pixel += SAMPLE_GROUPS) {
    if (__ldg(mask + pixel) == 0.0f) continue;  // the same for all threads of a warp
    ++count;
    if (channel < channels) {
      sum += sample(features + image * cells * channels + channel, pixel / width, pixel % width,
                    grid_height, grid_width, channels, height, width);
    }
  }
  partial[group][lane] = sum;
  if (lane == 0) found[group] = count;
  __syncthreads();
  if (group == 0 && channel < channels) {
    for (int from = 1; from < SAMPLE_GROUPS; ++from) {
      sum += partial[from][lane];
      count += found[from];
    }
    from_float(count > 0 ? sum / static_cast<float>(count) : 0.0f,
               pooled + static_cast<size_t>(region) * channels + channel);
  }
}

template <typename T>
__device__ __forceinline__ void naive(const T* __restrict__ features,
                                      const float* __restrict__ masks,
                                      const int* __restrict__ region_image, T* __restrict__ pooled,
                                      int images, int grid_height, int grid_width, int channels,
                                      int regions, int height, int width) {
  const size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<size_t>(regions) * channels) return;
  const size_t region = index / channels, channel = index % channels;
  const int image = region_image[region];
  float sum = 0.0f;
  int count = 0;
  if (image >= 0 && image < images) {
    const size_t map = static_cast<size_t>(image) * grid_height * grid_width * channels;
    for (int row = 0; row < height; ++row) {
      for (int column = 0; column < width; ++column) {
        if (masks[(region * height + row) * width + column] == 0.0f) continue;
        ++count;
        sum += sample(features + map + channel, row, column, grid_height, grid_width, channels,
                      height, width);
      }
    }
  }
  from_float(count > 0 ? sum / static_cast<float>(count) : 0.0f, pooled + index);
}

}  // namespace pool
}  // namespace visionllm

#define VISIONLLM_POOL_PARAMETERS(T)                                                             \
  const T *__restrict__ features, const float *__restrict__ masks,                               \
      const int *__restrict__ region_image, T *__restrict__ pooled, int images, int grid_height, \
      int grid_width, int channels, int regions, int height, int width

#define VISIONLLM_POOL_ARGUMENTS \
  features, masks, region_image, pooled, images, grid_height, grid_width, channels

#define VISIONLLM_POOL_KERNELS(NAME, T)                                                          \
  extern "C" __global__ void __launch_bounds__(640, 1)                                           \
      pool_##NAME##_fold_vec(VISIONLLM_POOL_PARAMETERS(T)) {                                     \
    visionllm::pool::fold<T, visionllm::Vector<T> >(VISIONLLM_POOL_ARGUMENTS, height, width);    \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(640, 1)                                           \
      pool_##NAME##_fold_any(VISIONLLM_POOL_PARAMETERS(T)) {                                     \
    visionllm::pool::fold<T, visionllm::Scalar<T> >(VISIONLLM_POOL_ARGUMENTS, height, width);    \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 4)                                           \
      pool_##NAME##_sampled(VISIONLLM_POOL_PARAMETERS(T)) {                                      \
    visionllm::pool::sampled<T>(VISIONLLM_POOL_ARGUMENTS, height, width);                        \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(128, 8)                                           \
      pool_##NAME##_naive(VISIONLLM_POOL_PARAMETERS(T)) {                                        \
    visionllm::pool::naive<T>(VISIONLLM_POOL_ARGUMENTS, regions, height, width);                 \
  }

VISIONLLM_POOL_KERNELS(f32, float)
VISIONLLM_POOL_KERNELS(f16, visionllm::f16)
VISIONLLM_POOL_KERNELS(bf16, visionllm::bf16)

#endif  // VISIONLLM_EDGE_GRID_SAMPLE_PROMPT_POOL_KERNEL_CUH

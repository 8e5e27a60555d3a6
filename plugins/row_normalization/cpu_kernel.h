// Normalisation of a row on a CPU: raw pointers, fp32 in and out. Knows nothing of ONNX Runtime and
// nothing of threads.
//
// Sums run in fp32 over blocks short enough that their rounding does not count, and in fp64 from
// block to block. The first of three passes finds the mean, the second the squares about it, the
// third writes; the row stays in the cache between them where it fits.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Writes y[i] = (x[i] - mean) / sqrt(variance + epsilon) * scale + bias for `count` numbers.
typedef void (*NormalizeRow)(
    const float* x, float* y, int64_t count, float scale, float bias, float epsilon);

}  // namespace visionllm::cpu

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {

constexpr int64_t kNormalizeChains = 4;
// Numbers of a block: each lane of each chain adds 32 of them, each addition off by half a unit in
// the last place at most. With 128 the portable set was wrong by 3e-6 of a standard deviation on a
// row of 108,800 numbers of which 64% are the same; with 32 it is as right as the others.
constexpr int64_t kNormalizeBlock = 32 * kNormalizeChains * VISIONLLM_LANES;

// The sum of x[i] - centre, or of its squares.
template <bool Squared>
VISIONLLM_INLINE double sum_about(const float* x, int64_t count, float centre) {
    constexpr int N = VISIONLLM_LANES;
    constexpr int64_t kStep = N * kNormalizeChains;
    typedef Lanes<N>::F F;
    double total = 0.0;
    for (int64_t from = 0; from < count; from += kNormalizeBlock) {
        const int64_t end = count - from < kNormalizeBlock ? count : from + kNormalizeBlock;
        F sums[kNormalizeChains] = {};
        int64_t i = from;
        for (; end - i >= kStep; i += kStep) {
            for (int64_t chain = 0; chain < kNormalizeChains; ++chain) {
                const F away = load_as<F>(x + i + chain * N) - centre;
                sums[chain] += Squared ? away * away : away;
            }
        }
        for (; i < end; ++i) {
            const double away = static_cast<double>(x[i]) - centre;
            total += Squared ? away * away : away;
        }
        for (int64_t chain = 0; chain < kNormalizeChains; ++chain) {
            for (int lane = 0; lane < N; ++lane) total += static_cast<double>(sums[chain][lane]);
        }
    }
    return total;
}

void normalize_row(
    const float* x, float* y, int64_t count, float scale, float bias, float epsilon) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    const double numbers = static_cast<double>(count);
    const float mean = static_cast<float>(sum_about<false>(x, count, 0.0f) / numbers);
    const double variance = sum_about<true>(x, count, mean) / numbers;
    const float gain = static_cast<float>(scale / __builtin_sqrt(variance + epsilon));
    int64_t i = 0;
    for (; count - i >= N; i += N) store_as<F>(y + i, (load_as<F>(x + i) - mean) * gain + bias);
    for (; i < count; ++i) y[i] = (x[i] - mean) * gain + bias;
}

}  // namespace
}  // namespace visionllm::cpu
#endif

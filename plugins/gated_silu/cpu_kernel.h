// The gate of an MLP on a CPU: raw pointers, fp32 inside. Knows nothing of ONNX Runtime and nothing
// of threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Writes y[i] = silu(gate[i]) * up[i] for `count` numbers of one row.
typedef void (*GatedSiluRow)(const void* gate, const void* up, void* y, int64_t count);

}  // namespace visionllm::cpu

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {

template <class T, int N>
VISIONLLM_INLINE void gate_lanes(
    const typename T::Storage* gate, const typename T::Storage* up, typename T::Storage* y) {
    typedef typename Lanes<N>::F F;
    const F x = T::template load<N>(gate);
    // exp(-|x|) is at most 1, so nothing overflows: x / (1 + e) above zero, x * e / (1 + e) below.
    constexpr float kLog2E = 1.44269504088896341f;
    const F fallen = choose<F>(x > F{}, -x, x) * kLog2E;
    const F e = attention::exp2_of<N>(fallen), one = broadcast<F>(1.0f);
    const F share = choose<F>(x > F{}, one, e) / (one + e);
    T::template store<N>(y, x * share * T::template load<N>(up));
}

template <class T>
void gated_silu_row(const void* gate, const void* up, void* y, int64_t count) {
    constexpr int N = VISIONLLM_LANES;
    typedef typename T::Storage S;
    const S* gates = static_cast<const S*>(gate);
    const S* ups = static_cast<const S*>(up);
    S* out = static_cast<S*>(y);
    int64_t i = 0;
    for (; count - i >= N; i += N) gate_lanes<T, N>(gates + i, ups + i, out + i);
    for (; i < count; ++i) gate_lanes<T, 1>(gates + i, ups + i, out + i);
}

}  // namespace
}  // namespace visionllm::cpu
#endif

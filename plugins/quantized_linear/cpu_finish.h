// What QuantizedDense does with a sum: bias, then activation. Included by cpu_kernel.h inside a
// kernel set; vectors.h and the exponential of cached attention are there.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

// exp(-x) for x >= 0.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F exp_of_minus(typename Lanes<N>::F x) {
    return attention::exp2_of<N>(x * -1.44269504088896341f);
}

// z * (1 + erf(z / sqrt(2))) / 2. The tail 1 - erf(u), u = |z| / sqrt(2), is a polynomial in
// 1 / (1 + 0.3275911 u) times exp(-u^2): Abramowitz and Stegun 7.1.26, off by at most 1.5e-7.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F gelu_of(typename Lanes<N>::F z) {
    typedef typename Lanes<N>::F F;
    const F one = broadcast<F>(1.0f);
    const F size = choose<F>(z > F{}, z, -z) * 0.707106781186547524f;
    const F t = one / (one + 0.3275911f * size);
    F tail = 1.061405429f * t + -1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t + -0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * exp_of_minus<N>(size * size) * 0.5f;
    return z * choose<F>(z > F{}, one - tail, tail);
}

// z / (1 + exp(-1.702 z)), written so that nothing overflows.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F quick_gelu_of(typename Lanes<N>::F z) {
    typedef typename Lanes<N>::F F;
    const F one = broadcast<F>(1.0f);
    const F fallen = exp_of_minus<N>(choose<F>(z > F{}, z, -z) * 1.702f);
    return z * choose<F>(z > F{}, one, fallen) / (one + fallen);
}

template <int N>
VISIONLLM_INLINE typename Lanes<N>::F activate(typename Lanes<N>::F z, Activation activation) {
    typedef typename Lanes<N>::F F;
    switch (activation) {
        case Activation::kGelu: return gelu_of<N>(z);
        case Activation::kQuickGelu: return quick_gelu_of<N>(z);
        case Activation::kRelu: return choose<F>(z < F{}, F{}, z);  // NaN stays
        default: return z;
    }
}

// Outputs from .. to - 1 of every row, in place.
void finish_outputs(const QuantizedLinear& call, int64_t from, int64_t to) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    for (int64_t row = 0; row < call.rows; ++row) {
        float* y = call.y + row * call.outputs;
        int64_t i = from;
        for (; to - i >= N; i += N) {
            const F z = load_as<F>(y + i) + load_as<F>(call.bias + i);
            store_as(y + i, activate<N>(z, call.activation));
        }
        for (; i < to; ++i) {
            const Lanes<1>::F z = {y[i] + call.bias[i]};
            y[i] = activate<1>(z, call.activation)[0];
        }
    }
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

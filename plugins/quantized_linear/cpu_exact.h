// Level 1: float32 activations. A few outputs' weights become floats, then ordinary dot products.
// Included by cpu_kernel.h inside a kernel set; vectors.h is there.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

constexpr int64_t kExactOutputs = 4;  // with four rows: 16 sums, what the registers hold
constexpr int64_t kExactBytes = 65536;

QuantizedLinearTasks exact_tasks(const QuantizedLinear& call) {
    const int64_t bytes = call.inputs * call.bits / 8;
    int64_t outputs = kExactOutputs;
    while (outputs * bytes < kExactBytes) outputs *= 2;
    return {outputs, static_cast<size_t>(kExactOutputs * call.inputs) * sizeof(float)};
}

// N bytes as whole numbers.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::I load_bytes(const uint8_t* from) {
    typename Lanes<N>::I out;
#if defined(VISIONLLM_F16C)
    if constexpr (N == 8) {
        out = reinterpret_cast<typename Lanes<N>::I>(
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
        return out;
    }
#endif
    for (int i = 0; i < N; ++i) out[i] = from[i];
    return out;
}

// One output's weights as floats: q times its block's scale.
VISIONLLM_INLINE void unpack_floats(const QuantizedLinear& call, int64_t output, float* to) {
    constexpr int N = VISIONLLM_LANES < 8 ? VISIONLLM_LANES : 8;  // the smallest block is 16
    typedef Lanes<N>::F F;
    typedef Lanes<N>::I I;
    const int64_t blocks = call.inputs / call.block;
    const uint8_t* from = call.weight + output * call.inputs * call.bits / 8;
    for (int64_t block = 0; block < blocks; ++block) {
        const float scale = Float16::widen(call.scales[output * blocks + block]);
        const int64_t bytes = call.block * call.bits / 8;
        for (int64_t i = 0; i < bytes; i += N, from += N) {
            const I stored = load_bytes<N>(from);
            if (call.bits == 8) {
                store_as(to, __builtin_convertvector(stored - 128, F) * scale);
                to += N;
                continue;
            }
            const F low = __builtin_convertvector((stored & 15) - 8, F) * scale;
            const F high = __builtin_convertvector((stored >> 4) - 8, F) * scale;
            join_pairs<N>(low, high, to);
            to += 2 * N;
        }
    }
}

template <int Rows>
VISIONLLM_INLINE void exact_rows(const QuantizedLinear& call, int64_t row, int64_t output,
    int64_t outputs, const float* weights) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    const float* x = call.x + row * call.inputs;
    F sums[Rows][kExactOutputs] = {};
    // Blocks are multiples of 16, so that whole vectors are all there is.
    for (int64_t k = 0; k < call.inputs; k += N) {
        F w[kExactOutputs];
        for (int o = 0; o < kExactOutputs; ++o) w[o] = load_as<F>(weights + o * call.inputs + k);
        for (int r = 0; r < Rows; ++r) {
            const F activations = load_as<F>(x + r * call.inputs + k);
            for (int o = 0; o < kExactOutputs; ++o) sums[r][o] += activations * w[o];
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int64_t o = 0; o < outputs; ++o) {
            float sum = 0;
            for (int lane = 0; lane < N; ++lane) sum += sums[r][o][lane];
            call.y[(row + r) * call.outputs + output + o] = sum;
        }
    }
}

void exact_task(const QuantizedLinear& call, int64_t from, int64_t to, void* room) {
    float* weights = static_cast<float*>(room);
    for (int64_t output = from; output < to; output += kExactOutputs) {
        const int64_t outputs = to - output < kExactOutputs ? to - output : kExactOutputs;
        for (int64_t o = 0; o < kExactOutputs; ++o) {
            // Past the end the last output stands in and is not written.
            const int64_t there = o < outputs ? o : outputs - 1;
            unpack_floats(call, output + there, weights + o * call.inputs);
        }
        int64_t row = 0;
        for (; call.rows - row >= 4; row += 4) exact_rows<4>(call, row, output, outputs, weights);
        for (; row < call.rows; ++row) exact_rows<1>(call, row, output, outputs, weights);
    }
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

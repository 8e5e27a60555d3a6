// Products of bfloat16 for full attention: one vdpbf16ps is two multiply-adds a lane, where fp32 has one.
// Neighbours in the sum share a float's place, the first in its low half. Included by
// kernels_avx512bf16.cpp after cpu_kernel.h.
#pragma once

namespace visionllm::cpu {
namespace {
namespace attention {

// The numbers of two vectors, rounded to nearest even, in the halves of one vector's places.
VISIONLLM_INLINE Vector in_halves(Vector low, Vector high) {
    const auto halves = [](Vector numbers) {
        return _mm512_maskz_cvtepu16_epi32(static_cast<__mmask16>(-1),
            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(numbers))));
    };
    return reinterpret_cast<Vector>(
        _mm512_or_si512(halves(low), _mm512_slli_epi32(halves(high), 16)));
}

VISIONLLM_INLINE float in_halves(float low, float high) {
    return float_of(BFloat16::narrow(low) | static_cast<uint32_t>(BFloat16::narrow(high)) << 16);
}

// Multiplies numbers rounded to bfloat16, and adds in fp32.
struct InBFloat16 {
    static constexpr int64_t kNumbers = 2;

    // GCC copies sums around the intrinsic.
    VISIONLLM_INLINE void add(Vector& sum, const float* row, Vector column) {
        const __m512i pair = _mm512_set1_epi32(load_as<int32_t>(row));
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(column), "v"(pair));
    }

    VISIONLLM_INLINE void store(float* row, int64_t at, Vector numbers) {
        const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(numbers));
        store_as(reinterpret_cast<uint16_t*>(row) + at, rounded);
    }

    VISIONLLM_INLINE void store_one(float* row, int64_t at, float number) {
        reinterpret_cast<uint16_t*>(row)[at] = BFloat16::narrow(number);
    }

    // Through `room`, where neighbours of a key are one place: [keys of a panel][pairs].
    static void pack_keys(const float* keys, int64_t stride, int64_t count, int64_t depth,
        float* panels, float* room) {
        const int64_t pairs = (depth + 1) / 2;
        for (int64_t first = 0; first < count; first += kPanel) {
            const int64_t some = count - first < kPanel ? count - first : kPanel;
            for (int64_t key = 0; key < some; ++key) {
                const float* from = keys + (first + key) * stride;
                uint16_t* to = reinterpret_cast<uint16_t*>(room + key * pairs);
                int64_t at = 0;
                for (; at + 16 <= depth; at += 16) {
                    store(room + key * pairs, at, load_as<Vector>(from + at));
                }
                for (; at < 2 * pairs; ++at) to[at] = at < depth ? BFloat16::narrow(from[at]) : 0;
            }
            attention::pack_keys<Float32>(room, pairs, some, pairs, panels + first * pairs);
        }
    }

    // Through `room`, where the same channel of two keys is one place: [pairs of keys][channels].
    static void pack_values(const float* values, int64_t stride, int64_t count, int64_t depth,
        float* panels, float* room) {
        const int64_t pairs = (count + 1) / 2;
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const float *low = values + 2 * pair * stride, *high = low + stride;
            const bool two = 2 * pair + 1 < count;
            float* to = room + pair * depth;
            int64_t at = 0;
            for (; at + 16 <= depth; at += 16) {
                const Vector second = two ? load_as<Vector>(high + at) : Vector{};
                store_as(to + at, in_halves(load_as<Vector>(low + at), second));
            }
            for (; at < depth; ++at) to[at] = in_halves(low[at], two ? high[at] : 0.0f);
        }
        attention::pack_values<Float32>(room, depth, pairs, depth, panels);
    }
};

}  // namespace attention
}  // namespace
}  // namespace visionllm::cpu

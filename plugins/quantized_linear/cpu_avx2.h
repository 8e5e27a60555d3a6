// Level 4 in AVX2: 32 stored numbers at a time, times the activations as bytes, summed as whole
// numbers per block. Products of bytes are added in pairs to 16 bits, which 15 * 127 * 2 fits but
// 255 * 127 * 2 does not: 8-bit weights are therefore made signed and their sign moves over to the
// activations. 4-bit weights go in as stored, 8 too large: a block's sum starts from
// what that adds, negative.
//
// Room: [rows][K] numbers, of every 32 (4 bits) the even inputs before the odd ones; then per row
// K/G scales and K/G starts, -8 times the sum of the block's numbers.
#pragma once

#include "cpu_portable.h"

namespace visionllm::cpu::quantized_linear {
namespace {

constexpr int kAvx2Rows = 4;

struct Avx2Room {
    int8_t* numbers;
    float* scales;
    int32_t* starts;
    Avx2Room(const QuantizedLinear& call, int64_t row) {
        const int64_t blocks = call.inputs / call.block;
        int8_t* start = static_cast<int8_t*>(call.room);
        numbers = start + row * call.inputs;
        scales = reinterpret_cast<float*>(start + call.rows * call.inputs) + row * 2 * blocks;
        starts = reinterpret_cast<int32_t*>(scales + blocks);
    }
};

size_t avx2_room_bytes(const QuantizedLinear& call) {
    if (call.block == 16) return portable_room_bytes(call);
    return static_cast<size_t>(call.rows * (call.inputs + call.inputs / call.block * 8));
}

VISIONLLM_INLINE __m256i avx2_load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

VISIONLLM_INLINE float avx2_sum(__m256 lanes) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// 32 numbers at a time; even inputs first if they meet 4-bit weights.
VISIONLLM_INLINE int32_t avx2_round_block(
    const float* x, int64_t block, bool split, int8_t* numbers, float* scale) {
    __m256 most = _mm256_setzero_ps();
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t i = 0; i < block; i += 8) {
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    }
    float largest = 0;
    for (int lane = 0; lane < 8; ++lane) largest = most[lane] > largest ? most[lane] : largest;
    const __m256 inverse = _mm256_set1_ps(largest < kSmallest ? 0.0f : 127.0f / largest);
    *scale = largest * kOver127;
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i apart = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    __m256i sum = _mm256_setzero_si256();
    for (int64_t i = 0; i < block; i += 32) {
        __m256i whole[4];
        for (int j = 0; j < 4; ++j) {
            whole[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inverse));
            sum = _mm256_add_epi32(sum, whole[j]);
        }
        __m256i bytes = _mm256_packs_epi16(
            _mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, order);
        if (split) {
            bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, apart), 0xd8);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i), bytes);
    }
    int32_t total = 0;
    for (int lane = 0; lane < 8; ++lane) total += load_as<Lanes<8>::I>(&sum)[lane];
    return total;
}

void avx2_round_rows(const QuantizedLinear& call, int64_t from, int64_t to) {
    if (call.block == 16) return portable_round_rows(call, from, to);
    for (int64_t row = from; row < to; ++row) {
        const Avx2Room room(call, row);
        for (int64_t block = 0; block < call.inputs / call.block; ++block) {
            const int64_t at = block * call.block;
            const int32_t sum = avx2_round_block(call.x + row * call.inputs + at, call.block,
                call.bits == 4, room.numbers + at, room.scales + block);
            room.starts[block] = call.bits == 4 ? -8 * sum : 0;
        }
    }
}

QuantizedLinearTasks avx2_rounded_tasks(const QuantizedLinear& call) {
    return portable_rounded_tasks(call);
}

template <int Bits, int Rows>
void avx2_rows(const QuantizedLinear& call, int64_t output, int64_t row) {
    const int64_t blocks = call.inputs / call.block;
    const uint8_t* weight = call.weight + output * call.inputs * Bits / 8;
    const uint16_t* scales = call.scales + output * blocks;
    const Avx2Room first(call, row);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sums[Rows] = {};
    for (int64_t block = 0; block < blocks; ++block) {
        __m256i whole[Rows];
        for (int r = 0; r < Rows; ++r) {
            const int32_t start = first.starts[r * 2 * blocks + block];
            whole[r] = _mm256_zextsi128_si256(_mm_cvtsi32_si128(start));
        }
        for (int64_t i = block * call.block; i < (block + 1) * call.block; i += 32) {
            __m256i stored;
            if constexpr (Bits == 4) {
                const __m128i packed =
                    _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i / 2));
                stored = _mm256_inserti128_si256(
                    _mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
                stored = _mm256_and_si256(stored, _mm256_set1_epi8(15));
            } else {
                stored = _mm256_xor_si256(avx2_load(weight + i), _mm256_set1_epi8(-128));
            }
            for (int r = 0; r < Rows; ++r) {
                const __m256i numbers = avx2_load(first.numbers + r * call.inputs + i);
                const __m256i pairs =
                    Bits == 4 ? _mm256_maddubs_epi16(stored, numbers)
                              : _mm256_maddubs_epi16(
                                    _mm256_abs_epi8(stored), _mm256_sign_epi8(numbers, stored));
                whole[r] = _mm256_add_epi32(whole[r], _mm256_madd_epi16(pairs, ones));
            }
        }
        const float scale = _cvtsh_ss(scales[block]);
        for (int r = 0; r < Rows; ++r) {
            const __m256 both = _mm256_set1_ps(scale * first.scales[r * 2 * blocks + block]);
            sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r]), both, sums[r]);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        call.y[(row + r) * call.outputs + output] = avx2_sum(sums[r]);
    }
}

template <int Bits>
void avx2_task(const QuantizedLinear& call, int64_t from, int64_t to) {
    for (int64_t output = from; output < to; ++output) {
        int64_t row = 0;
        for (; call.rows - row >= kAvx2Rows; row += kAvx2Rows) {
            avx2_rows<Bits, kAvx2Rows>(call, output, row);
        }
        for (; row < call.rows; ++row) avx2_rows<Bits, 1>(call, output, row);
    }
}

void avx2_rounded_task(const QuantizedLinear& call, int64_t from, int64_t to, void* room) {
    if (call.block == 16) return portable_rounded_task(call, from, to, room);
    call.bits == 4 ? avx2_task<4>(call, from, to) : avx2_task<8>(call, from, to);
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

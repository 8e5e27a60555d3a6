// Level 4 with AVX-512 VNNI: stored bytes go into vpdpbusd as they are, unsigned, times the signed
// activations; the stored numbers are 2^(bits-1) too large, so every sum starts at the block's
// activations times minus that. Two layouts of the rounded activations, by the number of rows:
//
// few rows (cpu_vnni_vector.h): weights stream through registers in chunks of 64 bytes, lanes run
//   along K. Activations: per row the chunks' numbers, their start sums per lane, the scales.
// many rows (cpu_vnni_matrix.h): lanes are outputs. Weights of 32 outputs by 512 inputs are turned
//   into tiles of 4 inputs by 16 outputs once for all rows. Activations: per stretch of 512 inputs
//   all rows' numbers, then all rows' start sums and scales per block.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

constexpr int64_t kFewRows = 5;       // measured: from 6 on the tiles are the faster way
constexpr int64_t kStretch = 512;     // 16 KB of tiles: they stay in the first-level cache
constexpr int64_t kPanel = 32;        // outputs of a tile: two vectors
constexpr int64_t kTileOutputs = 32;  // outputs of a task with many rows

VISIONLLM_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// 4 bits: 64 bytes hold 128 numbers, 8 bits: 64.
VISIONLLM_INLINE int64_t chunk_inputs(int bits) { return bits == 4 ? 128 : 64; }

// Where the parts of one row lie, few rows.
struct VectorRoom {
    int8_t* numbers;  // [chunks, 128 | 64]; 4 bits: of each chunk the even inputs, then the odd
    int32_t* starts;  // [chunks, 16]
    float* scales;    // [blocks, a multiple of 16]; zeros behind the last
    static size_t row_bytes(const QuantizedLinear& call) {
        const int64_t chunk = chunk_inputs(call.bits);
        const int64_t chunks = round_up(call.inputs, chunk) / chunk;
        const int64_t blocks = round_up(call.inputs / call.block, 16);
        return static_cast<size_t>(chunks * (chunk + 64) + blocks * 4);
    }
    VectorRoom() = default;
    VectorRoom(const QuantizedLinear& call, int64_t row) {
        const int64_t chunk = chunk_inputs(call.bits), padded = round_up(call.inputs, chunk);
        numbers = static_cast<int8_t*>(call.room) + static_cast<size_t>(row) * row_bytes(call);
        starts = reinterpret_cast<int32_t*>(numbers + padded);
        scales = reinterpret_cast<float*>(starts + padded / chunk * 16);
    }
};

// Where the parts of one stretch lie, many rows.
struct MatrixRoom {
    int8_t* numbers;  // [rows, 512]; 4 bits: of every 8 inputs the even four, then the odd four
    int32_t* starts;  // [rows, 512 / G]
    float* scales;    // [rows, 512 / G]
    static int64_t stretch_bytes(const QuantizedLinear& call) {
        return call.rows * (kStretch + kStretch / call.block * 8);
    }
    MatrixRoom(const QuantizedLinear& call, int64_t stretch) {
        numbers = static_cast<int8_t*>(call.room) + stretch * stretch_bytes(call);
        starts = reinterpret_cast<int32_t*>(numbers + call.rows * kStretch);
        scales = reinterpret_cast<float*>(starts + call.rows * (kStretch / call.block));
    }
};

size_t vnni_room_bytes(const QuantizedLinear& call) {
    if (call.rows <= kFewRows) return static_cast<size_t>(call.rows) * VectorRoom::row_bytes(call);
    const int64_t stretches = round_up(call.inputs, kStretch) / kStretch;
    return static_cast<size_t>(stretches * MatrixRoom::stretch_bytes(call));
}

// Rounds one block to numbers in their natural order; returns their sum.
VISIONLLM_INLINE int32_t round_block(
    const float* x, int64_t block, int8_t* numbers, float* scale) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t i = 0; i < block; i += 16) {
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(largest < kSmallest ? 0.0f : 127.0f / largest);
    *scale = largest * kOver127;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < block; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + i), _mm512_cvtepi32_epi8(whole));
    }
    return _mm512_reduce_add_epi32(sum);
}

// Few rows: chunks split into even and odd inputs, and the sum that each lane starts from.
VISIONLLM_INLINE void finish_chunks(const VectorRoom& room, int64_t padded, int bits) {
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    int32_t* starts = room.starts;
    if (bits == 8) {
        for (int64_t at = 0; at < padded; at += 64, starts += 16) {
            const __m512i numbers = _mm512_loadu_si512(room.numbers + at);
            const __m512i sum = _mm512_dpbusd_epi32(zero, ones, numbers);
            _mm512_storeu_si512(starts, _mm512_sub_epi32(zero, _mm512_slli_epi32(sum, 7)));
        }
        return;
    }
    for (int64_t at = 0; at < padded; at += 128, starts += 16) {
        const __m512i low = _mm512_loadu_si512(room.numbers + at);
        const __m512i high = _mm512_loadu_si512(room.numbers + at + 64);
        const __m512i even = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm512_cvtepi16_epi8(low)), _mm512_cvtepi16_epi8(high), 1);
        const __m512i odd = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16(low, 8))),
            _mm512_cvtepi16_epi8(_mm512_srli_epi16(high, 8)), 1);
        _mm512_storeu_si512(room.numbers + at, even);
        _mm512_storeu_si512(room.numbers + at + 64, odd);
        const __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, ones, even), ones, odd);
        _mm512_storeu_si512(starts, _mm512_sub_epi32(zero, _mm512_slli_epi32(sum, 3)));
    }
}

VISIONLLM_INLINE void round_vector_row(const QuantizedLinear& call, int64_t row) {
    const VectorRoom room(call, row);
    const float* x = call.x + row * call.inputs;
    const int64_t blocks = call.inputs / call.block;
    const int64_t padded = round_up(call.inputs, chunk_inputs(call.bits));
    for (int64_t b = 0; b < blocks; ++b) {
        round_block(x + b * call.block, call.block, room.numbers + b * call.block, room.scales + b);
    }
    for (int64_t b = blocks; b < round_up(blocks, 16); ++b) room.scales[b] = 0;
    for (int64_t k = call.inputs; k < padded; ++k) room.numbers[k] = 0;
    finish_chunks(room, padded, call.bits);
}

VISIONLLM_INLINE void round_matrix_row(const QuantizedLinear& call, int64_t row) {
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m512i order = _mm512_broadcast_i32x4(apart);
    const int64_t per_stretch = kStretch / call.block;
    for (int64_t first = 0, stretch = 0; first < call.inputs; first += kStretch, ++stretch) {
        const MatrixRoom room(call, stretch);
        const int64_t left = call.inputs - first < kStretch ? call.inputs - first : kStretch;
        int8_t* numbers = room.numbers + row * kStretch;
        for (int64_t b = 0; b < left / call.block; ++b) {
            const int32_t sum = round_block(call.x + row * call.inputs + first + b * call.block,
                call.block, numbers + b * call.block, room.scales + row * per_stretch + b);
            room.starts[row * per_stretch + b] = call.bits == 4 ? -8 * sum : -128 * sum;
        }
        if (call.bits == 8) continue;
        for (int64_t at = 0; at < left; at += 64) {
            const __m512i natural = _mm512_loadu_si512(numbers + at);
            _mm512_storeu_si512(numbers + at, _mm512_shuffle_epi8(natural, order));
        }
    }
}

void vnni_round_rows(const QuantizedLinear& call, int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) {
        if (call.rows <= kFewRows) {
            round_vector_row(call, row);
        } else {
            round_matrix_row(call, row);
        }
    }
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

#include "cpu_vnni_vector.h"
#include "cpu_vnni_matrix.h"

namespace visionllm::cpu::quantized_linear {
namespace {

QuantizedLinearTasks vnni_rounded_tasks(const QuantizedLinear& call) {
    if (call.rows <= kFewRows) return {vector_outputs(call), 0};
    return {kTileOutputs, matrix_task_bytes(call)};
}

// The tiles' last stretch has the sums in registers.
bool vnni_finishes(const QuantizedLinear& call) { return call.rows > kFewRows; }

void vnni_rounded_task(const QuantizedLinear& call, int64_t from, int64_t to, void* room) {
    if (call.rows <= kFewRows) {
        vector_task(call, from, to);
    } else {
        matrix_task(call, from, to, room);
    }
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

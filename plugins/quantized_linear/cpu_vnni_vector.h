// Few rows times the weights: bound by the memory the weights come from.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

// Bytes of weights in a task: long enough that handing it out costs little (about 4 us at the
// speed of memory), short enough that the last one does not keep the others waiting.
constexpr int64_t kVectorTaskBytes = 65536;
// Bytes that weights and scales are prefetched ahead, in the order they lie, into the second-level
// cache. Weights: 4 KB is too short, 8 to 24 KB are alike; the first-level cache takes too few.
constexpr int64_t kAhead = 16384, kScalesAhead = 2048;
// Outputs taken together share the activations' loads. One row is bound by memory, and reads it a
// fifth faster as one stream than as four.
constexpr int together(int rows) { return rows == 1 ? 1 : 2; }

int64_t vector_outputs(const QuantizedLinear& call) {
    const int64_t bytes = call.inputs * call.bits / 8;
    return round_up(kVectorTaskBytes / bytes + 1, 4);
}

// Without being told, GCC unrolls the loops over rows and outputs too late to keep the sums in
// registers: each addition then ends in a store.
#define VISIONLLM_UNROLL _Pragma("GCC unroll 8")

// 64 bytes of each output's weights (fewer behind the end of a row) times the rows. `scales` are
// those of 16 blocks, the weights' times the activations'; `lanes` says which belongs to a lane.
template <int Bits, int Rows, int Outputs>
VISIONLLM_INLINE void add_chunk(__m512 (&sums)[Outputs][Rows],
    const __m512 (&scales)[Outputs][Rows], const uint8_t* const (&weight)[Outputs], int64_t chunk,
    const VectorRoom* rooms, __m512i lanes, __mmask64 there) {
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i low[Outputs], high[Outputs];
    VISIONLLM_UNROLL
    for (int o = 0; o < Outputs; ++o) {
        low[o] = _mm512_maskz_loadu_epi8(there, weight[o] + chunk * 64);
        if (Bits == 8) continue;
        high[o] = _mm512_and_si512(_mm512_srli_epi16(low[o], 4), mask);
        low[o] = _mm512_and_si512(low[o], mask);
    }
    VISIONLLM_UNROLL
    for (int r = 0; r < Rows; ++r) {
        const int8_t* numbers = rooms[r].numbers + chunk * (Bits == 4 ? 128 : 64);
        const __m512i start = _mm512_loadu_si512(rooms[r].starts + chunk * 16);
        const __m512i first = _mm512_loadu_si512(numbers);
        const __m512i second = Bits == 4 ? _mm512_loadu_si512(numbers + 64) : first;
        VISIONLLM_UNROLL
        for (int o = 0; o < Outputs; ++o) {
            __m512i whole = _mm512_dpbusd_epi32(start, low[o], first);
            if (Bits == 4) whole = _mm512_dpbusd_epi32(whole, high[o], second);
            const __m512 scale = _mm512_permutexvar_ps(lanes, scales[o][r]);
            sums[o][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sums[o][r]);
        }
    }
}

template <int Bits, int Rows, int Outputs>
void vector_outputs_of(const QuantizedLinear& call, int64_t output, const VectorRoom* rooms) {
    constexpr int64_t kChunk = Bits == 4 ? 128 : 64, kLane = Bits == 4 ? 8 : 4;
    const int64_t row_bytes = call.inputs * Bits / 8, blocks = call.inputs / call.block;
    const int shift = __builtin_ctzll(static_cast<unsigned long long>(call.block));
    const __m512i lane_inputs = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(kLane)),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i step = _mm512_set1_epi32(static_cast<int>(kChunk));
    const int64_t per_group = 16 * call.block / kChunk;  // chunks that 16 blocks fill

    const uint8_t* weight[Outputs];
    __m512 sums[Outputs][Rows], scales[Outputs][Rows];
    VISIONLLM_UNROLL
    for (int o = 0; o < Outputs; ++o) {
        weight[o] = call.weight + (output + o) * row_bytes;
        VISIONLLM_UNROLL
        for (int r = 0; r < Rows; ++r) sums[o][r] = _mm512_setzero_ps();
    }
    const int64_t whole_chunks = row_bytes / 64, rest = row_bytes % 64;
    const __mmask64 all = ~__mmask64{0}, some = (__mmask64{1} << rest) - 1;
    int64_t chunk = 0;
    for (int64_t block = 0; block < blocks; block += 16) {
        const int64_t left = blocks - block;
        const __mmask16 there = static_cast<__mmask16>(left < 16 ? (1 << left) - 1 : 0xffff);
        VISIONLLM_UNROLL
        for (int o = 0; o < Outputs; ++o) {
            const uint16_t* halves = call.scales + (output + o) * blocks + block;
            _mm_prefetch(reinterpret_cast<const char*>(halves) + kScalesAhead, _MM_HINT_T1);
            const __m512 scale =
                _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(there, halves));
            VISIONLLM_UNROLL
            for (int r = 0; r < Rows; ++r) {
                scales[o][r] = _mm512_mul_ps(scale, _mm512_loadu_ps(rooms[r].scales + block));
            }
        }
        __m512i inputs = lane_inputs;  // of each lane, counted from the first of the 16 blocks
        const int64_t end = chunk + per_group < whole_chunks ? chunk + per_group : whole_chunks;
        for (; chunk < end; ++chunk) {
            const __m512i lanes = _mm512_srl_epi32(inputs, _mm_cvtsi32_si128(shift));
            VISIONLLM_UNROLL
            for (int o = 0; o < Outputs; ++o) {
                const uint8_t* next = weight[0] + (chunk * Outputs + o) * 64 + kAhead;
                _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
            }
            add_chunk<Bits, Rows, Outputs>(sums, scales, weight, chunk, rooms, lanes, all);
            inputs = _mm512_add_epi32(inputs, step);
        }
        if (left <= 16 && rest != 0) {
            const __m512i lanes = _mm512_srl_epi32(inputs, _mm_cvtsi32_si128(shift));
            add_chunk<Bits, Rows, Outputs>(sums, scales, weight, chunk, rooms, lanes, some);
        }
    }
    VISIONLLM_UNROLL
    for (int r = 0; r < Rows; ++r) {
        VISIONLLM_UNROLL
        for (int o = 0; o < Outputs; ++o) {
            call.y[r * call.outputs + output + o] = _mm512_reduce_add_ps(sums[o][r]);
        }
    }
}

template <int Bits, int Rows>
void vector_rows(const QuantizedLinear& call, int64_t from, int64_t to) {
    constexpr int kTogether = together(Rows);
    VectorRoom rooms[Rows];
    for (int r = 0; r < Rows; ++r) rooms[r] = VectorRoom(call, r);
    int64_t output = from;
    for (; to - output >= kTogether; output += kTogether) {
        vector_outputs_of<Bits, Rows, kTogether>(call, output, rooms);
    }
    for (; output < to; ++output) vector_outputs_of<Bits, Rows, 1>(call, output, rooms);
}

template <int Bits>
void vector_task_of(const QuantizedLinear& call, int64_t from, int64_t to) {
    static_assert(kFewRows == 5);
    switch (call.rows) {
        case 1: return vector_rows<Bits, 1>(call, from, to);
        case 2: return vector_rows<Bits, 2>(call, from, to);
        case 3: return vector_rows<Bits, 3>(call, from, to);
        case 4: return vector_rows<Bits, 4>(call, from, to);
        default: return vector_rows<Bits, 5>(call, from, to);
    }
}

void vector_task(const QuantizedLinear& call, int64_t from, int64_t to) {
    call.bits == 4 ? vector_task_of<4>(call, from, to) : vector_task_of<8>(call, from, to);
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

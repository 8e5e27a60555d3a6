// Many rows times the weights: bound by vpdpbusd, one vector of 64 products a cycle.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

constexpr int kMatrixRows = 6;  // 6 rows x 2 vectors: 12 whole sums and 12 float sums in registers

// Weights of 32 outputs by 512 inputs as the sums want them.
struct Panel {
    uint8_t tiles[kStretch / 4][kPanel][4];  // step, output, its four inputs
    float scales[kStretch / 16][kPanel];     // block, output
};

// rows[i][j] becomes rows[j][i].
VISIONLLM_INLINE void transpose_16x16(__m512i (&rows)[16]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // fours[4 a + j]: column 4 lane + j of rows 4 a .. 4 a + 3, in each 128-bit lane.
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512i even_low = _mm512_shuffle_i32x4(fours[j], fours[j + 4], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(fours[j], fours[j + 4], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(fours[j + 8], fours[j + 12], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(fours[j + 8], fours[j + 12], 0xdd);
        rows[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        rows[j + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
        rows[j + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        rows[j + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
}

// Fills half a panel: 16 outputs (the ones that are not there become zeros) by `inputs` inputs.
// Rows lie far apart for the hardware to see a stream; `next` is where the weights of the panel
// after this one begin, and as many lines are asked for there as are read here.
template <int Bits>
VISIONLLM_INLINE void fill_half(const QuantizedLinear& call, int64_t output, int64_t outputs,
    int64_t first, int64_t inputs, int half, const uint8_t* next, Panel& panel) {
    const int64_t row_bytes = call.inputs * Bits / 8, bytes = inputs * Bits / 8;
    const uint8_t* from = call.weight + output * row_bytes + first * Bits / 8;
    const __m512i mask = _mm512_set1_epi8(15);
    for (int64_t at = 0; at < bytes; at += 64) {
        const int64_t left = bytes - at;
        const __mmask64 there = left < 64 ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
        __m512i rows[16];
        for (int o = 0; o < 16; ++o) {
            const __mmask64 read = o < outputs ? there : 0;
            rows[o] = _mm512_maskz_loadu_epi8(read, from + o * row_bytes + at);
            _mm_prefetch(reinterpret_cast<const char*>(next + at * 16 + o * 64), _MM_HINT_T1);
        }
        transpose_16x16(rows);
        // Each is now one group of 4 bytes of all outputs: 8 inputs or 4.
        for (int i = 0; i < 16; ++i) {
            if (Bits == 4) {
                uint8_t* to = panel.tiles[(at / 4 + i) * 2][half * 16];
                _mm512_store_si512(to, _mm512_and_si512(rows[i], mask));
                _mm512_store_si512(
                    to + kPanel * 4, _mm512_and_si512(_mm512_srli_epi16(rows[i], 4), mask));
            } else {
                _mm512_store_si512(panel.tiles[at / 4 + i][half * 16], rows[i]);
            }
        }
    }
}

// The same of the scales.
VISIONLLM_INLINE void fill_half_scales(const QuantizedLinear& call, int64_t output,
    int64_t outputs, int64_t first, int64_t inputs, int half, Panel& panel) {
    const int64_t all_blocks = call.inputs / call.block, blocks = inputs / call.block;
    const uint16_t* scales = call.scales + output * all_blocks + first / call.block;
    for (int64_t block = 0; block < blocks; block += 16) {
        const int64_t left = blocks - block;
        const __mmask16 there = static_cast<__mmask16>(left < 16 ? (1 << left) - 1 : 0xffff);
        __m512i rows[16];
        for (int o = 0; o < 16; ++o) {
            const __mmask16 read = o < outputs ? there : 0;
            const uint16_t* halves = scales + o * all_blocks + block;
            rows[o] = _mm512_castps_si512(
                _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(read, halves)));
            _mm_prefetch(reinterpret_cast<const char*>(halves + kPanel * all_blocks), _MM_HINT_T1);
        }
        transpose_16x16(rows);
        for (int i = 0; i < 16; ++i) {
            _mm512_store_si512(&panel.scales[block + i][half * 16], rows[i]);
        }
    }
}

template <int Bits>
void fill_panel(const QuantizedLinear& call, int64_t output, int64_t outputs, int64_t first,
    int64_t inputs, Panel& panel) {
    const int64_t row_bytes = call.inputs * Bits / 8, done = first * Bits / 8 * kPanel;
    const uint8_t* next = call.weight + (output + kPanel) * row_bytes + done;
    for (int half = 0; half < 2; ++half) {
        const int64_t skipped = half * 16;
        fill_half<Bits>(call, output + skipped, outputs - skipped, first, inputs, half,
            next + skipped * inputs * Bits / 8, panel);
        fill_half_scales(call, output + skipped, outputs - skipped, first, inputs, half, panel);
    }
}

// What is known after a stretch of inputs: [rows, 32] sums, in the room of the task until the last
// stretch; y itself would be read and written at addresses a whole row apart.
struct Target {
    float* sums;
    float* y;
    int64_t y_stride;
    const float* bias;  // of the first output, or null
    __mmask16 low, high;  // outputs that there are
    bool first, last;
};

// Bias and activation of one vector of sums.
VISIONLLM_INLINE __m512 finish(__m512 sums, __m512 bias, Activation activation) {
    typedef Lanes<16>::F F;
    return reinterpret_cast<__m512>(
        activate<16>(reinterpret_cast<F>(_mm512_add_ps(sums, bias)), activation));
}

// Sums of all inputs to y, with bias and activation if there are any.
template <int Rows>
VISIONLLM_INLINE void write_rows(
    const QuantizedLinear& call, const float* sums, int64_t row, const Target& target) {
    __m512 left = _mm512_setzero_ps(), right = left;
    if (target.bias != nullptr) {
        left = _mm512_maskz_loadu_ps(target.low, target.bias);
        right = _mm512_maskz_loadu_ps(target.high, target.bias + 16);
    }
    float* y = target.y + row * target.y_stride;
    for (int r = 0; r < Rows; ++r, sums += kPanel, y += target.y_stride) {
        __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 16);
        if (target.bias != nullptr) {
            low = finish(low, left, call.activation);
            high = finish(high, right, call.activation);
        }
        _mm512_mask_storeu_ps(y, target.low, low);
        _mm512_mask_storeu_ps(y + 16, target.high, high);
    }
}

// sums += four unsigned weights times four signed numbers, in each lane: the intrinsic, around which
// GCC copies every sum.
VISIONLLM_INLINE void add_products(__m512i& sums, __m512i weights, __m512i numbers) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(numbers));
}

// How the inputs of a stretch are gone through: blocks, and in each so many turns of Unroll steps.
struct Pace {
    int64_t blocks, turns, blocks_per_stretch;
};

// One group of rows times the panel; the next group's numbers come nearer meanwhile.
template <int Rows, int Unroll>
VISIONLLM_INLINE void matrix_rows(const QuantizedLinear& call, const MatrixRoom& room,
    const Panel& panel, int64_t row, const Pace& pace, const Target& target) {
    const int8_t* numbers = room.numbers + row * kStretch;
    const int8_t* next = numbers + Rows * kStretch;
    const int32_t* starts = room.starts + row * pace.blocks_per_stretch;
    const float* scales = room.scales + row * pace.blocks_per_stretch;
    float* kept = target.sums + row * kPanel;
    __m512 sums[Rows][2];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            sums[r][half] = target.first ? _mm512_setzero_ps()
                                         : _mm512_load_ps(kept + r * kPanel + half * 16);
        }
    }
    const uint8_t* tile = panel.tiles[0][0];
    for (int64_t block = 0; block < pace.blocks; ++block) {
        __m512i whole[Rows][2];
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            whole[r][0] = whole[r][1] =
                _mm512_set1_epi32(starts[r * pace.blocks_per_stretch + block]);
        }
        for (int64_t turn = 0; turn < pace.turns; ++turn) {
#pragma GCC unroll 3
            for (int line = 0; line < Rows * Unroll / 16; ++line) {
                _mm_prefetch(reinterpret_cast<const char*>(next + line * 64), _MM_HINT_T0);
            }
            next += Rows * Unroll * 4;
#pragma GCC unroll 8
            for (int step = 0; step < Unroll; ++step) {
                const __m512i left = _mm512_load_si512(tile + step * 128);
                const __m512i right = _mm512_load_si512(tile + step * 128 + 64);
#pragma GCC unroll 6
                for (int r = 0; r < Rows; ++r) {
                    const __m512i four =
                        _mm512_set1_epi32(load_as<int32_t>(numbers + r * kStretch + step * 4));
                    add_products(whole[r][0], left, four);
                    add_products(whole[r][1], right, four);
                }
            }
            tile += Unroll * 128;
            numbers += Unroll * 4;
        }
        const __m512 left = _mm512_load_ps(panel.scales[block]);
        const __m512 right = _mm512_load_ps(panel.scales[block] + 16);
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            const __m512 scale = _mm512_set1_ps(scales[r * pace.blocks_per_stretch + block]);
            sums[r][0] = _mm512_fmadd_ps(
                _mm512_cvtepi32_ps(whole[r][0]), _mm512_mul_ps(left, scale), sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(
                _mm512_cvtepi32_ps(whole[r][1]), _mm512_mul_ps(right, scale), sums[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
        _mm512_store_ps(kept + r * kPanel, sums[r][0]);
        _mm512_store_ps(kept + r * kPanel + 16, sums[r][1]);
    }
    if (target.last) write_rows<Rows>(call, kept, row, target);
}

template <int Unroll>
void matrix_stretch(const QuantizedLinear& call, const MatrixRoom& room, const Panel& panel,
    const Pace& pace, const Target& target) {
    int64_t row = 0;
    for (; call.rows - row >= kMatrixRows; row += kMatrixRows) {
        matrix_rows<kMatrixRows, Unroll>(call, room, panel, row, pace, target);
    }
    static_assert(kMatrixRows == 6);
    switch (call.rows - row) {
        case 1: return matrix_rows<1, Unroll>(call, room, panel, row, pace, target);
        case 2: return matrix_rows<2, Unroll>(call, room, panel, row, pace, target);
        case 3: return matrix_rows<3, Unroll>(call, room, panel, row, pace, target);
        case 4: return matrix_rows<4, Unroll>(call, room, panel, row, pace, target);
        case 5: return matrix_rows<5, Unroll>(call, room, panel, row, pace, target);
        default: return;
    }
}

size_t matrix_task_bytes(const QuantizedLinear& call) {
    return sizeof(Panel) + static_cast<size_t>(call.rows * kPanel) * sizeof(float);
}

void matrix_task(const QuantizedLinear& call, int64_t from, int64_t to, void* room) {
    Panel& panel = *static_cast<Panel*>(room);
    Target target{};
    target.sums = reinterpret_cast<float*>(&panel + 1);
    target.y_stride = call.outputs;
    for (int64_t output = from; output < to; output += kPanel) {
        const int64_t outputs = to - output < kPanel ? to - output : kPanel;
        const uint32_t there = static_cast<uint32_t>((uint64_t{1} << outputs) - 1);
        target.y = call.y + output;
        target.bias = call.bias != nullptr ? call.bias + output : nullptr;
        target.low = static_cast<__mmask16>(there);
        target.high = static_cast<__mmask16>(there >> 16);
        for (int64_t first = 0; first < call.inputs; first += kStretch) {
            const int64_t left = call.inputs - first, inputs = left < kStretch ? left : kStretch;
            if (call.bits == 4) {
                fill_panel<4>(call, output, outputs, first, inputs, panel);
            } else {
                fill_panel<8>(call, output, outputs, first, inputs, panel);
            }
            target.first = first == 0;
            target.last = left <= kStretch;
            const MatrixRoom stretch(call, first / kStretch);
            const int64_t blocks = inputs / call.block, per_stretch = kStretch / call.block;
            if (call.block == 16) {
                matrix_stretch<4>(call, stretch, panel, {blocks, 1, per_stretch}, target);
            } else {
                matrix_stretch<8>(
                    call, stretch, panel, {blocks, call.block / 32, per_stretch}, target);
            }
        }
    }
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

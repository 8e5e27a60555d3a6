// What kernels of attention share: products of small blocks, packing, transposition, 2^x.
// Only for kernels_*.cpp.
//
// A tile of keys, and likewise of values, is copied once into panels (keys transposed); then a block
// of rows x kPanel sums stays in registers while the panel streams by.
#pragma once

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {
namespace attention {

// Keys of a tile, and distance of the rows of every block in a workspace. A constant, so that the
// rows of a block are one pointer and fixed distances; heads that are longer take several blocks.
constexpr int64_t kTile = 128;
// Columns of a panel and rows of a block: 24 or 12 sums, and what the registers hold beside them.
constexpr int64_t kPanel = 2 * VISIONLLM_LANES;
constexpr int kBlockRows = VISIONLLM_LANES == 16 ? 12 : 6;

typedef Lanes<VISIONLLM_LANES>::F Vector;
typedef Lanes<VISIONLLM_LANES>::I IntVector;

VISIONLLM_INLINE int64_t round_up(int64_t count, int64_t step) {
    return (count + step - 1) / step * step;
}

// Lane i is first[from[i]], or second[from[i] - N] where from[i] >= N; `from` is a constant.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F pick(
    typename Lanes<N>::F first, typename Lanes<N>::F second, typename Lanes<N>::I from) {
#if defined(__clang__)
    typename Lanes<N>::F out;
    for (int i = 0; i < N; ++i) out[i] = from[i] < N ? first[from[i]] : second[from[i] - N];
    return out;
#else
    return __builtin_shuffle(first, second, from);
#endif
}

// Of two rows of a square, `distance` apart, swaps the parts on the wrong side of the diagonal.
template <int N, int Distance>
VISIONLLM_INLINE void exchange(typename Lanes<N>::F& low, typename Lanes<N>::F& high) {
    typename Lanes<N>::I to_low, to_high;
    for (int i = 0; i < N; ++i) {
        to_low[i] = i & Distance ? N + (i ^ Distance) : i;
        to_high[i] = i & Distance ? N + i : i ^ Distance;
    }
    const typename Lanes<N>::F was_low = low;
    low = pick<N>(was_low, high, to_low);
    high = pick<N>(was_low, high, to_high);
}

// Transposes N rows of N lanes.
template <int N, int Distance = N / 2>
VISIONLLM_INLINE void transpose(typename Lanes<N>::F* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        if ((i & Distance) == 0) exchange<N, Distance>(rows[i], rows[i + Distance]);
    }
    if constexpr (Distance > 1) transpose<N, Distance / 2>(rows);
}

template <int N, int Distance = N / 2>
VISIONLLM_INLINE float largest_lane(typename Lanes<N>::F vector) {
    typename Lanes<N>::I other;
    for (int i = 0; i < N; ++i) other[i] = i ^ Distance;
    const typename Lanes<N>::F swapped = pick<N>(vector, vector, other);
    vector = choose<typename Lanes<N>::F>(vector > swapped, vector, swapped);
    if constexpr (Distance > 1) return largest_lane<N, Distance / 2>(vector);
    return vector[0];
}

template <int N, int Distance = N / 2>
VISIONLLM_INLINE float sum_of_lanes(typename Lanes<N>::F vector) {
    typename Lanes<N>::I other;
    for (int i = 0; i < N; ++i) other[i] = i ^ Distance;
    vector += pick<N>(vector, vector, other);
    if constexpr (Distance > 1) return sum_of_lanes<N, Distance / 2>(vector);
    return vector[0];
}

// 2^x on [-0.5, 0.5]: fitted for the smallest relative error, 2e-9 before rounding.
template <class F>
VISIONLLM_INLINE F exp2_part(F x) {
    F power = 0x1.41d334p-13f * x + 0x1.5f456ap-10f;
    power = power * x + 0x1.3b2dbcp-7f;
    power = power * x + 0x1.c6aed4p-5f;
    power = power * x + 0x1.ebfbdap-3f;
    power = power * x + 0x1.62e430p-1f;
    return power * x + 1.0f;
}

// 2^x for x <= 0, relative error below 2e-7; exactly 1 at 0, exactly 0 below -126, NaN for NaN.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F exp2_of(typename Lanes<N>::F x) {
    typedef typename Lanes<N>::F F;
    typedef typename Lanes<N>::I I;
    const F lowest = broadcast<F>(-126.0f);
#if VISIONLLM_LANES == 16
    if constexpr (N == 16) {
        const __m512 given = reinterpret_cast<__m512>(x);
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        const F whole = reinterpret_cast<F>(
            _mm512_maskz_roundscale_ps(static_cast<__mmask16>(-1), given, kNearest));
        const __mmask16 kept =
            _mm512_cmp_ps_mask(given, reinterpret_cast<__m512>(lowest), _CMP_NLT_UQ);
        return reinterpret_cast<F>(_mm512_maskz_scalef_ps(
            kept, reinterpret_cast<__m512>(exp2_part<F>(x - whole)), reinterpret_cast<__m512>(whole)));
    }
#endif
    // Written so that NaN is kept.
    const F kept = choose<F>(x < lowest, lowest, x);
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits of the sum.
    const F shifted = kept + 12582912.0f;
    const F part = kept - (shifted - 12582912.0f);
    const F power = exp2_part<F>(part);
    const I exponent = load_as<I>(&shifted) << 23;
    const I scaled = load_as<I>(&power) + exponent;
    return choose<F>(x < lowest, F{}, load_as<F>(&scaled));
}

// How a number of a row times a vector of a panel is added to a sum. Form::kNumbers of them are in one
// float's place; here it is one float.
struct FloatProducts {
    static constexpr int64_t kNumbers = 1;
    VISIONLLM_INLINE void add(Vector& sum, const float* row, Vector column) {
        sum += *row * column;
    }
};

// sums[Rows][Vectors * N] (+)= rows[Rows][depth] * panel[depth][Vectors * N]; rows and sums have kTile
// floats from one row to the next, the panel kPanel.
template <bool Add, int Rows = kBlockRows, int Vectors = 2, class Form = FloatProducts>
void multiply_panel(const float* rows, const float* panel, int64_t depth, float* sums) {
    constexpr int N = VISIONLLM_LANES;
    Vector held[Vectors][Rows];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
        for (int i = 0; i < Vectors; ++i) {
            held[i][row] = Add ? load_as<Vector>(sums + row * kTile + i * N) : Vector{};
        }
    }
    for (int64_t at = 0; at < depth; ++at) {
        Vector columns[Vectors];
#pragma GCC unroll 2
        for (int i = 0; i < Vectors; ++i) columns[i] = load_as<Vector>(panel + at * kPanel + i * N);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
            for (int i = 0; i < Vectors; ++i) {
                Form::add(held[i][row], rows + row * kTile + at, columns[i]);
            }
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
        for (int i = 0; i < Vectors; ++i) store_as(sums + row * kTile + i * N, held[i][row]);
    }
}

// Keys [count, depth], `stride` from one to the next -> panels [kPanel keys][depth][kPanel]; keys from
// `count` on are 0.
template <class T>
void pack_keys(const typename T::Storage* keys, int64_t stride, int64_t count, int64_t depth,
    float* panels) {
    constexpr int N = VISIONLLM_LANES;
    for (int64_t first = 0; first < count; first += N) {
        float* to = panels + first / kPanel * kPanel * depth + first % kPanel;
        int64_t at = 0;
        for (; at + N <= depth; at += N) {
            Vector square[N];
#pragma GCC unroll 16
            for (int key = 0; key < N; ++key) {
                square[key] = first + key < count
                                  ? T::template load<N>(keys + (first + key) * stride + at)
                                  : Vector{};
            }
            transpose<N>(square);
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i) store_as(to + (at + i) * kPanel, square[i]);
        }
        for (; at < depth; ++at) {
            for (int key = 0; key < N; ++key) {
                to[at * kPanel + key] =
                    first + key < count ? T::widen(keys[(first + key) * stride + at]) : 0.0f;
            }
        }
    }
    // The second half of a last panel that only the first half of is used.
    const int64_t written = round_up(count, N);
    if (written % kPanel != 0) {
        float* to = panels + written / kPanel * kPanel * depth + N;
        for (int64_t at = 0; at < depth; ++at) store_as(to + at * kPanel, Vector{});
    }
}

// Values [count, depth], `stride` from one to the next -> panels [kPanel channels][kTile keys][kPanel];
// missing channels are 0.
template <class T>
void pack_values(const typename T::Storage* values, int64_t stride, int64_t count, int64_t depth,
    float* panels) {
    constexpr int N = VISIONLLM_LANES;
    for (int64_t first = 0; first < depth; first += kPanel, panels += kTile * kPanel) {
        if (first + kPanel <= depth) {
            for (int64_t key = 0; key < count; ++key) {
                const typename T::Storage* from = values + key * stride + first;
                store_as(panels + key * kPanel, T::template load<N>(from));
                store_as(panels + key * kPanel + N, T::template load<N>(from + N));
            }
            continue;
        }
        for (int64_t key = 0; key < count; ++key) {
            for (int64_t i = 0; i < kPanel; ++i) {
                panels[key * kPanel + i] =
                    first + i < depth ? T::widen(values[key * stride + first + i]) : 0.0f;
            }
        }
    }
}

// Where element `at` of row 0 stands in a block of rows, `block` floats for each kTile columns.
VISIONLLM_INLINE int64_t column(int64_t at, int64_t block) {
    return at / kTile * block + at % kTile;
}

}  // namespace attention
}  // namespace
}  // namespace visionllm::cpu
#endif

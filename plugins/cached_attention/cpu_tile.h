// The inner loops of cached attention on a CPU, beside those of ../cpu/tile.h.
// Only for kernels_*.cpp; included by cpu_kernel.h.
//
// Two ways to multiply a block of query rows by a tile of keys, and likewise by a tile of values:
//   packed   the tile is copied once into panels (keys transposed), then kBlockRows x kPanel sums stay in
//            registers while the panel streams by. For many rows.
//   direct   the cache is read where it lies; a row's sums over the head are folded across lanes,
//            VISIONLLM_LANES keys at a time. For a few rows, where copying would cost more.
#pragma once

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {
namespace attention {

// Lane i of rows[0] becomes the sum of the lanes of rows[i].
template <int N, int Distance = N / 2>
VISIONLLM_INLINE void fold(typename Lanes<N>::F* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < Distance; ++i) {
        exchange<N, Distance>(rows[i], rows[i + Distance]);
        rows[i] += rows[i + Distance];
    }
    if constexpr (Distance > 1) fold<N, Distance / 2>(rows);
}

// `count` rows of a cache, [count, depth], widened into rows of `width` floats; the rest is 0, in
// every row and in the rows up to `rows`.
template <class T>
void widen_rows(const typename T::Storage* from, int64_t count, int64_t depth, int64_t rows,
    int64_t width, float* to) {
    constexpr int N = VISIONLLM_LANES;
    for (int64_t row = 0; row < rows; ++row, from += depth, to += width) {
        int64_t at = 0;
        if (row < count) {
            for (; at + N <= depth; at += N) store_as(to + at, T::template load<N>(from + at));
            for (; at < depth; ++at) to[at] = T::widen(from[at]);
        }
        for (; at < width; ++at) to[at] = 0.0f;
    }
}

// Scores of one query row with VISIONLLM_LANES keys of a cache; `depth` is whole vectors. Strictly key
// by key: where the cache comes from memory, reading the keys interleaved takes twice as long.
template <class T>
VISIONLLM_INLINE Vector dot_cached_keys(
    const float* query, int64_t block, const typename T::Storage* keys, int64_t depth) {
    constexpr int N = VISIONLLM_LANES;
    Vector sums[N];
#pragma GCC unroll 16
    for (int key = 0; key < N; ++key) {
        Vector sum = {};
        for (int64_t at = 0; at < depth; at += N) {
            sum += load_as<Vector>(query + column(at, block)) *
                   T::template load<N>(keys + key * depth + at);
        }
        sums[key] = sum;
    }
    fold<N>(sums);
    return sums[0];
}

// The same for keys that were widened and so are near: each part of the query is loaded once.
VISIONLLM_INLINE Vector dot_near_keys(
    const float* query, int64_t block, const float* keys, int64_t depth) {
    constexpr int N = VISIONLLM_LANES;
    Vector sums[N] = {};
    for (int64_t at = 0; at < depth; at += N) {
        const Vector part = load_as<Vector>(query + column(at, block));
#pragma GCC unroll 16
        for (int key = 0; key < N; ++key) sums[key] += part * load_as<Vector>(keys + key * depth + at);
    }
    fold<N>(sums);
    return sums[0];
}

// sums[Rows][Vectors * N] += weights[Rows][count] * values[count][depth], a strip of the columns.
template <class T, int Rows, int Vectors>
VISIONLLM_INLINE void add_values(const float* weights, const typename T::Storage* values,
    int64_t count, int64_t depth, float* sums) {
    constexpr int N = VISIONLLM_LANES;
    Vector held[Rows][Vectors];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) held[row][i] = load_as<Vector>(sums + row * kTile + i * N);
    }
    for (int64_t key = 0; key < count; ++key, values += depth) {
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
            const Vector value = T::template load<N>(values + i * N);
#pragma GCC unroll 16
            for (int row = 0; row < Rows; ++row) held[row][i] += weights[row * kTile + key] * value;
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) store_as(sums + row * kTile + i * N, held[row][i]);
    }
}

// The same for all columns, as wide strips as the registers hold.
template <class T, int Rows>
VISIONLLM_INLINE void add_value_rows(const float* weights, const typename T::Storage* values,
    int64_t count, int64_t depth, int64_t block, float* sums) {
    constexpr int N = VISIONLLM_LANES;
    constexpr int kWide = (N == 16 ? 2 : 1) * (Rows == 4 ? 2 : 4);
    int64_t at = 0;
    for (; at + kWide * N <= depth; at += kWide * N) {
        add_values<T, Rows, kWide>(weights, values + at, count, depth, sums + column(at, block));
    }
    for (; at < depth; at += N) {
        add_values<T, Rows, 1>(weights, values + at, count, depth, sums + column(at, block));
    }
}

}  // namespace attention
}  // namespace
}  // namespace visionllm::cpu
#endif

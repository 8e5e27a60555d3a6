// Cached attention on a CPU: raw pointers in, raw pointers out, fp32 inside.
//
// Knows nothing of ONNX Runtime and nothing of threads. A call has three steps. First the new keys are
// rotated and stored in the cache with the new values. Then come the tasks: one key/value head, a
// block of the new rows with all query heads of that group (so that the cache is read once for the
// group), and a range of the keys. A task walks the keys tile by tile with a running maximum and sum,
// so its memory does not grow with the context. Where there are too few heads and rows to go round,
// the keys are cut into ranges, and the third step merges what the ranges of one block found.
//
// What bounds it: with one new row the memory that holds the cache, with many the multiply-adds.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Sizes and pointers of one call. Letters as in spec.py.
struct CachedAttention {
    const void *query, *key, *value;  // [B, S, H*Dh], [B, S, KV*Dh]
    const void *cos, *sin;            // [R, Dh/2]
    void *cached_key, *cached_value;  // [B, KV, C, Dh], the outputs, with the past already in place
    void* attention;                  // [B, S, H*Dh]
    int64_t batch, rows, heads, kv_heads, depth, capacity;
    int64_t start;    // rows that the cache holds already
    float log_scale;  // the attribute times log2(e): powers of two are cheaper than of e
    // [KV, Dh], where the cache holds whole numbers: the scales, and one over them; null elsewhere.
    const float *key_scale, *key_inverse, *value_scale, *value_inverse;
};

// Query rows first_row .. first_row + rows - 1 of one key/value head's group, keys first_key ..
// last_key - 1. The state is where the sums of a range of keys wait for their merge; null if the
// task sees all the keys of its rows, and writes the output itself.
struct CachedAttentionTask {
    int64_t batch, kv_head, first_row, rows, first_key, last_key;
    float* state;
};

// Blocks of rows (a row is a new row and one of its heads) are rounded up to this.
constexpr int64_t kCachedAttentionRowStep = 12;
// Keys of a tile; ranges of keys begin at a multiple of it.
constexpr int64_t kCachedAttentionTile = 128;

// Floats, for a block of `rows` rounded up: a task's workspace, and a state.
struct CachedAttentionSizes {
    int64_t block_rows, workspace, state;
};

struct CachedAttentionKernels {
    // New rows first .. first + count - 1 of one batch entry into the cache.
    void (*append)(const CachedAttention& call, int64_t batch, int64_t first, int64_t count);
    void (*attend)(const CachedAttention& call, const CachedAttentionTask& task,
        const CachedAttentionSizes& sizes, float* workspace);
    // The output of `task` from `count` states that lie one after the other, the first at task.state.
    void (*merge)(const CachedAttention& call, const CachedAttentionTask& task,
        const CachedAttentionSizes& sizes, int64_t count);
};

}  // namespace visionllm::cpu

#include "../cpu/tile.h"
#include "cpu_tile.h"

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {
namespace attention {

static_assert(kTile == kCachedAttentionTile, "ranges of keys begin with a tile");
static_assert(kCachedAttentionRowStep % kBlockRows == 0, "whole blocks");

// From this many rows on, a tile is worth packing.
constexpr int64_t kPackedRows = 12;

constexpr float kNothingYet = -3e38f;

// Where a task's numbers stand. Rows are kTile floats apart; heads longer than kTile go on
// `block` floats further.
struct AttentionBlock {
    float *queries, *weights, *keys, *values;
    float *sums, *largest, *total;
    int64_t rows, block, group;
};

VISIONLLM_INLINE void bind_state(
    float* state, const CachedAttentionSizes& sizes, AttentionBlock& out) {
    out.sums = state;
    out.largest = state + sizes.state - 2 * sizes.block_rows;
    out.total = out.largest + sizes.block_rows;
}

VISIONLLM_INLINE AttentionBlock bind_block(const CachedAttention& call,
    const CachedAttentionTask& task, const CachedAttentionSizes& sizes, float* workspace) {
    AttentionBlock out{};
    out.group = call.heads / call.kv_heads;
    out.rows = task.rows * out.group;
    out.block = sizes.block_rows * kTile;
    const int64_t parts = round_up(call.depth, kTile) / kTile;
    out.queries = workspace;
    out.weights = out.queries + parts * out.block;
    out.keys = out.weights + out.block;
    out.values = out.keys + kTile * round_up(call.depth, kPanel);
    float* own = out.values + kTile * round_up(call.depth, kPanel);
    bind_state(task.state != nullptr ? task.state : own, sizes, out);
    return out;
}

// N factors of channels; where there are none, 1.
template <int N>
VISIONLLM_INLINE typename Lanes<N>::F channel_factors(const float* channels, int64_t at) {
    typedef typename Lanes<N>::F F;
    return channels != nullptr ? load_as<F>(channels + at) : broadcast<F>(1.0f);
}

// The half-split rotation of one head, N pairs at a time, times `factor` and the channels' factors.
template <class From, class To, int N>
VISIONLLM_INLINE void rotate_pairs(const typename From::Storage* from,
    const typename From::Storage* cos, const typename From::Storage* sin, int64_t half, float factor,
    const float* channels, int64_t block, typename To::Storage* to) {
    typedef typename Lanes<N>::F F;
    for (int64_t i = 0; i < half; i += N) {
        const F first = From::template load<N>(from + i);
        const F second = From::template load<N>(from + half + i);
        const F c = From::template load<N>(cos + i), s = From::template load<N>(sin + i);
        const F low = channel_factors<N>(channels, i) * factor;
        const F high = channel_factors<N>(channels, half + i) * factor;
        To::template store<N>(to + column(i, block), (first * c - second * s) * low);
        To::template store<N>(to + column(half + i, block), (second * c + first * s) * high);
    }
}

template <class From, class To>
VISIONLLM_INLINE void rotate(const typename From::Storage* from, const typename From::Storage* cos,
    const typename From::Storage* sin, int64_t half, float factor,
    const float* channels, int64_t block, typename To::Storage* to) {
    constexpr int N = VISIONLLM_LANES;
    if (half % N == 0) {
        rotate_pairs<From, To, N>(from, cos, sin, half, factor, channels, block, to);
    } else if (half % 4 == 0) {
        rotate_pairs<From, To, 4>(from, cos, sin, half, factor, channels, block, to);
    } else {
        rotate_pairs<From, To, 1>(from, cos, sin, half, factor, channels, block, to);
    }
}

template <class From, class To>
VISIONLLM_INLINE void convert(
    const typename From::Storage* from, int64_t count, const float* channels,
    typename To::Storage* to) {
    constexpr int N = VISIONLLM_LANES;
    int64_t i = 0;
    for (; i + N <= count; i += N) {
        To::template store<N>(
            to + i, From::template load<N>(from + i) * channel_factors<N>(channels, i));
    }
    for (; i < count; ++i) {
        to[i] = To::narrow(From::widen(from[i]) * channel_factors<1>(channels, i)[0]);
    }
}

VISIONLLM_INLINE const float* of_head(const float* channels, int64_t head, int64_t depth) {
    return channels != nullptr ? channels + head * depth : nullptr;
}

template <class A, class C>
void cached_attention_append(
    const CachedAttention& call, int64_t batch, int64_t first, int64_t count) {
    typedef typename A::Storage Given;
    typedef typename C::Storage Kept;
    const int64_t half = call.depth / 2;
    for (int64_t row = first; row < first + count; ++row) {
        const int64_t position = call.start + row;
        const int64_t given = (batch * call.rows + row) * call.kv_heads * call.depth;
        for (int64_t head = 0; head < call.kv_heads; ++head) {
            const int64_t from = given + head * call.depth;
            const int64_t to =
                ((batch * call.kv_heads + head) * call.capacity + position) * call.depth;
            // One piece of memory, so no column stands apart: a block of kTile.
            rotate<A, C>(static_cast<const Given*>(call.key) + from,
                static_cast<const Given*>(call.cos) + position * half,
                static_cast<const Given*>(call.sin) + position * half, half, 1.0f,
                of_head(call.key_inverse, head, call.depth), kTile,
                static_cast<Kept*>(call.cached_key) + to);
            convert<A, C>(static_cast<const Given*>(call.value) + from, call.depth,
                of_head(call.value_inverse, head, call.depth),
                static_cast<Kept*>(call.cached_value) + to);
        }
    }
}

// Fills the block's queries: rotated and scaled, also by the scales of the keys, so that the keys
// themselves can stay whole numbers; 0 in the columns and rows that only fill up.
template <class A>
void load_queries(
    const CachedAttention& call, const CachedAttentionTask& task, const AttentionBlock& block) {
    typedef typename A::Storage Given;
    const int64_t half = call.depth / 2, width = round_up(call.depth, VISIONLLM_LANES);
    for (int64_t row = 0; row < round_up(block.rows, kBlockRows); ++row) {
        float* to = block.queries + row * kTile;
        int64_t filled = 0;
        if (row < block.rows) {
            const int64_t new_row = task.first_row + row / block.group;
            const int64_t head = task.kv_head * block.group + row % block.group;
            const int64_t from = ((task.batch * call.rows + new_row) * call.heads + head) * call.depth;
            const int64_t angle = (call.start + new_row) * half;
            rotate<A, Float32>(static_cast<const Given*>(call.query) + from,
                static_cast<const Given*>(call.cos) + angle,
                static_cast<const Given*>(call.sin) + angle, half, call.log_scale,
                of_head(call.key_scale, task.kv_head, call.depth), block.block, to);
            filled = call.depth;
        }
        for (int64_t at = filled; at < width; ++at) to[column(at, block.block)] = 0.0f;
    }
}

// Rows that see the tile's first key begin here; earlier rows see none of it.
VISIONLLM_INLINE int64_t first_seeing_row(
    const CachedAttention& call, const CachedAttentionTask& task, int64_t group, int64_t key) {
    const int64_t row = key - call.start - task.first_row;
    return row > 0 ? row * group : 0;
}

// How many of the tile's keys a row sees, at most `count`.
VISIONLLM_INLINE int64_t seen_keys(const CachedAttention& call, const CachedAttentionTask& task,
    int64_t group, int64_t row, int64_t key, int64_t count) {
    const int64_t seen = call.start + task.first_row + row / group + 1 - key;
    return seen < 0 ? 0 : seen < count ? seen : count;
}

template <class C>
void score_direct(const CachedAttention& call, const AttentionBlock& block, int64_t first_row,
    const typename C::Storage* keys, int64_t count) {
    constexpr int N = VISIONLLM_LANES;
    const int64_t width = round_up(call.depth, N);
    // Several rows share keys that were widened, and so brought near, once.
    const bool as_it_lies = call.depth % N == 0 && block.rows == 1;
    for (int64_t key = 0; key < count; key += N, keys += N * call.depth) {
        const bool whole = as_it_lies && key + N <= count;
        if (!whole) widen_rows<C>(keys, count - key, call.depth, N, width, block.keys);
        for (int64_t row = first_row; row < block.rows; ++row) {
            const float* query = block.queries + row * kTile;
            const Vector scores = whole ? dot_cached_keys<C>(query, block.block, keys, width)
                                        : dot_near_keys(query, block.block, block.keys, width);
            store_as(block.weights + row * kTile + key, scores);
        }
    }
}

// Adds a tile's values to the rows from *row on, `Rows` at a time, while so many are left.
template <class T, int Rows>
VISIONLLM_INLINE void mix_rows(const AttentionBlock& block, const typename T::Storage* values,
    int64_t count, int64_t depth, int64_t* row) {
    for (; block.rows - *row >= Rows; *row += Rows) {
        add_value_rows<T, Rows>(block.weights + *row * kTile, values, count, depth, block.block,
            block.sums + *row * kTile);
    }
}

template <class T>
VISIONLLM_INLINE void mix_all_rows(const AttentionBlock& block, int64_t first_row,
    const typename T::Storage* values, int64_t count, int64_t depth) {
    mix_rows<T, 4>(block, values, count, depth, &first_row);
    mix_rows<T, 2>(block, values, count, depth, &first_row);
    mix_rows<T, 1>(block, values, count, depth, &first_row);
}

template <class C>
void mix_direct(const CachedAttention& call, const AttentionBlock& block, int64_t first_row,
    const typename C::Storage* values, int64_t count) {
    const int64_t width = round_up(call.depth, VISIONLLM_LANES);
    if (call.depth == width) return mix_all_rows<C>(block, first_row, values, count, width);
    widen_rows<C>(values, count, call.depth, count, width, block.values);
    mix_all_rows<Float32>(block, first_row, block.values, count, width);
}

template <class C>
void score_packed(const CachedAttention& call, const CachedAttentionTask& task,
    const AttentionBlock& block, int64_t first_row, const typename C::Storage* keys, int64_t key,
    int64_t count) {
    pack_keys<C>(keys, call.depth, count, call.depth, block.keys);
    for (int64_t first = 0; first < count; first += kPanel) {
        const float* panel = block.keys + first * call.depth;
        for (int64_t row = first_row; row < block.rows; row += kBlockRows) {
            const int64_t last = row + kBlockRows < block.rows ? row + kBlockRows : block.rows;
            // Nobody in this block sees the panel; the softmax looks at seen keys only.
            if (seen_keys(call, task, block.group, last - 1, key, count) <= first) continue;
            float* scores = block.weights + row * kTile + first;
            for (int64_t at = 0; at < call.depth; at += kTile) {
                const int64_t depth = call.depth - at < kTile ? call.depth - at : kTile;
                const float* queries = block.queries + row * kTile + column(at, block.block);
                if (at == 0) {
                    multiply_panel<false>(queries, panel, depth, scores);
                } else {
                    multiply_panel<true>(queries, panel + at * kPanel, depth, scores);
                }
            }
        }
    }
}

template <class C>
void mix_packed(const CachedAttention& call, const CachedAttentionTask& task,
    const AttentionBlock& block, int64_t first_row, const typename C::Storage* values, int64_t key,
    int64_t count) {
    pack_values<C>(values, call.depth, count, call.depth, block.values);
    for (int64_t at = 0; at < call.depth; at += kPanel) {
        const float* panel = block.values + at * kTile;
        for (int64_t row = first_row; row < block.rows; row += kBlockRows) {
            const int64_t last = row + kBlockRows < block.rows ? row + kBlockRows : block.rows;
            multiply_panel<true>(block.weights + row * kTile, panel,
                seen_keys(call, task, block.group, last - 1, key, count),
                block.sums + row * kTile + column(at, block.block));
        }
    }
}

// Finds the largest of a row's `seen` scores, and brings what the row has summed so far to it. Of
// `count` weights, those of keys that the row does not see become 0, or their score so low that the
// weight will.
VISIONLLM_INLINE void raise_row(
    const AttentionBlock& block, int64_t row, int64_t seen, int64_t count, int64_t width) {
    constexpr int N = VISIONLLM_LANES;
    float* weights = block.weights + row * kTile;
    const int64_t whole = round_up(seen, N);
    for (int64_t i = seen; i < whole; ++i) weights[i] = kNothingYet;
    for (int64_t i = whole; i < count; ++i) weights[i] = 0.0f;
    if (seen == 0) return;
    Vector high = load_as<Vector>(weights);
    for (int64_t i = N; i < whole; i += N) {
        const Vector scores = load_as<Vector>(weights + i);
        high = choose<Vector>(scores > high, scores, high);
    }
    const float found = largest_lane<N>(high);
    if (!(found > block.largest[row])) return;
    const float factor = exp2_of<1>(Lanes<1>::F{block.largest[row] - found})[0];
    block.largest[row] = found;
    block.total[row] *= factor;
    for (int64_t at = 0; at < width; at += N) {
        float* sums = block.sums + row * kTile + column(at, block.block);
        store_as(sums, load_as<Vector>(sums) * factor);
    }
}

// Scores -> weights against the row's largest score, in whole vectors.
VISIONLLM_INLINE void weigh_row(const AttentionBlock& block, int64_t row, int64_t seen) {
    constexpr int N = VISIONLLM_LANES;
    float* weights = block.weights + row * kTile;
    const float largest = block.largest[row];
    Vector sum = {};
    for (int64_t i = 0; i < seen; i += N) {
        const Vector weight = exp2_of<N>(load_as<Vector>(weights + i) - largest);
        store_as(weights + i, weight);
        sum += weight;
    }
    block.total[row] += sum_of_lanes<N>(sum);
}

// The softmax of a tile, row block by row block, so that no row waits for the one before it.
void weigh_tile(const CachedAttention& call, const CachedAttentionTask& task,
    const AttentionBlock& block, int64_t first_row, int64_t key, int64_t count) {
    const int64_t width = round_up(call.depth, VISIONLLM_LANES);
    for (int64_t first = first_row; first < block.rows; first += kBlockRows) {
        const int64_t last = first + kBlockRows < block.rows ? first + kBlockRows : block.rows;
        int64_t seen[kBlockRows];
        for (int64_t row = first; row < last; ++row) {
            seen[row - first] = seen_keys(call, task, block.group, row, key, count);
            raise_row(block, row, seen[row - first], count, width);
        }
        for (int64_t row = first; row < last; ++row) weigh_row(block, row, seen[row - first]);
    }
}

// Walks the keys of a task; the sums are left in the state.
template <class C>
void attend_tiles(
    const CachedAttention& call, const CachedAttentionTask& task, const AttentionBlock& block) {
    typedef typename C::Storage Kept;
    const int64_t rows = round_up(block.rows, kBlockRows);
    const int64_t width = round_up(call.depth, kPanel);
    for (int64_t row = 0; row < rows; ++row) {
        block.largest[row] = kNothingYet;
        block.total[row] = 0.0f;
        for (int64_t at = 0; at < width; at += VISIONLLM_LANES) {
            store_as(block.sums + row * kTile + column(at, block.block), Vector{});
        }
    }
    const int64_t plane =
        (task.batch * call.kv_heads + task.kv_head) * call.capacity * call.depth;
    const Kept* keys = static_cast<const Kept*>(call.cached_key) + plane;
    const Kept* values = static_cast<const Kept*>(call.cached_value) + plane;
    const bool packed = block.rows >= kPackedRows;
    if (packed) {
        // Rows that fill up a block of rows have no weights of their own.
        for (int64_t i = block.rows * kTile; i < rows * kTile; ++i) block.weights[i] = 0.0f;
    }
    for (int64_t key = task.first_key; key < task.last_key; key += kTile) {
        const int64_t count = task.last_key - key < kTile ? task.last_key - key : kTile;
        int64_t first_row = first_seeing_row(call, task, block.group, key);
        if (first_row >= block.rows) break;
        const int64_t at = key * call.depth;
        if (packed) {
            first_row = first_row / kBlockRows * kBlockRows;
            score_packed<C>(call, task, block, first_row, keys + at, key, count);
        } else {
            score_direct<C>(call, block, first_row, keys + at, count);
        }
        weigh_tile(call, task, block, first_row, key, count);
        if (packed) {
            mix_packed<C>(call, task, block, first_row, values + at, key, count);
        } else {
            mix_direct<C>(call, block, first_row, values + at, count);
        }
    }
}

// One row of the output: sums[depth] / total, times the scales of the values.
template <class A>
VISIONLLM_INLINE void write_row(const CachedAttention& call, const CachedAttentionTask& task,
    int64_t group, int64_t row, const float* sums, int64_t block, float total) {
    constexpr int N = VISIONLLM_LANES;
    const int64_t new_row = task.batch * call.rows + task.first_row + row / group;
    const int64_t head = task.kv_head * group + row % group;
    typename A::Storage* to =
        static_cast<typename A::Storage*>(call.attention) + (new_row * call.heads + head) * call.depth;
    const float share = 1.0f / total;
    const float* channels = of_head(call.value_scale, task.kv_head, call.depth);
    int64_t at = 0;
    for (; at + N <= call.depth; at += N) {
        const Vector factor = channel_factors<N>(channels, at) * share;
        A::template store<N>(to + at, load_as<Vector>(sums + column(at, block)) * factor);
    }
    for (; at < call.depth; ++at) {
        const float factor = channel_factors<1>(channels, at)[0] * share;
        to[at] = A::narrow(sums[column(at, block)] * factor);
    }
}

template <class A, class C>
void cached_attention_task(const CachedAttention& call, const CachedAttentionTask& task,
    const CachedAttentionSizes& sizes, float* workspace) {
    const AttentionBlock block = bind_block(call, task, sizes, workspace);
    load_queries<A>(call, task, block);
    attend_tiles<C>(call, task, block);
    if (task.state != nullptr) return;
    for (int64_t row = 0; row < block.rows; ++row) {
        write_row<A>(call, task, block.group, row, block.sums + row * kTile, block.block,
            block.total[row]);
    }
}

template <class A>
void cached_attention_merge(const CachedAttention& call, const CachedAttentionTask& task,
    const CachedAttentionSizes& sizes, int64_t count) {
    constexpr int N = VISIONLLM_LANES;
    const int64_t group = call.heads / call.kv_heads, block = sizes.block_rows * kTile;
    AttentionBlock first{}, next{};
    bind_state(task.state, sizes, first);
    for (int64_t row = 0; row < task.rows * group; ++row) {
        // The first range holds key 0, which every row sees; later ones may hold nothing.
        float* sums = first.sums + row * kTile;
        float largest = first.largest[row];
        for (int64_t i = 1; i < count; ++i) {
            bind_state(task.state + i * sizes.state, sizes, next);
            if (next.largest[row] > largest) largest = next.largest[row];
        }
        float total = 0.0f;
        for (int64_t i = 0; i < count; ++i) {
            bind_state(task.state + i * sizes.state, sizes, next);
            const float factor = exp2_of<1>(Lanes<1>::F{next.largest[row] - largest})[0];
            total += next.total[row] * factor;
            for (int64_t at = 0; at < round_up(call.depth, N); at += N) {
                const int64_t to = column(at, block);
                const Vector part = load_as<Vector>(next.sums + row * kTile + to) * factor;
                store_as(sums + to, i == 0 ? part : load_as<Vector>(sums + to) + part);
            }
        }
        write_row<A>(call, task, group, row, sums, block, total);
    }
}

template <class A, class C>
constexpr CachedAttentionKernels kKernels = {
    cached_attention_append<A, C>, cached_attention_task<A, C>, cached_attention_merge<A>};

}  // namespace attention
}  // namespace
}  // namespace visionllm::cpu
#endif

// Full attention of several heads on a CPU: raw pointers in, raw pointers out, fp32, and sums in fp32.
//
// Knows nothing of ONNX Runtime and nothing of threads. A Form says what is multiplied: the numbers as
// they are, or rounded to bfloat16 (cpu_bf16.h). A task packs the keys and values of one head
// of one batch entry into panels, and goes through its rows block by block: all scores of a block
// first (it stays in the first- or second-level cache), their softmax, then their sum of values. What
// bounds it are the multiply-adds.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Sizes and pointers of one call. Letters as in spec.py.
struct UnmaskedAttention {
    const float *query, *key, *value;  // [B, S, H*Dh], [B, K, H*Dh]
    const float* bias;                 // [N, J, T, U], null where there is nothing to add
    const int64_t* bias_index;         // [M]
    float* y;                          // [B, S, H*Dh]
    int64_t batch, rows, keys, heads, depth;
    int64_t biases, repeat;            // N, M
    int64_t bias_heads;                // J
    bool one_number;                   // T and U are 1
    float log_scale;  // the attribute times log2(e): powers of two are cheaper than of e
};

// Heads first_head .. last_head - 1, counted through the batch (entry * H + head), and of each the
// rows first_row .. last_row - 1.
struct UnmaskedAttentionTask {
    int64_t first_head, last_head, first_row, last_row;
};

// Both are multiples of what every instruction set needs: the floats of a task's workspace follow from
// them (cpu_op.cpp).
constexpr int64_t kUnmaskedAttentionRows = 12;    // rows of a block at most
constexpr int64_t kUnmaskedAttentionTile = 128;   // keys, and channels, of a tile
constexpr int64_t kUnmaskedAttentionPanel = 32;   // columns of a panel at most

typedef void (*UnmaskedAttentionAttend)(
    const UnmaskedAttention& call, const UnmaskedAttentionTask& task, float* workspace);

}  // namespace visionllm::cpu

#include "../cpu/tile.h"

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {
namespace attention {

static_assert(kTile == kUnmaskedAttentionTile && kUnmaskedAttentionPanel % kPanel == 0 &&
                  kBlockRows <= kUnmaskedAttentionRows,
    "the workspace is large enough");

// Multiplies the numbers as they are.
struct Unrounded : FloatProducts {
    VISIONLLM_INLINE void pack_keys(const float* keys, int64_t stride, int64_t count, int64_t depth,
        float* panels, float*) {
        attention::pack_keys<Float32>(keys, stride, count, depth, panels);
    }
    // Of one tile.
    VISIONLLM_INLINE void pack_values(const float* values, int64_t stride, int64_t count,
        int64_t depth, float* panels, float*) {
        attention::pack_values<Float32>(values, stride, count, depth, panels);
    }
    // Numbers `at`, `at` + 1, ... of a tile's row.
    VISIONLLM_INLINE void store(float* row, int64_t at, Vector numbers) {
        store_as(row + at, numbers);
    }
    VISIONLLM_INLINE void store_one(float* row, int64_t at, float number) { row[at] = number; }
};

// Places of a float that so many numbers take.
template <class Form>
VISIONLLM_INLINE int64_t places(int64_t numbers) {
    return (numbers + Form::kNumbers - 1) / Form::kNumbers;
}

// One head: where its numbers stand, and those of the block of rows at work. Queries, scores, weights
// and sums are tiles of [Rows][kTile], one behind the other, of kTile numbers a row.
struct UnmaskedHead {
    const float *query, *bias;
    float* y;
    const float *keys, *values;  // panels
    float *queries, *weights, *sums;
    int64_t first_row;
};

// Lanes that stand for keys from `count` on get the lowest number there is.
VISIONLLM_INLINE Vector hide_from(Vector scores, int64_t count) {
    constexpr int N = VISIONLLM_LANES;
    IntVector lane;
    for (int i = 0; i < N; ++i) lane[i] = i;
    const Vector lowest = broadcast<Vector>(-3.4e38f);
    return choose<Vector>(lane < static_cast<int32_t>(count), scores, lowest);
}

// The bias of N keys of a row. `left` floats of the bias are still there; behind them is nothing.
VISIONLLM_INLINE Vector load_bias(const float* from, int64_t left) {
    constexpr int N = VISIONLLM_LANES;
    if (left >= N) return load_as<Vector>(from);
    Vector out = {};
    for (int64_t i = 0; i < left; ++i) out[i] = from[i];
    return out;
}

template <class Form, int Rows>
void load_query_rows(const UnmaskedAttention& call, const UnmaskedHead& head, int64_t count) {
    constexpr int N = VISIONLLM_LANES;
    for (int64_t row = 0; row < Rows; ++row) {
        // Rows that only fill up the block repeat the last one.
        const int64_t given = head.first_row + (row < count ? row : count - 1);
        const float* from = head.query + given * call.heads * call.depth;
        int64_t at = 0;
        for (; at + N <= call.depth; at += N) {
            Form::store(head.queries + at / kTile * Rows * kTile + row * kTile, at % kTile,
                load_as<Vector>(from + at) * call.log_scale);
        }
        for (; at < places<Form>(call.depth) * Form::kNumbers; ++at) {
            Form::store_one(head.queries + at / kTile * Rows * kTile + row * kTile, at % kTile,
                at < call.depth ? from[at] * call.log_scale : 0.0f);
        }
    }
}

template <class Form, int Rows, int Vectors>
VISIONLLM_INLINE void score_panel(
    const UnmaskedHead& head, const float* panel, int64_t depth, float* scores) {
    multiply_panel<false, Rows, Vectors, Form>(
        head.queries, panel, places<Form>(depth < kTile ? depth : kTile), scores);
    for (int64_t at = kTile; at < depth; at += kTile) {
        multiply_panel<true, Rows, Vectors, Form>(head.queries + at * Rows,
            panel + places<Form>(at) * kPanel,
            places<Form>(depth - at < kTile ? depth - at : kTile), scores);
    }
}

// Scores -> weights, not yet divided by their sum; shares[row] is one over the sum of a row's. Step by
// step for all rows, so that no row waits for the one before it.
template <class Form, int Rows>
VISIONLLM_INLINE void weigh_rows(const UnmaskedAttention& call, const UnmaskedHead& head,
    int64_t count, int64_t bias_left, float* shares) {
    constexpr int N = VISIONLLM_LANES;
    constexpr float kLog2E = 1.44269504088896341f;
    Vector found[Rows];
    float largest[Rows];
    for (int64_t row = 0; row < count; ++row) {
        const int64_t given = (head.first_row + row) * call.keys;
        Vector high = broadcast<Vector>(-3.4e38f);
        for (int64_t key = 0; key < call.keys; key += N) {
            float* at = head.weights + row * kTile + column(key, Rows * kTile);
            Vector scores = load_as<Vector>(at);
            if (call.bias != nullptr) {
                const int64_t from = given + key;
                scores += kLog2E * load_bias(head.bias + from, bias_left - from);
            }
            if (key + N > call.keys) scores = hide_from(scores, call.keys - key);
            if (call.bias != nullptr || key + N > call.keys) store_as(at, scores);
            high = choose<Vector>(scores > high, scores, high);
        }
        found[row] = high;
    }
    for (int64_t row = 0; row < count; ++row) largest[row] = largest_lane<N>(found[row]);
    for (int64_t row = 0; row < count; ++row) {
        Vector sum = {};
        for (int64_t key = 0; key < call.keys; key += N) {
            // A weight takes no more room than its score, so none is written that is still read.
            float* own = head.weights + key / kTile * Rows * kTile + row * kTile;
            const Vector weight = exp2_of<N>(load_as<Vector>(own + key % kTile) - largest[row]);
            Form::store(own, key % kTile, weight);
            sum += weight;
        }
        found[row] = sum;
    }
    for (int64_t row = 0; row < count; ++row) shares[row] = 1.0f / sum_of_lanes<N>(found[row]);
}

template <class Form, int Rows, int Vectors>
VISIONLLM_INLINE void mix_panel(
    const UnmaskedAttention& call, const UnmaskedHead& head, const float* panel, float* sums) {
    const int64_t tile = kTile * round_up(call.depth, kPanel);
    multiply_panel<false, Rows, Vectors, Form>(
        head.weights, panel, places<Form>(call.keys < kTile ? call.keys : kTile), sums);
    for (int64_t key = kTile; key < call.keys; key += kTile) {
        multiply_panel<true, Rows, Vectors, Form>(head.weights + key * Rows,
            panel + key / kTile * tile,
            places<Form>(call.keys - key < kTile ? call.keys - key : kTile), sums);
    }
}

// `count` rows, at most Rows.
template <class Form, int Rows>
void attend_block(
    const UnmaskedAttention& call, const UnmaskedHead& head, int64_t count, int64_t bias_left) {
    constexpr int N = VISIONLLM_LANES;
    load_query_rows<Form, Rows>(call, head, count);
    for (int64_t key = 0; key < call.keys; key += kPanel) {
        const float* panel = head.keys + key * places<Form>(call.depth);
        float* scores = head.weights + column(key, Rows * kTile);
        if (call.keys - key > N) {
            score_panel<Form, Rows, 2>(head, panel, call.depth, scores);
        } else {
            score_panel<Form, Rows, 1>(head, panel, call.depth, scores);
        }
    }
    float shares[Rows];
    weigh_rows<Form, Rows>(call, head, count, bias_left, shares);
    for (int64_t at = 0; at < call.depth; at += kPanel) {
        const float* panel = head.values + at * kTile;
        float* sums = head.sums + column(at, Rows * kTile);
        if (call.depth - at > N) {
            mix_panel<Form, Rows, 2>(call, head, panel, sums);
        } else {
            mix_panel<Form, Rows, 1>(call, head, panel, sums);
        }
    }
    for (int64_t row = 0; row < count; ++row) {
        float* to = head.y + (head.first_row + row) * call.heads * call.depth;
        const float* from = head.sums + row * kTile;
        int64_t at = 0;
        for (; at + N <= call.depth; at += N) {
            store_as(to + at, load_as<Vector>(from + column(at, Rows * kTile)) * shares[row]);
        }
        for (; at < call.depth; ++at) to[at] = from[column(at, Rows * kTile)] * shares[row];
    }
}

// Rows are spread evenly over as few blocks as hold them, so blocks are at least half full; a block
// that is smaller still fills up.
template <class Form, int Rows>
void attend_sized(
    const UnmaskedAttention& call, const UnmaskedHead& head, int64_t count, int64_t bias_left) {
    if constexpr (Rows > kBlockRows / 2) {
        if (count < Rows) return attend_sized<Form, Rows - 1>(call, head, count, bias_left);
    }
    attend_block<Form, Rows>(call, head, count, bias_left);
}

// Rows of one head lie far apart, which no processor foresees: brings `count` of them nearer.
template <int Write>
VISIONLLM_INLINE void prefetch_rows(
    const float* from, int64_t stride, int64_t count, int64_t depth) {
    constexpr int64_t kLine = 16;  // floats
    for (int64_t row = 0; row < count; ++row, from += stride) {
        for (int64_t at = 0; at < depth; at += kLine) __builtin_prefetch(from + at, Write, 2);
    }
}

// Rows first .. last - 1 of what the head after head `i` reads and writes.
VISIONLLM_INLINE void prefetch_head(
    const UnmaskedAttention& call, int64_t i, int64_t first, int64_t last) {
    const int64_t width = call.heads * call.depth, next = i + 1;
    const int64_t at =
        (next / call.heads * call.rows + first) * width + next % call.heads * call.depth;
    prefetch_rows<0>(call.query + at, width, last - first, call.depth);
    prefetch_rows<0>(call.key + at, width, last - first, call.depth);
    prefetch_rows<0>(call.value + at, width, last - first, call.depth);
    prefetch_rows<1>(call.y + at, width, last - first, call.depth);
}

template <class Form>
void unmasked_attention_attend(
    const UnmaskedAttention& call, const UnmaskedAttentionTask& task, float* workspace) {
    const int64_t parts = round_up(call.depth, kTile) / kTile, width = call.heads * call.depth;
    const int64_t wide = round_up(call.depth, kPanel);
    const int64_t rows = task.last_row - task.first_row;
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    // Worth it where a head is small; a large one takes long enough by itself.
    const bool nearer = call.rows == call.keys && call.keys <= kTile && call.depth <= kTile;
    UnmaskedHead head{};
    head.queries = workspace;
    head.sums = head.queries + parts * kBlockRows * kTile;
    head.weights = head.sums + parts * kBlockRows * kTile;
    float* const keys = head.weights + kBlockRows * round_up(call.keys, kTile);
    float* const values = keys + round_up(call.keys, kPanel) * call.depth;
    float* const room = values + round_up(call.keys, kTile) * wide;
    head.keys = keys;
    head.values = values;
    for (int64_t i = task.first_head; i < task.last_head; ++i) {
        const int64_t entry = i / call.heads, own = i % call.heads * call.depth;
        head.query = call.query + entry * call.rows * width + own;
        head.y = call.y + entry * call.rows * width + own;
        int64_t bias_left = 0;
        if (call.bias != nullptr) {
            const int64_t plane = call.bias_index[entry % call.repeat] * call.bias_heads +
                                  (call.bias_heads > 1 ? i % call.heads : 0);
            head.bias = call.bias + plane * call.rows * call.keys;
            bias_left = (call.biases * call.bias_heads - plane) * call.rows * call.keys;
        }
        const int64_t given = entry * call.keys * width + own;
        Form::pack_keys(call.key + given, width, call.keys, call.depth, keys, room);
        for (int64_t key = 0; key < call.keys; key += kTile) {
            Form::pack_values(call.value + given + key * width, width,
                call.keys - key < kTile ? call.keys - key : kTile, call.depth, values + key * wide,
                room);
        }
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * rows / blocks, last = (block + 1) * rows / blocks;
            head.first_row = task.first_row + first;
            if (nearer && i + 1 < task.last_head) prefetch_head(call, i, first, last);
            if (!nearer && last < rows) {
                prefetch_rows<0>(head.query + (task.first_row + last) * width, width,
                    rows - last < kBlockRows ? rows - last : kBlockRows, call.depth);
            }
            attend_sized<Form, kBlockRows>(call, head, last - first, bias_left);
        }
    }
}

}  // namespace attention
}  // namespace
}  // namespace visionllm::cpu
#endif

// Level 4 without products of bytes: the activations are rounded and become floats again, and the
// rest is level 1. The portable set's way, and the AVX2 set's for blocks of 16.
// Room: [rows][K] floats.
#pragma once

namespace visionllm::cpu::quantized_linear {
namespace {

size_t portable_room_bytes(const QuantizedLinear& call) {
    return static_cast<size_t>(call.rows * call.inputs) * sizeof(float);
}

void portable_round_rows(const QuantizedLinear& call, int64_t from, int64_t to) {
    constexpr int N = 4;
    typedef Lanes<N>::F F;
    typedef Lanes<N>::U U;
    // Adding 1.5 * 2^23 leaves no bits behind the point: the nearest whole number, halves to even.
    const F round = broadcast<F>(12582912.0f);
    for (int64_t at = from * call.inputs; at < to * call.inputs; at += call.block) {
        const float* x = call.x + at;
        float* rounded = static_cast<float*>(call.room) + at;
        F most = {};
        for (int64_t i = 0; i < call.block; i += N) {
            const U size = load_as<U>(x + i) & 0x7fffffffu;
            const F sizes = load_as<F>(&size);
            most = choose<F>(sizes > most, sizes, most);
        }
        float largest = 0;
        for (int lane = 0; lane < N; ++lane) largest = most[lane] > largest ? most[lane] : largest;
        const float inverse = largest < kSmallest ? 0.0f : 127.0f / largest;
        const float scale = largest * kOver127;
        for (int64_t i = 0; i < call.block; i += N) {
            const F scaled = load_as<F>(x + i) * inverse;
            store_as(rounded + i, ((scaled + round) - round) * scale);
        }
    }
}

QuantizedLinearTasks portable_rounded_tasks(const QuantizedLinear& call) {
    return exact_tasks(call);
}

void portable_rounded_task(const QuantizedLinear& call, int64_t from, int64_t to, void* room) {
    QuantizedLinear rounded = call;
    rounded.x = static_cast<const float*>(call.room);
    exact_task(rounded, from, to, room);
}

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

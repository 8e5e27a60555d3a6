// CUDA's vocabulary on a CPU, enough to run our kernels as they are: blocks one after the other,
// the threads of a block as coroutines that meet at __syncthreads.
//
// What it sees beyond numbers: 16-byte access to an address that is no multiple of 16, a barrier
// that some threads of a block never reach, and (by running the threads in another order) results
// that depend on the order between barriers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __global__ __attribute__((visibility("default")))
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

using std::max;
using std::min;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

inline const char* failure = nullptr;

inline void* dynamic_shared() {
  alignas(16) static unsigned char memory[48 * 1024];
  return memory;
}

template <typename To, typename From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float float_from_f16(unsigned short bits) {
  const unsigned exponent = bits >> 10 & 31u, fraction = bits & 1023u;
  float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
               : exponent < 31
                   ? std::ldexp(static_cast<float>(1024u + fraction), static_cast<int>(exponent) - 25)
               : fraction == 0 ? INFINITY : NAN;
  return bits & 0x8000u ? -size : size;
}

// To nearest, ties to even.
inline unsigned short f16_from_float(float x) {
  const unsigned sign = std::signbit(x) ? 0x8000u : 0u;
  const float size = std::fabs(x);
  unsigned bits;
  if (std::isnan(size)) {
    bits = 0x7fffu;
  } else if (size >= 65520.0f) {
    bits = 0x7c00u;
  } else if (size < 6.103515625e-05f) {
    bits = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 24)));
  } else {
    int exponent;
    std::frexp(size, &exponent);
    const float whole = std::nearbyint(std::ldexp(size, 11 - exponent));
    bits = static_cast<unsigned>(exponent + 13) * 1024u + static_cast<unsigned>(whole);
  }
  return static_cast<unsigned short>(sign | bits);
}

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline Thread* current;

inline void to_scheduler() { swapcontext(&current->context, &scheduler); }

}  // namespace host

inline void __syncthreads() { host::to_scheduler(); }

template <typename T>
T __ldg(const T* from) {
  if (sizeof(T) > 4 && reinterpret_cast<std::uintptr_t>(from) % sizeof(T) != 0) {
    host::failure = "a vector load from an unaligned address";
  }
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline int atomicAdd(int* to, int value) {
  const int before = *to;
  *to += value;
  return before;
}

inline float __uint_as_float(unsigned bits) { return host::same_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return host::same_bits<unsigned>(x); }

namespace host {

struct Body {
  virtual void run() const = 0;

 protected:
  ~Body() = default;
};

inline const Body* body;

inline void enter() {
  body->run();
  current->done = true;
}

// Run one block. `reversed` lets the threads run from the last to the first between barriers.
inline void run_block(const Body& of_thread, bool reversed) {
  body = &of_thread;
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  threads.resize(count);
  for (Thread& thread : threads) {
    thread.stack.resize(1 << 16);
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  std::memset(dynamic_shared(), 0xff, 48 * 1024);  // NaN: nothing may rely on fresh zeros
  for (unsigned finished = 0; finished < count;) {
    finished = 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned index = reversed ? count - 1 - i : i;
      current = &threads[index];
      threadIdx = {index, 0, 0};
      if (!current->done) swapcontext(&scheduler, &current->context);
      finished += current->done ? 1 : 0;
    }
    if (finished > 0 && finished < count) failure = "a barrier that some threads never reach";
    if (failure != nullptr) return;
  }
}

template <typename A>
A argument(void* const*& pointers, const int*& scalars) {
  if constexpr (std::is_pointer<A>::value) {
    return static_cast<A>(*pointers++);
  } else {
    return *scalars++;
  }
}

template <typename... A>
struct Call final : Body {
  void (*kernel)(A...);
  std::tuple<A...> arguments;

  Call(void (*of)(A...), std::tuple<A...> with) : kernel(of), arguments(with) {}
  void run() const override { std::apply(kernel, arguments); }
};

template <typename... A>
const char* launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block,
                   void* const* pointers, const int* scalars, bool reversed) {
  // Braces: the arguments are read from left to right.
  const Call<A...> call(kernel, std::tuple<A...>{argument<A>(pointers, scalars)...});
  failure = nullptr;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (unsigned z = 0; z < grid[2]; ++z) {
    for (unsigned y = 0; y < grid[1]; ++y) {
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        run_block(call, reversed);
        if (failure != nullptr) return failure;
      }
    }
  }
  return nullptr;
}

}  // namespace host

#define VISIONLLM_HOST_SHIM 1

// What every kernel shares: storage types, conversions, 16-byte and one-element access.
//
// Needs no header of the CUDA toolkit, so that NVRTC alone can compile a kernel. Half precision is a
// storage type only: every sum runs in fp32. A host build (tests) defines VISIONLLM_HOST_SHIM and
// brings its own conversions and CUDA vocabulary.
#ifndef VISIONLLM_EDGE_CUDA_COMMON_CUH
#define VISIONLLM_EDGE_CUDA_COMMON_CUH

// Memory whose size the launch names.
#ifdef VISIONLLM_HOST_SHIM
#define VISIONLLM_DYNAMIC_SHARED(T, NAME) T* NAME = static_cast<T*>(host::dynamic_shared())
#else
#define VISIONLLM_DYNAMIC_SHARED(T, NAME) extern __shared__ T NAME[]
#endif

namespace visionllm {

struct f16 {
  unsigned short bits;
};

struct bf16 {
  unsigned short bits;
};

#ifdef VISIONLLM_HOST_SHIM
inline float float_from_f16(unsigned short bits) { return host::float_from_f16(bits); }
inline unsigned short f16_from_float(float x) { return host::f16_from_float(x); }
#else
__device__ __forceinline__ float float_from_f16(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ __forceinline__ unsigned short f16_from_float(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return float_from_f16(x.bits); }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

__device__ __forceinline__ void from_float(float x, float* out) { *out = x; }
__device__ __forceinline__ void from_float(float x, f16* out) { out->bits = f16_from_float(x); }
__device__ __forceinline__ void from_float(float x, bf16* out) {
  // To nearest, ties to even, by integer arithmetic: sm_75 has no instruction for it.
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<unsigned short>(is_nan ? 0x7fffu : rounded);
}

// One element at a time: any depth, any alignment.
template <typename T>
struct Scalar {
  static constexpr int WIDTH = 1;
  typedef T Raw;

  static __device__ __forceinline__ Raw load(const T* from) { return *from; }

  static __device__ __forceinline__ void add_scaled(const Raw& raw, float scale, float* sum) {
    sum[0] += scale * to_float(raw);
  }

  static __device__ __forceinline__ void store(const float* sum, T* to) { from_float(sum[0], to); }
};

// 16 bytes at a time, through the read-only path: 4 floats or 8 halves. Aligned pointers only.
template <typename T>
struct Vector {
  static constexpr int WIDTH = 16 / static_cast<int>(sizeof(T));
  typedef uint4 Raw;

  static __device__ __forceinline__ Raw load(const T* from) {
    return __ldg(reinterpret_cast<const uint4*>(from));
  }

  static __device__ __forceinline__ void add_scaled(const Raw& raw, float scale, float* sum) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) add_word(words[i], scale, sum + i * WIDTH / 4, T());
  }

  static __device__ __forceinline__ void store(const float* sum, T* to) {
    uint4 raw;
    raw.x = pack(sum, T());
    raw.y = pack(sum + WIDTH / 4, T());
    raw.z = pack(sum + WIDTH / 2, T());
    raw.w = pack(sum + 3 * WIDTH / 4, T());
    *reinterpret_cast<uint4*>(to) = raw;
  }

 private:
  static __device__ __forceinline__ void add_word(unsigned word, float scale, float* sum, float) {
    sum[0] += scale * __uint_as_float(word);
  }

  // Little-endian: the element at the lower address is the lower half of the word.
  static __device__ __forceinline__ void add_word(unsigned word, float scale, float* sum, f16) {
    sum[0] += scale * float_from_f16(static_cast<unsigned short>(word));
    sum[1] += scale * float_from_f16(static_cast<unsigned short>(word >> 16));
  }

  static __device__ __forceinline__ void add_word(unsigned word, float scale, float* sum, bf16) {
    sum[0] += scale * __uint_as_float(word << 16);
    sum[1] += scale * __uint_as_float(word & 0xffff0000u);
  }

  static __device__ __forceinline__ unsigned pack(const float* sum, float) {
    return __float_as_uint(sum[0]);
  }

  template <typename Half>
  static __device__ __forceinline__ unsigned pack(const float* sum, Half) {
    Half low, high;
    from_float(sum[0], &low);
    from_float(sum[1], &high);
    return static_cast<unsigned>(high.bits) << 16 | low.bits;
  }
};

}  // namespace visionllm

#endif  // VISIONLLM_EDGE_CUDA_COMMON_CUH

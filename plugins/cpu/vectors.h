// Vectors of float and int32 in the compiler's own notation (GCC and Clang vector extensions), so
// that one kernel source serves every instruction set, NEON included. No intrinsics but the half
// conversion, no standard library: what is compiled for one instruction set must not leave an
// inline function behind that the linker could take for the others.
//
// Include after VISIONLLM_LANES (16, 8 or 4) is set, <stdint.h> is there, and <immintrin.h> where
// VISIONLLM_F16C promises the conversions; everything lands in the including namespace.

template <int N>
struct Lanes;

#define VISIONLLM_DEFINE_LANES(N)                                  \
    template <>                                                    \
    struct Lanes<N> {                                              \
        typedef float F __attribute__((vector_size(N * 4)));       \
        typedef int32_t I __attribute__((vector_size(N * 4)));     \
        typedef uint32_t U __attribute__((vector_size(N * 4)));    \
        typedef uint16_t H __attribute__((vector_size(N * 2)));    \
        typedef int8_t B __attribute__((vector_size(N)));          \
    };
VISIONLLM_DEFINE_LANES(1)
VISIONLLM_DEFINE_LANES(4)
#if VISIONLLM_LANES >= 8
VISIONLLM_DEFINE_LANES(8)
#endif
#if VISIONLLM_LANES >= 16
VISIONLLM_DEFINE_LANES(16)
#endif
#undef VISIONLLM_DEFINE_LANES

#define VISIONLLM_INLINE static inline __attribute__((always_inline))

template <class V>
VISIONLLM_INLINE V load_as(const void* from) {
    V out;
    __builtin_memcpy(&out, from, sizeof(V));
    return out;
}

template <class V>
VISIONLLM_INLINE void store_as(void* to, V vector) {
    __builtin_memcpy(to, &vector, sizeof(V));
}

// Arithmetic with a scalar broadcasts it; adding to zeros makes the vector.
template <class V, class S>
VISIONLLM_INLINE V broadcast(S scalar) {
    return V{} + scalar;
}

template <class V, class M>
VISIONLLM_INLINE V choose(M mask, V yes, V no) {
    return mask ? yes : no;
}

// Element types of a tensor, widened to float on the way in and rounded to nearest even on the way
// out. The scalar forms are the meaning; the vector forms do the same.
struct Float32 {
    typedef float Storage;
    static inline float widen(float x) { return x; }
    static inline float narrow(float x) { return x; }
    template <int N>
    VISIONLLM_INLINE typename Lanes<N>::F load(const float* from) {
        return load_as<typename Lanes<N>::F>(from);
    }
    template <int N>
    VISIONLLM_INLINE void store(float* to, typename Lanes<N>::F vector) {
        store_as(to, vector);
    }
};

VISIONLLM_INLINE uint32_t bits_of(float x) { return load_as<uint32_t>(&x); }
VISIONLLM_INLINE float float_of(uint32_t bits) { return load_as<float>(&bits); }

struct BFloat16 {
    typedef uint16_t Storage;
    static inline float widen(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
    static inline uint16_t narrow(float x) {
        const uint32_t bits = bits_of(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
        return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    template <int N>
    VISIONLLM_INLINE typename Lanes<N>::F load(const uint16_t* from) {
        typedef typename Lanes<N>::U U;
        const U wide = __builtin_convertvector(load_as<typename Lanes<N>::H>(from), U) << 16;
        return load_as<typename Lanes<N>::F>(&wide);
    }
    template <int N>
    VISIONLLM_INLINE void store(uint16_t* to, typename Lanes<N>::F vector) {
        for (int i = 0; i < N; ++i) to[i] = narrow(vector[i]);
    }
};

struct Float16 {
    typedef uint16_t Storage;
    // Source: IEEE 754; the multiplication renormalises subnormal halves exactly.
    static inline float widen(uint16_t x) {
        const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, rest = x & 0x7fffu;
        if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
        const float scaled = float_of(rest << 13) * float_of(0x77800000u);  // times 2^112
        return float_of(bits_of(scaled) | sign);
    }
    static inline uint16_t narrow(float x) {
        const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
        if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
        if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
        if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded bits at the bottom
            return static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u));
        }
        return static_cast<uint16_t>(
            sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
    }
    template <int N>
    VISIONLLM_INLINE typename Lanes<N>::F load(const uint16_t* from) {
        typename Lanes<N>::F out;
#if defined(VISIONLLM_F16C)
        if constexpr (N == 8) {
            out = reinterpret_cast<typename Lanes<N>::F>(
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
            return out;
        }
#endif
#if defined(VISIONLLM_F16C) && VISIONLLM_LANES == 16
        if constexpr (N == 16) {
            out = reinterpret_cast<typename Lanes<N>::F>(
                // The masked form: GCC's plain one warns about an undefined operand.
                _mm512_maskz_cvtph_ps(static_cast<__mmask16>(-1),
                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
            return out;
        }
#endif
        for (int i = 0; i < N; ++i) out[i] = widen(from[i]);
        return out;
    }
    template <int N>
    VISIONLLM_INLINE void store(uint16_t* to, typename Lanes<N>::F vector) {
#if defined(VISIONLLM_F16C)
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        if constexpr (N == 8) {
            const __m128i halves = _mm256_cvtps_ph(reinterpret_cast<__m256>(vector), kNearest);
            return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
        }
#endif
#if defined(VISIONLLM_F16C) && VISIONLLM_LANES == 16
        if constexpr (N == 16) {
            const __m256i halves = _mm512_maskz_cvtps_ph(
                static_cast<__mmask16>(-1), reinterpret_cast<__m512>(vector), kNearest);
            return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
        }
#endif
        for (int i = 0; i < N; ++i) to[i] = narrow(vector[i]);
    }
};

// Whole numbers from -127 to 127; what a scale turns into the tensor's numbers is the kernel's affair.
struct Int8 {
    typedef int8_t Storage;
    static inline float widen(int8_t x) { return static_cast<float>(x); }
    static inline int8_t narrow(float x) {
        const float kept = x > -127.0f ? (x < 127.0f ? x : 127.0f) : -127.0f;
        // Adding 1.5 * 2^23 rounds to nearest even.
        return static_cast<int8_t>((kept + 12582912.0f) - 12582912.0f);
    }
    template <int N>
    VISIONLLM_INLINE typename Lanes<N>::F load(const int8_t* from) {
        typedef typename Lanes<N>::B B;
        typedef typename Lanes<N>::I I;
        typedef typename Lanes<N>::F F;
        // GCC widens bytes one by one.
#if VISIONLLM_LANES >= 8
        if constexpr (N == 8) {
            return reinterpret_cast<F>(_mm256_cvtepi32_ps(
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
        }
#endif
#if VISIONLLM_LANES == 16
        if constexpr (N == 16) {
            constexpr __mmask16 kAll = static_cast<__mmask16>(-1);
            return reinterpret_cast<F>(_mm512_maskz_cvtepi32_ps(kAll,
                _mm512_maskz_cvtepi8_epi32(
                    kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
        }
#endif
        return __builtin_convertvector(__builtin_convertvector(load_as<B>(from), I), F);
    }
    template <int N>
    VISIONLLM_INLINE void store(int8_t* to, typename Lanes<N>::F vector) {
        typedef typename Lanes<N>::B B;
        typedef typename Lanes<N>::F F;
        typedef typename Lanes<N>::I I;
        const F low = broadcast<F>(-127.0f), high = broadcast<F>(127.0f);
        const F above = choose<F>(vector > low, vector, low);
        const F kept = choose<F>(above < high, above, high);
        const F rounded = (kept + 12582912.0f) - 12582912.0f;
        store_as(to, __builtin_convertvector(__builtin_convertvector(rounded, I), B));
    }
};

// One vector of x and one of y from x0 y0 x1 y1 ...
template <int N>
VISIONLLM_INLINE void split_pairs(
    const float* from, typename Lanes<N>::F& x, typename Lanes<N>::F& y) {
    typedef typename Lanes<N>::F F;
    const F low = load_as<F>(from), high = load_as<F>(from + N);
#if defined(__clang__)
    if constexpr (N == 4) {
        x = __builtin_shufflevector(low, high, 0, 2, 4, 6);
        y = __builtin_shufflevector(low, high, 1, 3, 5, 7);
    } else if constexpr (N == 8) {
        x = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
        y = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
    } else {
        x = __builtin_shufflevector(
            low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        y = __builtin_shufflevector(
            low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
#else
    typename Lanes<N>::I even;
    for (int i = 0; i < N; ++i) even[i] = 2 * i;
    x = __builtin_shuffle(low, high, even);
    y = __builtin_shuffle(low, high, even + 1);
#endif
}

// x0 y0 x1 y1 ... from one vector of x and one of y.
template <int N>
VISIONLLM_INLINE void join_pairs(typename Lanes<N>::F x, typename Lanes<N>::F y, float* to) {
    typedef typename Lanes<N>::F F;
#if defined(__clang__)
    if constexpr (N == 4) {
        store_as<F>(to, __builtin_shufflevector(x, y, 0, 4, 1, 5));
        store_as<F>(to + N, __builtin_shufflevector(x, y, 2, 6, 3, 7));
    } else {
        static_assert(N == 8);
        store_as<F>(to, __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11));
        store_as<F>(to + N, __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15));
    }
#else
    typename Lanes<N>::I turns;
    for (int i = 0; i < N; ++i) turns[i] = i / 2 + i % 2 * N;
    store_as<F>(to, __builtin_shuffle(x, y, turns));
    store_as<F>(to + N, __builtin_shuffle(x, y, turns + N / 2));
#endif
}

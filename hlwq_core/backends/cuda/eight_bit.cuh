// Rounding to 8 bits. Defined by the caller: EIGHT, 0 float8 e4m3, 1 int8.

#if EIGHT == 0
#define LIMIT 448.0f
#else
#define LIMIT 127.0f
#endif

#if EIGHT == 0 && !defined(HLWQ_HOST)
// Two values at once; `low` goes into the low byte.
static __device__ __forceinline__ unsigned int to_e4m3_pair(float low, float high) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

// The 16 values of a lane, one a byte.
static __device__ __forceinline__ Vector to_eight_bits(const float* v) {
    union { unsigned int words[4]; Vector vector; } whole;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if EIGHT == 0
        whole.words[i] = to_e4m3_pair(v[4 * i], v[4 * i + 1]) | (to_e4m3_pair(v[4 * i + 2], v[4 * i + 3]) << 16);
#else
        whole.words[i] = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float rounded = rintf(fminf(fmaxf(v[4 * i + k], -127.0f), 127.0f));
            whole.words[i] |= ((unsigned int)(int)rounded & 0xffu) << (8 * k);
        }
#endif
    }
    return whole.vector;
}

// How kernels read bfloat16 and float32: both widen to float, sixteen bytes at a time where the address allows it.
#pragma once
#include "surogate_device.h"

struct BFloat16 {
    typedef uint16_t Stored;
    static constexpr int PER_LOAD = 8;
    static SUROGATE_INLINE float value(Stored raw) { return __uint_as_float(uint32_t(raw) << 16); }
    // Nearest, ties to even; what is not a number becomes the quiet one that torch writes.
    static SUROGATE_INLINE Stored narrow(float value) {
        const uint32_t bits = __float_as_uint(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
        return Stored((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static SUROGATE_INLINE void spread(const uint4& raw, float* out) {
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = __uint_as_float(words[i] << 16);
            out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
    static SUROGATE_INLINE uint4 gather(const float* values) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = uint32_t(narrow(values[2 * i])) | uint32_t(narrow(values[2 * i + 1])) << 16;
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
};

struct Float32 {
    typedef float Stored;
    static constexpr int PER_LOAD = 4;
    static SUROGATE_INLINE float value(Stored raw) { return raw; }
    static SUROGATE_INLINE Stored narrow(float value) { return value; }
    static SUROGATE_INLINE void spread(const uint4& raw, float* out) {
        out[0] = __uint_as_float(raw.x);
        out[1] = __uint_as_float(raw.y);
        out[2] = __uint_as_float(raw.z);
        out[3] = __uint_as_float(raw.w);
    }
    static SUROGATE_INLINE uint4 gather(const float* values) {
        return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]), __float_as_uint(values[3]));
    }
};

// COUNT neighbours from an address that is a multiple of 16 bytes.
template <class In, int COUNT> SUROGATE_INLINE void load_values(const typename In::Stored* from, float* out) {
#pragma unroll
    for (int i = 0; i < COUNT / In::PER_LOAD; i++)
        In::spread(load16(reinterpret_cast<const uint4*>(from) + i), out + i * In::PER_LOAD);
}

template <class Out, int COUNT> SUROGATE_INLINE void store_values(typename Out::Stored* to, const float* values) {
#pragma unroll
    for (int i = 0; i < COUNT / Out::PER_LOAD; i++) reinterpret_cast<uint4*>(to)[i] = Out::gather(values + i * Out::PER_LOAD);
}

// Sixteen bytes as one word to store.
SUROGATE_INLINE uint4 pack_bytes(const uint8_t* bytes) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = uint32_t(bytes[4 * i]) | uint32_t(bytes[4 * i + 1]) << 8 | uint32_t(bytes[4 * i + 2]) << 16 | uint32_t(bytes[4 * i + 3]) << 24;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The update of all parameters in one launch. 16 threads have one block of 256 values, 16 values each, so that codes (1 byte), bfloat16
// (2) and float32 (4) all come in loads of 16 bytes; the scale of a block is a maximum over these 16 lanes. The tables lie in shared
// memory; each thread block fills them once and then goes through its share of the arena.
#include "adam8.h"

namespace {
using namespace adam8;
constexpr int THREADS = 256, OWN = 16, LANES = BLOCK / OWN, GROUPS = THREADS / LANES;

// 16 bytes of data that are read once and may be written by the same thread later.
SUROGATE_INLINE uint4 take16(const void* from) {
#if defined(__CUDACC__)
    return __ldcs(static_cast<const uint4*>(from));
#else
    if (int64_t(from) & 15) return make_uint4(~0u, ~0u, ~0u, ~0u);  // a GPU stops at such an address: let a test see it
    return *static_cast<const uint4*>(from);
#endif
}
SUROGATE_INLINE void put16(void* to, const uint4& value) {
#if defined(__CUDACC__)
    __stcs(static_cast<uint4*>(to), value);
#else
    *static_cast<uint4*>(to) = value;
#endif
}

// 16 values of 1, 2 or 4 bytes, in their integer bits.
template <class Value>
SUROGATE_INLINE void take(const Value* from, Value* to) {
    constexpr int PER_WORD = 4 / sizeof(Value), BITS = 8 * sizeof(Value);
#pragma unroll
    for (int i = 0; i < int(sizeof(Value)); i++) {
        const uint4 raw = take16(from + i * 4 * PER_WORD);
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int k = 0; k < 4 * PER_WORD; k++) to[i * 4 * PER_WORD + k] = Value(words[k / PER_WORD] >> (k % PER_WORD * BITS));
    }
}
template <class Value>
SUROGATE_INLINE void put(Value* to, const Value* from) {
    constexpr int PER_WORD = 4 / sizeof(Value), BITS = 8 * sizeof(Value);
    constexpr uint32_t MASK = 0xffffffffu >> (32 - BITS);
#pragma unroll
    for (int i = 0; i < int(sizeof(Value)); i++) {
        uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < 4 * PER_WORD; k++)
            words[k / PER_WORD] |= (uint32_t(from[i * 4 * PER_WORD + k]) & MASK) << (k % PER_WORD * BITS);
        put16(to + i * 4 * PER_WORD, make_uint4(words[0], words[1], words[2], words[3]));
    }
}

// Values `at` to `at` + 16 of a tensor of `count`; zeros beyond. Whole and aligned ones in loads of 16 bytes.
template <class Value>
SUROGATE_INLINE void take_some(const void* tensor, int64_t at, int64_t count, Value* to) {
    const Value* from = static_cast<const Value*>(tensor) + at;
    if (at + OWN <= count && (int64_t(from) & 15) == 0) return take(from, to);
#pragma unroll
    for (int i = 0; i < OWN; i++) to[i] = at + i < count ? from[i] : Value(0);
}
template <class Value>
SUROGATE_INLINE void put_some(void* tensor, int64_t at, int64_t count, const Value* from) {
    Value* to = static_cast<Value*>(tensor) + at;
    if (at + OWN <= count && (int64_t(to) & 15) == 0) return put(to, from);
#pragma unroll
    for (int i = 0; i < OWN; i++)
        if (at + i < count) to[i] = from[i];
}

SUROGATE_INLINE void floats(const uint32_t* bits, float* values) {
#pragma unroll
    for (int i = 0; i < OWN; i++) values[i] = __uint_as_float(bits[i]);
}
SUROGATE_INLINE void bits_of(const float* values, uint32_t* bits) {
#pragma unroll
    for (int i = 0; i < OWN; i++) bits[i] = __float_as_uint(values[i]);
}

template <class Table>
SUROGATE_INLINE void decode16(const Table& table, const uint8_t* codes, float absmax, float* values) {
    uint8_t own[OWN];
    take(codes, own);
#pragma unroll
    for (int i = 0; i < OWN; i++) values[i] = table.values[own[i]] * absmax;
}
template <class Table>
SUROGATE_INLINE void encode16(const Table& table, float absmax, const float* values, uint8_t* codes) {
    const float factor = 1.0f / max(absmax, TINY);
    uint8_t own[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const uint32_t bits = __float_as_uint(values[i] * factor);
        own[i] = code_of(bits, table.cells[cell_of<Table>(bits)]);
    }
    put(codes, own);
}
SUROGATE_INLINE float over_lanes(uint32_t most) {
#pragma unroll
    for (int lanes = LANES / 2; lanes; lanes /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
    return __uint_as_float(most);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) adam8_update(const Arena* arena_, int64_t first, int64_t last) {
    __shared__ Tables tables;
    const Arena arena = *arena_;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(arena.tables);
    for (int i = threadIdx.x; i < int(sizeof(Tables) / 4); i += THREADS) reinterpret_cast<uint32_t*>(&tables)[i] = from[i];
    __syncthreads();
    const Hyper hyper = *arena.hyper;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const int64_t stride = int64_t(gridDim.x) * GROUPS;
    // Both halves of a warp go through the loop equally often: they shuffle together.
    for (int64_t base = first + int64_t(blockIdx.x) * GROUPS; base < last; base += stride) {
        const int64_t block = min(base + group, last - 1), position = block * BLOCK + lane * OWN;
        const Segment segment = arena.segments[arena.owners[block]];
        const int64_t at = position - segment.start;
        const bool coded = block < arena.coded, writes = base + group < last;
        float p[OWN], g[OWN], m[OWN], v[OWN];
        if (segment.bfloat16) {
            uint16_t raw[OWN];
            take_some(segment.param, at, segment.count, raw);
            from_bfloat16<OWN>(raw, p);
            if (arena.remainder) {
                short remainder[OWN];
                take(arena.remainder + position, remainder);
                add_remainder<OWN>(remainder, p);
            }
            if (segment.grad) take_some(segment.grad, at, segment.count, raw);
            from_bfloat16<OWN>(raw, g);
        } else {
            uint32_t raw[OWN];
            take_some(segment.param, at, segment.count, raw);
            floats(raw, p);
            if (segment.grad) take_some(segment.grad, at, segment.count, raw);
            floats(raw, g);
        }
        if (!segment.grad)
            for (int i = 0; i < OWN; i++) g[i] = 0.0f;
        const int64_t exact = position - arena.coded * BLOCK;
        if (coded) {
            decode16(tables.m, arena.m_codes + position, arena.m_absmax[block], m);
            decode16(tables.v, arena.v_codes + position, arena.v_absmax[block], v);
        } else {
            uint32_t raw[OWN];
            take(reinterpret_cast<const uint32_t*>(arena.m_exact + exact), raw);
            floats(raw, m);
            take(reinterpret_cast<const uint32_t*>(arena.v_exact + exact), raw);
            floats(raw, v);
        }
        update<OWN>(hyper, segment.decay, g, p, m, v);
        const float m_absmax = over_lanes(largest<OWN>(m)), v_absmax = over_lanes(largest<OWN>(v));
        if (!writes) continue;
        if (coded) {
            if (lane == 0) arena.m_absmax[block] = m_absmax, arena.v_absmax[block] = v_absmax;
            encode16(tables.m, m_absmax, m, arena.m_codes + position);
            encode16(tables.v, v_absmax, v, arena.v_codes + position);
        } else {
            uint32_t raw[OWN];
            bits_of(m, raw);
            put(reinterpret_cast<uint32_t*>(arena.m_exact + exact), raw);
            bits_of(v, raw);
            put(reinterpret_cast<uint32_t*>(arena.v_exact + exact), raw);
        }
        if (segment.bfloat16) {
            uint16_t raw[OWN];
            if (arena.remainder) {
                short remainder[OWN];
                split<OWN>(p, remainder, raw);
                put(arena.remainder + position, remainder);
            } else {
                short noise[OWN];
                take(arena.noise + position % ROW, noise);
                round_by<OWN>(p, noise, arena.noise_of_rows[position / ROW], raw);
            }
            put_some(segment.param, at, segment.count, raw);
        } else {
            uint32_t raw[OWN];
            bits_of(p, raw);
            put_some(segment.param, at, segment.count, raw);
        }
    }
}

#if !defined(__CUDACC__)
// The CPU's own build: blocks `first` to `last`, for one thread. The compiler makes vectors of the loops over a block, for each of the
// processors named here; only the lookups go one by one.
#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

// Lookups of a block, one by one: instructions that gather are slower on many processors.
template <class Index, class Value>
SUROGATE_INLINE void look_up(const Value* table, const Index* places, Value* found) {
    for (int i = 0; i < BLOCK; i++) {
        __asm__("" ::: "memory");
        found[i] = table[places[i]];
    }
}
template <class Table>
SUROGATE_INLINE void decode_block(const Table& table, const uint8_t* codes, float absmax, float* values) {
    look_up(table.values, codes, values);
    for (int i = 0; i < BLOCK; i++) values[i] *= absmax;
}
template <class Table>
SUROGATE_INLINE void encode_block(const Table& table, float absmax, const float* values, uint8_t* codes) {
    const float factor = 1.0f / max(absmax, TINY);
    uint32_t bits[BLOCK], entries[BLOCK];
    uint16_t cells[BLOCK];
    for (int i = 0; i < BLOCK; i++) bits[i] = __float_as_uint(values[i] * factor);
    for (int i = 0; i < BLOCK; i++) cells[i] = uint16_t(cell_of<Table>(bits[i]));
    look_up(table.cells, cells, entries);
    for (int i = 0; i < BLOCK; i++) codes[i] = code_of(bits[i], entries[i]);
}

extern "C" FOR_EACH_PROCESSOR void adam8_blocks(const Arena* arena, int64_t first, int64_t last) {
    const Hyper hyper = *arena->hyper;
    const Tables& tables = *arena->tables;
    float p[BLOCK], g[BLOCK], m[BLOCK], v[BLOCK];
    uint16_t raw[BLOCK];
    for (int64_t block = first; block < last; block++) {
        const int64_t position = block * BLOCK;
        const Segment& segment = arena->segments[arena->owners[block]];
        const int64_t at = position - segment.start;
        const int count = int(min(int64_t(BLOCK), segment.count - at));
        const bool coded = block < arena->coded;
        short* remainder = segment.bfloat16 && arena->remainder ? arena->remainder + position : nullptr;
        if (count < BLOCK) memset(p, 0, sizeof p), memset(g, 0, sizeof g), memset(raw, 0, sizeof raw);
        if (segment.bfloat16) {
            memcpy(raw, static_cast<const uint16_t*>(segment.param) + at, count * 2);
            from_bfloat16<BLOCK>(raw, p);
            if (remainder) add_remainder<BLOCK>(remainder, p);
            if (segment.grad) memcpy(raw, static_cast<const uint16_t*>(segment.grad) + at, count * 2);
            from_bfloat16<BLOCK>(raw, g);
        } else {
            memcpy(p, static_cast<const float*>(segment.param) + at, count * 4);
            if (segment.grad) memcpy(g, static_cast<const float*>(segment.grad) + at, count * 4);
        }
        if (!segment.grad) memset(g, 0, sizeof g);
        uint8_t *m_codes = arena->m_codes + position, *v_codes = arena->v_codes + position;
        const int64_t exact = position - arena->coded * BLOCK;
        if (coded) {
            const float m_scale = arena->m_absmax[block], v_scale = arena->v_absmax[block];
            decode_block(tables.m, m_codes, m_scale, m);
            decode_block(tables.v, v_codes, v_scale, v);
        } else {
            memcpy(m, arena->m_exact + exact, sizeof m);
            memcpy(v, arena->v_exact + exact, sizeof v);
        }
        update<BLOCK>(hyper, segment.decay, g, p, m, v);
        if (coded) {
            const float m_absmax = __uint_as_float(largest<BLOCK>(m)), v_absmax = __uint_as_float(largest<BLOCK>(v));
            arena->m_absmax[block] = m_absmax, arena->v_absmax[block] = v_absmax;
            encode_block(tables.m, m_absmax, m, m_codes);
            encode_block(tables.v, v_absmax, v, v_codes);
        } else {
            memcpy(arena->m_exact + exact, m, sizeof m);
            memcpy(arena->v_exact + exact, v, sizeof v);
        }
        if (segment.bfloat16) {
            if (remainder)
                split<BLOCK>(p, remainder, raw);
            else
                round_by<BLOCK>(p, arena->noise + position % ROW, arena->noise_of_rows[position / ROW], raw);
            memcpy(static_cast<uint16_t*>(segment.param) + at, raw, count * 2);
        } else {
            memcpy(static_cast<float*>(segment.param) + at, p, count * 4);
        }
    }
}

extern "C" uint32_t host_code(const Tables* tables, int moment, float value) {
    const uint32_t bits = __float_as_uint(value);
    if (moment == 0) return code_of(bits, tables->m.cells[cell_of<Table<2>>(bits)]);
    return code_of(bits, tables->v.cells[cell_of<Table<1>>(bits)]);
}
#endif

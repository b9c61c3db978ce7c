// Grid, block and warp on the host, for tests: each thread of a block is a fiber. Blocks run one after another.
// Include from one translation unit only: it defines the scheduler.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace surogate_host {
enum State { RUNS, AT_BLOCK, AT_WARP, DONE };
constexpr unsigned MOST_THREADS = 1024, STACK = 128 << 10;
struct Fiber {
    ucontext_t context;
    State state;
};
static std::vector<Fiber> fibers(MOST_THREADS);
static std::vector<char> stacks;
static ucontext_t scheduler;
static unsigned current;
static uint32_t exchanged[MOST_THREADS];
static void* entry;
static const int64_t* arguments;

static void body() {
    const int64_t* a = arguments;
    typedef int64_t I;
    typedef void (*Kernel)(I, I, I, I, I, I, I, I, I, I, I, I, I);
    // Kernels take 64-bit integers and addresses only, at most thirteen; the caller's surplus ones are ignored.
    reinterpret_cast<Kernel>(entry)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]);
    fibers[current].state = DONE;
}

static void wait(State state) {
    fibers[current].state = state;
    swapcontext(&fibers[current].context, &scheduler);
}

static int run_block(unsigned threads) {
    for (unsigned t = 0; t < threads; t++) {
        Fiber& fiber = fibers[t];
        fiber.state = RUNS;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks.data() + size_t(t) * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, body, 0);
    }
    for (;;) {
        for (current = 0; current < threads; current++) {
            if (fibers[current].state != RUNS) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current].context);
        }
        unsigned count[4] = {0, 0, 0, 0};
        for (unsigned t = 0; t < threads; t++) count[fibers[t].state]++;
        if (count[DONE] == threads) return 0;
        bool moved = false;
        for (unsigned first = 0; first < threads; first += 32) {
            const unsigned last = std::min(first + 32, threads);
            bool all = true;
            for (unsigned t = first; t < last; t++) all = all && fibers[t].state == AT_WARP;
            for (unsigned t = first; all && t < last; t++) fibers[t].state = RUNS;
            moved = moved || all;
        }
        if (moved) continue;
        if (count[AT_BLOCK] == threads)
            for (unsigned t = 0; t < threads; t++) fibers[t].state = RUNS;
        else
            return count[AT_BLOCK] ? 1 : 2;
    }
}
}  // namespace surogate_host

static inline void __syncthreads() { surogate_host::wait(surogate_host::AT_BLOCK); }
static inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, int lanes) {
    using namespace surogate_host;
    exchanged[current] = value;
    wait(AT_WARP);
    const uint32_t other = exchanged[current ^ unsigned(lanes)];
    wait(AT_WARP);
    return other;
}
static inline float __shfl_xor_sync(uint32_t mask, float value, int lanes) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = __shfl_xor_sync(mask, bits, lanes);
    memcpy(&value, &bits, 4);
    return value;
}
static inline uint32_t atomicMax(uint32_t* address, uint32_t value) {
    const uint32_t old = *address;
    *address = std::max(old, value);
    return old;
}
static inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

extern "C" int surogate_run(void* entry, unsigned grid_x, unsigned grid_y, unsigned threads, const int64_t* arguments) {
    using namespace surogate_host;
    if (threads > MOST_THREADS) return 3;
    surogate_host::entry = entry;
    surogate_host::arguments = arguments;
    stacks.resize(std::max(stacks.size(), size_t(threads) * STACK));
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < grid_y; y++)
        for (unsigned x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            if (const int code = run_block(threads)) return code;
        }
    return 0;
}

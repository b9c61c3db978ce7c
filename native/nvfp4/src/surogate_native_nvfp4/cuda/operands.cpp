// The emulation's operands on a CPU: an operand (M, K), straight or turned, multiplied, rotated, quantised  ->  q * s in float32. Of the
// blocks' own arithmetic (blocks.h), 16 rows at a time; so the results are those of the kernels and of the definition, bit for bit.
//
// A tile is 16 rows of 16 or 128 columns. Threads share the tiles of rows; what is written lies row by row, the columns outermost.
#include "rows.h"

#include "blocks.h"
#include "surogate_values.h"

namespace {
constexpr int WIDE = 128;

struct Request {  // each member has 8 bytes
    const void* x;
    const float* factor;
    const float* signs;
    const float* amax;
    float* out;
    int64_t rows, columns, float32, turned, drawn;
    uint64_t key, step;
    int64_t base;
};

template <class In> void take(const Request& given, int64_t row, int64_t column, int high, int wide, Rows* x) {
    const auto* from = static_cast<const typename In::Stored*>(given.x);
    if (given.turned) {
        for (int i = 0; i < wide; i++) {
            const auto* line = from + (column + i) * given.rows + row;
            float own[SIDE] = {};
            if (high == SIDE)
                for (int r = 0; r < SIDE; r++) own[r] = In::value(line[r]);
            else
                for (int r = 0; r < high; r++) own[r] = In::value(line[r]);
            memcpy(x + i, own, sizeof own);
        }
    } else {
        float own[BLOCK][SIDE] = {};
        for (int r = 0; r < high; r++)
            for (int i = 0; i < wide; i++) own[i][r] = In::value(from[(row + r) * given.columns + column + i]);
        memcpy(x, own, sizeof own);
    }
}

// SIZE columns of 16 rows, zeros outside, rotated together where there are signs.
template <int SIZE> void read(const Request& given, int64_t row, int64_t column, Rows* x) {
    const int high = int(min(int64_t(SIDE), given.rows - row));
    for (int i = 0; i < SIZE; i += BLOCK) {
        const int wide = int(max(int64_t(0), min(int64_t(BLOCK), given.columns - column - i)));
        for (int k = 0; k < BLOCK; k++) x[i + k] = Rows{};
        if (given.float32)
            take<Float32>(given, row, column + i, high, wide, x + i);
        else
            take<BFloat16>(given, row, column + i, high, wide, x + i);
    }
    if (given.factor)
        for (int i = 0; i < SIZE; i++) x[i] = times(x[i], *given.factor);
    if (!given.signs) return;
    for (int i = 0; i < SIZE; i++) x[i] = times(x[i], given.signs[i]);
    butterflies<SIZE>(x);
    for (int i = 0; i < SIZE; i++) x[i] = times(x[i], hadamard_factor<SIZE>());
}

void put(const Request& given, int64_t row, int64_t column, const Rows* values) {
    const size_t high = size_t(min(int64_t(SIDE), given.rows - row));
    for (int i = 0; i < BLOCK; i++) {
        float* to = given.out + (column + i) * given.rows + row;
        if (high == SIDE)
            memcpy(to, values + i, sizeof(Rows));
        else
            memcpy(to, values + i, high * sizeof(float));
    }
}

// Counters of 16 rows, `each` for a block.
SUROGATE_INLINE RowBits counters(const Request& given, int64_t row, int64_t block, int64_t blocks, int each, int of) {
    RowBits found;
    for (int r = 0; r < SIDE; r++) found[r] = uint32_t(given.base / 4 + each * ((row + r) * blocks + block) / of);
    return found;
}

template <int SIZE> void largest(const Request& given, int64_t first, int64_t last) {
    Rows x[SIZE];
    for (int64_t tile = first; tile < last; tile++) {
        Rows found = {};
        for (int64_t column = 0; column < given.columns; column += SIZE) {
            read<SIZE>(given, tile * SIDE, column, x);
            for (int i = 0; i < SIZE; i += BLOCK) found = larger(found, largest_of(x + i));
        }
        given.out[tile] = largest_of_rows(found)[0];
    }
}

template <bool SQUARE, bool FOUR> void quantise(const Request& given, int64_t first, int64_t last) {
    const int64_t blocks = (given.columns + BLOCK - 1) / BLOCK;
    const Whole whole = whole_of<FOUR>(*given.amax);
    Rows x[BLOCK];
    RowBits words[8];
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t row = first * SIDE; row < last * SIDE; row += SIDE) {
            read<BLOCK>(given, row, block * BLOCK, x);
            const Choice<Rows> choice = choose<SQUARE, FOUR>(x, whole);
            if (given.drawn) {
                const RowBits counter = counters(given, row, block, blocks, 2, 1);
                philox(counter, given.step, given.key, words);
                philox(counter + 1, given.step, given.key, words + 4);
            }
            for (int i = 0; i < BLOCK; i++) {
                const Rows z = times(x[i], choice.factor);
                const Rows q = given.drawn ? e2m1_stochastic(z, words[i / 2] >> uint32_t(i % 2 * 16) & 0xffffu) : e2m1(z);
                x[i] = times(q, choice.scale);
            }
            put(given, row, block * BLOCK, x);
        }
}

// Halves first, in place.
SUROGATE_INLINE Rows sum_of_group(Rows* own) {
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) own[i] = plus(own[i], own[i + half]);
    return own[0];
}
}  // namespace

typedef const Request* Given;
extern "C" void largest_16(Given given, int64_t first, int64_t last) { largest<BLOCK>(*given, first, last); }
extern "C" void largest_128(Given given, int64_t first, int64_t last) { largest<WIDE>(*given, first, last); }
extern "C" void quantise(Given given, int64_t first, int64_t last) { quantise<false, false>(*given, first, last); }
extern "C" void quantise_four(Given given, int64_t first, int64_t last) { quantise<false, true>(*given, first, last); }
extern "C" void quantise_square(Given given, int64_t first, int64_t last) { quantise<true, false>(*given, first, last); }
extern "C" void quantise_square_four(Given given, int64_t first, int64_t last) { quantise<true, true>(*given, first, last); }

extern "C" void eden(Given request, int64_t first, int64_t last) {
    const Request& given = *request;
    const int64_t blocks = (given.columns + WIDE - 1) / WIDE * (WIDE / BLOCK);
    const float decode = eden_decode(*given.amax);
    Rows x[WIDE], squares[WIDE], along[WIDE], scales[WIDE / BLOCK];
    RowBits words[4];
    for (int64_t column = 0; column < given.columns; column += WIDE)
        for (int64_t row = first * SIDE; row < last * SIDE; row += SIDE) {
            read<WIDE>(given, row, column, x);
            for (int block = 0; block < WIDE / BLOCK; block++) {
                const Rows scale = eden_scale(x + block * BLOCK, decode), divisor = eden_divisor(scale, decode);
                scales[block] = scale;
                for (int i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
                    const Rows z = over(x[i], divisor);
                    x[i] = e2m1(z);
                    squares[i] = times(z, z);
                    along[i] = times(z, x[i]);
                }
            }
            const Rows correction = eden_correction(sum_of_group(squares), sum_of_group(along));
            if (given.drawn) philox(counters(given, row, column / BLOCK, blocks, 1, WIDE / BLOCK), given.step, given.key, words);
            for (int block = 0; block < WIDE / BLOCK; block++) {
                const Rows wanted = times(scales[block], correction);
                const RowBits bits = words[block / 2] >> uint32_t(block % 2 * 16) & 0xffffu;
                const Rows scale = given.drawn ? e4m3_stochastic(wanted, bits) : e4m3_near(wanted);
                for (int i = block * BLOCK; i < (block + 1) * BLOCK; i++) x[i] = times(x[i], scale);
                put(given, row, column + block * BLOCK, x + block * BLOCK);
            }
        }
}

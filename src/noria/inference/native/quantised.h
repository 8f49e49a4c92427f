// Products with weights kept in 8 or 4 bits. A few of them at a time are widened, exactly, into a buffer that stays in
// the nearest cache, and multiplied with all rows at hand: one row costs little more than reading the weights, and many
// rows little more than the products.
//
// M rows, I inputs (a multiple of 32), O outputs. Weights lie panel by panel of 32 outputs (`quantised_matrix.py`): of
// each pair of inputs, 16 outputs and then the other 16. In 8 bits these are 16 integers of the first input and 16 of
// the second; in 4 bits 16 bytes, the first input's number (+8) in the low half. A scale stands for an output (8 bits)
// or for 32 inputs of one (4 bits).
#pragma once

constexpr int PANEL = 2 * LANES, GROUP = 32;
constexpr int64_t CHUNK = 4 * GROUP;  // inputs widened at a time: 16 kB in fp32
constexpr int64_t TOGETHER = 96;      // rows that share a widened chunk; their sums take 12 kB

// The first `count` lanes, or all.
inline void store_lanes(float* to, vec x, int64_t count) {
    if (count > 0) std::memcpy(to, &x, 4 * std::min<int64_t>(count, LANES));
}

inline void store_lanes(bf16* to, vec x, int64_t count) {  // rounded as by `store`
    typedef uint32_t words __attribute__((vector_size(4 * LANES)));
    typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
    const words bits = (words)x;
    const halves rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
    if (count > 0) std::memcpy(to, &rounded, 2 * std::min<int64_t>(count, LANES));
}

inline ivec widen(const int8_t* from) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    ivec wide;
    for (int i = 0; i < LANES; i++) wide[i] = from[i];
    return wide;
#endif
}

inline ivec widen(const uint8_t* from) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    ivec wide;
    for (int i = 0; i < LANES; i++) wide[i] = from[i];
    return wide;
#endif
}

// The numbers of 16 outputs for a pair of inputs.
struct Int8 {
    typedef int8_t number;
    static constexpr bool grouped = false;
    static constexpr int64_t pair_bytes = 2 * PANEL;
    static void pair(const int8_t* from, int half, vec& first, vec& second) {
        first = __builtin_convertvector(widen(from + half * PANEL), vec);
        second = __builtin_convertvector(widen(from + half * PANEL + LANES), vec);
    }
};

struct Int4 {
    typedef uint8_t number;
    static constexpr bool grouped = true;
    static constexpr int64_t pair_bytes = PANEL;
    static void pair(const uint8_t* from, int half, vec& first, vec& second) {
        const vec level = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
        const ivec both = widen(from + half * LANES);
        first = __builtin_shuffle(level, both & 15);
        second = __builtin_shuffle(level, both >> 4);
    }
};

// How widened numbers lie in the buffer, and what one step of a product is.
struct Single {  // fp32: an input a step
    typedef float input;
    typedef vec held;
    static constexpr int inputs = 1;
    static void put(held* to, int half, vec first, vec second) {
        to[half] = first;
        to[2 + half] = second;
    }
    static void add(vec& sum, held weight, const float* x) { sum += weight * *x; }
};

#if defined(__AVX512BF16__)
struct Paired {  // bf16, which holds these integers exactly: two inputs a step, summed in fp32
    typedef bf16 input;
    typedef ivec held;
    static constexpr int inputs = 2;
    static void put(held* to, int half, vec first, vec second) {
        typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
        to[half] = (ivec)((bits)first >> 16 | ((bits)second & 0xffff0000u));
    }
    static void add(vec& sum, held weight, const bf16* x) {
        int32_t both;
        std::memcpy(&both, x, 4);
        sum = (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(both));
    }
};
#endif

// sums[m] += the products of `count` inputs with R rows, which lie `stride` apart, a group of inputs after the other.
template <int R, class W, class S>
void add_rows(const typename S::held* weight, const typename S::input* x, int64_t stride, int64_t count,
              const float* scale, vec* sums) {
    for (int64_t i = 0; i < count; i += GROUP, scale += PANEL) {
        vec sum[R][2] = {};
        for (int k = 0; k < GROUP; k += S::inputs, weight += 2) {
            const typename S::held low = weight[0], high = weight[1];
            for (int m = 0; m < R; m++) {
                S::add(sum[m][0], low, x + m * stride + i + k);
                S::add(sum[m][1], high, x + m * stride + i + k);
            }
        }
        for (int m = 0; m < R; m++)
            for (int half = 0; half < 2; half++)
                sums[2 * m + half] += W::grouped ? sum[m][half] * load_lanes(scale + half * LANES) : sum[m][half];
    }
}

// One panel's outputs of up to TOGETHER rows. A row's sums run over the inputs in their order, whatever rows stand by.
template <class W, class S, class T>
void panel_of(const typename W::number* weight, const float* scale, const typename S::input* x, int64_t rows, int64_t I,
              T* out, int64_t O, int64_t outputs) {
    alignas(64) typename S::held wide[2 * CHUNK / S::inputs];
    alignas(64) vec sums[2 * TOGETHER];
    std::fill(sums, sums + 2 * rows, vec{});
    for (int64_t i = 0; i < I; i += CHUNK) {
        const int64_t count = std::min(CHUNK, I - i);
        for (int64_t k = 0; k < count; k += 2, weight += W::pair_bytes)
            for (int half = 0; half < 2; half++) {
                vec first, second;
                W::pair(weight, half, first, second);
                S::put(wide + 2 * k / S::inputs, half, first, second);
            }
        const float* s = W::grouped ? scale + i / GROUP * PANEL : scale;
        int64_t m = 0;
        for (; m + 12 <= rows; m += 12) add_rows<12, W, S>(wide, x + m * I + i, I, count, s, sums + 2 * m);
        if (rows - m >= 8) add_rows<8, W, S>(wide, x + m * I + i, I, count, s, sums + 2 * m), m += 8;
        if (rows - m >= 4) add_rows<4, W, S>(wide, x + m * I + i, I, count, s, sums + 2 * m), m += 4;
        if (rows - m >= 2) add_rows<2, W, S>(wide, x + m * I + i, I, count, s, sums + 2 * m), m += 2;
        if (rows - m >= 1) add_rows<1, W, S>(wide, x + m * I + i, I, count, s, sums + 2 * m);
    }
    for (int64_t m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++) {
            const vec y = W::grouped ? sums[2 * m + half] : sums[2 * m + half] * load_lanes(scale + half * LANES);
            store_lanes(out + m * O + half * LANES, y, outputs - half * LANES);
        }
}

template <class W, class S, class T>
void multiply_by(const typename W::number* weight, const float* scale, const typename S::input* x, T* out, int64_t M,
                 int64_t I, int64_t O) {
    const int64_t scales = W::grouped ? I / GROUP * PANEL : PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < (O + PANEL - 1) / PANEL; p++)
        for (int64_t m = 0; m < M; m += TOGETHER)
            panel_of<W, S>(weight + p * (I / 2) * W::pair_bytes, scale + p * scales, x + m * I,
                           std::min(TOGETHER, M - m), I, out + m * O + p * PANEL, O, std::min<int64_t>(PANEL, O - p * PANEL));
}

template <class W>
void multiply_as(const void* weight, const float* scale, const float* x, float* out, int64_t M, int64_t I, int64_t O) {
    multiply_by<W, Single>((const typename W::number*)weight, scale, x, out, M, I, O);
}

template <class W>
void multiply_as(const void* weight, const float* scale, const bf16* x, bf16* out, int64_t M, int64_t I, int64_t O) {
#if defined(__AVX512BF16__)
    multiply_by<W, Paired>((const typename W::number*)weight, scale, x, out, M, I, O);
#else
    std::vector<float> wide(M * I);
    for (int64_t i = 0; i < M * I; i++) wide[i] = load(x[i]);
    multiply_by<W, Single>((const typename W::number*)weight, scale, wide.data(), out, M, I, O);
#endif
}

// Products with weights kept in 32, 16, 8 or 4 bits. A few of them at a time are widened, exactly, into a buffer that
// stays in the nearest cache, and multiplied with all rows at hand: one row costs little more than reading the weights,
// and many rows little more than the products. Weights that lie as products take them are multiplied where they are.
//
// M rows, I inputs (a multiple of 32), O outputs. Weights lie panel by panel of 32 outputs (`panel_matrix.py`): in 32
// bits (fp32) those of an input, then those of the next; else of each pair of inputs 16 outputs and then the other 16.
// In 16 bits (bf16) these are 16 words, the first input's number in the low half; in 8 bits 16 integers of the first
// input and 16 of the second; in 4 bits 16 bytes, the first input's number (+8) in the low half. A scale stands for an
// output (8 bits) or for 32 inputs of one (4 bits).
#pragma once

constexpr int PANEL = 32, HALF = 16, GROUP = 32;
constexpr int64_t TOGETHER = 96;  // rows that share a widened chunk; their sums take 12 kB
constexpr int64_t NEAR = 2 * TOGETHER;  // rows that all panels pass before the next ones: 0.4 MB of fp32 at I = 576

// Numbers in a register; the sums of ROWS rows and PANE registers of outputs fit the processor's registers at once.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 6;
#else
constexpr int WIDTH = 4, ROWS = 6;
#endif
constexpr int PARTS = PANEL / WIDTH, PANE = 2;

typedef float reals __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));
typedef int32_t signed_words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));

template <class V, class T>
inline V lanes_at(const T* from) {
    V x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

// WIDTH bytes as as many numbers; what GCC 12 makes of __builtin_convertvector here is several times slower.
inline words widen(const void* from, bool is_signed) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const __m128i*)from);
    return (words)(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)from);
    return (words)(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
    words wide;
    for (int i = 0; i < WIDTH; i++) wide[i] = is_signed ? int32_t(((const int8_t*)from)[i]) : ((const uint8_t*)from)[i];
    return wide;
#endif
}

// The first `count` lanes, or all.
inline void store_lanes(float* to, reals x, int64_t count) {
    if (count > 0) std::memcpy(to, &x, sizeof(float) * std::min<int64_t>(count, WIDTH));
}

inline void store_lanes(bf16* to, reals x, int64_t count) {  // rounded as by `store`
    const words bits = (words)x;
    const halves rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
    if (count > 0) std::memcpy(to, &rounded, sizeof(bf16) * std::min<int64_t>(count, WIDTH));
}

// The numbers of WIDTH outputs, from `output` of the panel on, for a pair of inputs.
struct Bf16 {
    typedef uint32_t number;
    static constexpr bool scaled = false, grouped = false;
    static constexpr int64_t pair_size = PANEL;
    static void pair(const uint32_t* from, int output, reals& first, reals& second) {
        const words both = lanes_at<words>(from + output);
        first = (reals)(both << 16);
        second = (reals)(both & 0xffff0000u);
    }
};

struct Fp32 {
    typedef float number;
    static constexpr bool scaled = false, grouped = false;
    static constexpr int64_t pair_size = 2 * PANEL;
    static void pair(const float* from, int output, reals& first, reals& second) {
        first = lanes_at<reals>(from + output);
        second = lanes_at<reals>(from + PANEL + output);
    }
};

struct Int8 {
    typedef int8_t number;
    static constexpr bool scaled = true, grouped = false;
    static constexpr int64_t pair_size = 2 * PANEL;
    static void pair(const int8_t* from, int output, reals& first, reals& second) {
        from += output / HALF * PANEL + output % HALF;
        first = __builtin_convertvector((signed_words)widen(from, true), reals);
        second = __builtin_convertvector((signed_words)widen(from + HALF, true), reals);
    }
};

struct Int4 {
    typedef uint8_t number;
    static constexpr bool scaled = true, grouped = true;
    static constexpr int64_t pair_size = PANEL;
    static void pair(const uint8_t* from, int output, reals& first, reals& second) {
        const words both = widen(from + output, false);
        // 2^23 with n in its last bits is 2^23 + n: an integer becomes fp32 without a conversion.
        first = (reals)((both & 15) | 0x4b000000) - 8388616.0f;
        second = (reals)((both >> 4) | 0x4b000000) - 8388616.0f;
    }
};

// How widened numbers lie in the buffer, and what one step of a product is. `as_kept`: numbers of this type lie in a
// panel as they would in the buffer, so they are multiplied where they are.
struct Single {  // fp32: an input a step
    typedef float input, as_kept;
    typedef reals held;
    static constexpr int inputs = 1, chunk = 2 * GROUP;  // inputs widened at a time: 8 kB
    static void put(held* to, int part, reals first, reals second) {
        to[part] = first;
        to[PARTS + part] = second;
    }
    static void add(reals& sum, held weight, const float* x) { sum += weight * *x; }
};

#if defined(__AVX512BF16__)
struct Paired {  // bf16, which holds all these numbers exactly: two inputs a step, summed in fp32
    typedef bf16 input;
    typedef words held;
    typedef uint32_t as_kept;
    static constexpr int inputs = 2, chunk = 4 * GROUP;
    static void put(held* to, int part, reals first, reals second) {
        to[part] = (words)first >> 16 | ((words)second & 0xffff0000u);
    }
    static void add(reals& sum, held weight, const bf16* x) {
        int32_t both;
        std::memcpy(&both, x, 4);
        sum = (reals)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(both));
    }
};
#endif

template <class W, class S>
constexpr bool lies_ready = std::is_same_v<typename W::number, typename S::as_kept>;

// What a group of inputs adds where each has a scale; elsewhere one sum runs over all inputs.
template <class W>
void close_group(reals& total, reals sum, const float* scale) {
    if (W::grouped) total += sum * lanes_at<reals>(scale);
    else total = sum;
}

// sums[m] += the products of `count` inputs with R rows, which lie `stride` apart; where scales are, group by group.
template <int R, class W, class S>
void add_rows(const typename S::held* weight, const typename S::input* x, int64_t stride, int64_t count,
              const float* scale, reals* sums) {
    const int64_t together = W::grouped ? GROUP : count;
    for (int first = 0; first < PARTS; first += PANE) {
        const typename S::held* w = weight + first;
        for (int64_t i = 0; i < count; i += together) {
            reals sum[R][PANE] = {};
            for (int m = 0; m < R && !W::grouped; m++)
                for (int part = 0; part < PANE; part++) sum[m][part] = sums[PARTS * m + first + part];
            for (int64_t k = i; k < i + together; k += S::inputs, w += PARTS) {
                for (int part = 0; part < PANE && lies_ready<W, S>; part++)  // the next chunk
                    __builtin_prefetch(w + PARTS * S::chunk / S::inputs + part);
                for (int m = 0; m < R; m++)  // rows outside: all of x's numbers at once would not fit the registers
                    for (int part = 0; part < PANE; part++) S::add(sum[m][part], w[part], x + m * stride + k);
            }
            const float* scales = scale + (W::grouped ? i / GROUP * PANEL : 0) + first * WIDTH;
            for (int m = 0; m < R; m++)
                for (int part = 0; part < PANE; part++)
                    close_group<W>(sums[PARTS * m + first + part], sum[m][part], scales + part * WIDTH);
        }
    }
}

// The same for the rows that are left over when R at a time are done.
template <int R, class W, class S>
void add_rest(const typename S::held* weight, const typename S::input* x, int64_t stride, int64_t count,
              const float* scale, reals* sums, int64_t rows) {
    for (; rows >= R; rows -= R, x += R * stride, sums += R * PARTS)
        add_rows<R, W, S>(weight, x, stride, count, scale, sums);
    if constexpr (R > 1) {
        constexpr int fewer = R > 8 ? 8 : R > 4 ? 4 : R > 2 ? 2 : 1;
        if (rows) add_rest<fewer, W, S>(weight, x, stride, count, scale, sums, rows);
    }
}

// `add_rows` for one row alone, which spares the buffer: numbers are widened as they are needed. The sums are the same.
template <class W, class S>
void add_row(const typename W::number* weight, const typename S::input* x, int64_t count, const float* scale,
             reals* sums) {
    const int64_t together = W::grouped ? GROUP : count;
    for (int64_t i = 0; i < count; i += together, scale += W::grouped ? PANEL : 0) {
        reals sum[PARTS] = {};
        for (int64_t k = 0; k < together; k += 2, weight += W::pair_size)
            for (int part = 0; part < PARTS; part++) {
                reals first, second;
                typename S::held wide[2 * PARTS];
                W::pair(weight, part * WIDTH, first, second);
                S::put(wide, part, first, second);
                for (int step = 0; step < 2; step += S::inputs)
                    S::add(sum[part], wide[PARTS * step + part], x + i + k + step);
            }
        for (int part = 0; part < PARTS; part++)
            close_group<W>(sums[part], sum[part], scale + part * WIDTH);
    }
}

// One panel's outputs of up to TOGETHER rows. A row's sums run over the inputs in their order, whatever rows stand by.
template <class W, class S, class T>
void panel_of(const typename W::number* weight, const float* scale, const typename S::input* x, int64_t rows, int64_t I,
              T* out, int64_t O, int64_t outputs) {
    alignas(64) typename S::held wide[PARTS * S::chunk / S::inputs];
    alignas(64) reals sums[PARTS * TOGETHER];
    std::fill(sums, sums + PARTS * rows, reals{});
    if (rows == 1) add_row<W, S>(weight, x, I, scale, sums);
    for (int64_t i = 0; i < I && rows > 1; i += S::chunk) {
        const int64_t count = std::min<int64_t>(S::chunk, I - i);
        const typename S::held* ready = wide;
        if constexpr (lies_ready<W, S>) {
            ready = (const typename S::held*)weight;
            weight += count / 2 * W::pair_size;
        } else {
            for (int64_t k = 0; k < count; k += 2, weight += W::pair_size)
                for (int part = 0; part < PARTS; part++) {
                    reals first, second;
                    W::pair(weight, part * WIDTH, first, second);
                    S::put(wide + PARTS * k / S::inputs, part, first, second);
                }
        }
        add_rest<ROWS, W, S>(ready, x + i, I, count, W::grouped ? scale + i / GROUP * PANEL : scale, sums, rows);
    }
    for (int64_t m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) {
            reals y = sums[PARTS * m + part];
            if (W::scaled && !W::grouped) y *= lanes_at<reals>(scale + part * WIDTH);
            store_lanes(out + m * O + part * WIDTH, y, outputs - part * WIDTH);
        }
}

template <class W, class S, class T>
void multiply_by(const typename W::number* weight, const float* scale, const typename S::input* x, T* out, int64_t M,
                 int64_t I, int64_t O) {
    const int64_t scales = W::grouped ? I / GROUP * PANEL : W::scaled ? PANEL : 0;
    for (int64_t near = 0; near < M; near += NEAR)
#pragma omp parallel for schedule(static)
        for (int64_t p = 0; p < (O + PANEL - 1) / PANEL; p++)
            for (int64_t m = near; m < std::min(M, near + NEAR); m += TOGETHER)
                panel_of<W, S>(weight + p * (I / 2) * W::pair_size, scale + p * scales, x + m * I,
                               std::min(TOGETHER, M - m), I, out + m * O + p * PANEL, O,
                               std::min<int64_t>(PANEL, O - p * PANEL));
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

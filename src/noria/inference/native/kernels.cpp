// What stands between the matrix products of a plain decoder's layer, one pass over memory each: residual and norm,
// rotation and storing in the cache, attention over a paged cache, the gate of the feed-forward.
//
// N tokens, each of any sequence; H query heads, G key/value heads, R = H / G, d head width, D width, F hidden width.
// Every token is computed by one thread in one order: its bits do not depend on the other tokens nor on the threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void store(float& to, float x) { to = x; }
inline void store(bf16& to, float x) {  // to nearest, ties to even; what comes here is finite
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x to about 1e-7 of itself, in a form that compilers vectorise: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]
// (Taylor's, of degree 7). Below -87 it gives e^-87, next to nothing, instead of a denormal.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return y * power;
}

// e^x of a logit less the largest: nothing at all below -87, so that what is masked can't be drawn.
inline float share(float x) { return x > -87.0f ? exponential(x) : 0.0f; }

template <class T>
void add_norm(float* x, const T* added, const float* weight, T* out, int64_t N, int64_t D, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float* row = x + n * D;
        float squares = 0;
        if (added) {
#pragma omp simd
            for (int64_t i = 0; i < D; i++) row[i] += load(added[n * D + i]);
        }
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < D; i++) squares += row[i] * row[i];
        const float scale = 1.0f / std::sqrt(squares / float(D) + eps);
#pragma omp simd
        for (int64_t i = 0; i < D; i++) store(out[n * D + i], row[i] * scale * weight[i]);
    }
}

// One head: its norm if there is a weight, then the rotation if there are angles.
template <class T>
void place_head(const T* in, T* out, const float* norm, const float* cos, const float* sin, int64_t d, float eps) {
    float x[512];
#pragma omp simd
    for (int64_t i = 0; i < d; i++) x[i] = load(in[i]);
    if (norm) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < d; i++) squares += x[i] * x[i];
        const float scale = 1.0f / std::sqrt(squares / float(d) + eps);
#pragma omp simd
        for (int64_t i = 0; i < d; i++) x[i] *= scale * norm[i];
    }
    if (!cos) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) store(out[i], x[i]);
        return;
    }
    const int64_t half = d / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        store(out[i], x[i] * cos[i] - x[i + half] * sin[i]);
        store(out[i + half], x[i + half] * cos[i] + x[i] * sin[i]);
    }
}

template <class T>
void place(const T* qkv, T* query, T* key, T* value, const int64_t* slot, const float* cos, const float* sin,
           const float* query_norm, const float* key_norm, int64_t N, int64_t H, int64_t G, int64_t d, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const T* in = qkv + n * (H + 2 * G) * d;
        const float* c = cos ? cos + n * (d / 2) : nullptr;
        const float* s = sin ? sin + n * (d / 2) : nullptr;
        for (int64_t h = 0; h < H; h++) place_head(in + h * d, query + (n * H + h) * d, query_norm, c, s, d, eps);
        for (int64_t g = 0; g < G; g++)
            place_head(in + (H + g) * d, key + (slot[n] * G + g) * d, key_norm, c, s, d, eps);
        std::memcpy(value + slot[n] * G * d, in + (H + G) * d, sizeof(T) * G * d);
    }
}

// Where a sequence's tokens lie: block i of it is block table[i] of the cache.
struct Pages {
    const int32_t* table;
    int64_t block, first, count;  // tokens of a block; the first token to see and how many

    // Calls visit(j, slot, n, ahead) for each stretch of n tokens that lie side by side; j counts from 0. `ahead` is
    // how many slots further on the next block lies: to be fetched meanwhile, as no hardware guesses the place.
    template <class Visit>
    void stretches(Visit visit) const {
        for (int64_t j = 0; j < count;) {
            const int64_t inside = (first + j) % block, n = std::min(block - inside, count - j);
            const int32_t* here = table + (first + j) / block;
            visit(j, int64_t(*here) * block + inside, n, j + n < count ? int64_t(here[1] - here[0]) * block : 0);
            j += n;
        }
    }
};

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

inline vec load_lanes(const float* from) {
    vec x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

inline vec load_lanes(const bf16* from) {
    typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
    halves x;
    std::memcpy(&x, from, sizeof(x));
    return (vec)(__builtin_convertvector(x, ivec) << 16);
}

template <class T>
inline void fetch(const T* from, int64_t count) {
    for (int64_t byte = 0; byte < int64_t(sizeof(T)) * count; byte += 64) __builtin_prefetch((const char*)from + byte);
}

// Adds up the lanes of 16 vectors at once: lane m of the result is the sum of x[m].
inline vec sums(vec* x) {
    const ivec low[4] = {{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
                         {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                         {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                         {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}};
    for (int level = 0, half = 8; half > 0; level++, half /= 2)
        for (int m = 0; m < half; m++)
            x[m] = __builtin_shuffle(x[m], x[m + half], low[level]) +
                   __builtin_shuffle(x[m], x[m + half], low[level] + half);
    return x[0];
}

// softmax(scale q.k) v of one token for R heads that share key/value head g; `score` has room for R * (count + LANES).
// W is a head's width in vectors.
template <int R, int W, class T>
void attend_one(const T* query, const T* key, const T* value, T* out, float* score, const Pages& pages, int64_t G,
                int64_t g, float scale) {
    constexpr int64_t d = W * LANES;
    const int64_t room = pages.count + LANES;
    vec q[R][W], mixed[R][W] = {};
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) q[r][w] = load_lanes(query + r * d + w * LANES) * scale;
    pages.stretches([&](int64_t j, int64_t slot, int64_t n, int64_t ahead) {
        for (int64_t m = 0; m < n; m += LANES) {
            vec product[R][LANES] = {};
            const int64_t tile = std::min<int64_t>(LANES, n - m);
            const T* k = key + ((slot + m) * G + g) * d;
            for (int64_t t = 0; t < tile; t++, k += G * d) {
                fetch(k + ahead * G * d, d);
                for (int r = 0; r < R; r++) {
                    vec sum = q[r][0] * load_lanes(k);
                    for (int w = 1; w < W; w++) sum += q[r][w] * load_lanes(k + w * LANES);
                    product[r][t] = sum;
                }
            }
            for (int r = 0; r < R; r++) {
                const vec found = sums(product[r]);
                std::memcpy(score + r * room + j + m, &found, sizeof(found));
            }
        }
    });
    float total[R];
    for (int r = 0; r < R; r++) {
        float *s = score + r * room, largest = s[0], sum = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < pages.count; j++) largest = std::max(largest, s[j]);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < pages.count; j++) {
            s[j] = exponential(s[j] - largest);
            sum += s[j];
        }
        total[r] = sum;
    }
    pages.stretches([&](int64_t j, int64_t slot, int64_t n, int64_t ahead) {
        vec now[R][W];
        std::memcpy(now, mixed, sizeof(now));
        const T* v = value + (slot * G + g) * d;
        for (int64_t m = 0; m < n; m++, v += G * d) {
            fetch(v + ahead * G * d, d);
            for (int w = 0; w < W; w++) {
                const vec x = load_lanes(v + w * LANES);
                for (int r = 0; r < R; r++) now[r][w] += score[r * room + j + m] * x;
            }
        }
        std::memcpy(mixed, now, sizeof(now));
    });
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++)
            for (int i = 0; i < LANES; i++) store(out[r * d + w * LANES + i], mixed[r][w][i] / total[r]);
}

template <int W, class T>
void attend(const T* query, const T* key, const T* value, T* out, const int32_t* tables, int64_t widest,
            const int32_t* row, const int64_t* position, int64_t N, int64_t H, int64_t G, int64_t d, int64_t block,
            int64_t window, float scale) {
    const int64_t R = H / G;
#pragma omp parallel
    {
        std::vector<float> score;
#pragma omp for schedule(dynamic, 4)
        for (int64_t unit = 0; unit < N * G; unit++) {
            const int64_t n = unit / G, g = unit % G, end = position[n] + 1;
            const int64_t first = window > 0 ? std::max<int64_t>(0, end - window) : 0;
            const Pages pages{tables + row[n] * widest, block, first, end - first};
            if (int64_t(score.size()) < 4 * (pages.count + LANES)) score.resize(4 * (pages.count + LANES));
            for (int64_t r = 0; r < R;) {
                const int64_t at = (n * H + g * R + r) * d;
                const T* q = query + at;
                switch (std::min<int64_t>(R - r, 4)) {
                    case 4: attend_one<4, W>(q, key, value, out + at, score.data(), pages, G, g, scale); break;
                    case 3: attend_one<3, W>(q, key, value, out + at, score.data(), pages, G, g, scale); break;
                    case 2: attend_one<2, W>(q, key, value, out + at, score.data(), pages, G, g, scale); break;
                    default: attend_one<1, W>(q, key, value, out + at, score.data(), pages, G, g, scale);
                }
                r += std::min<int64_t>(R - r, 4);
            }
        }
    }
}

template <class T>
void swiglu(const T* gate_up, T* out, int64_t N, int64_t F) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const T *gate = gate_up + n * 2 * F, *up = gate + F;
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            const float x = load(gate[i]);
            store(out[n * F + i], x / (1.0f + exponential(-x)) * load(up[i]));
        }
    }
}

// A row of logits (V) at a temperature (0: greedy): the token at which the cumulative mass passes uniform * total, and
// the log of its share (greedy: at temperature 1). Spans are added up in double, as V numbers in fp32 lose the last.
constexpr int64_t SPAN = 256;

void choose(const float* logits, int64_t V, float temperature, double uniform, int64_t* token, float* logprob) {
    const int64_t best = std::max_element(logits, logits + V) - logits, spans = (V + SPAN - 1) / SPAN;
    const float largest = logits[best], inverse = temperature > 0 ? 1.0f / temperature : 1.0f;
    std::vector<double> until(spans);
    double total = 0;
    for (int64_t k = 0; k < spans; k++) {
        const float* x = logits + k * SPAN;
        const int64_t n = std::min(SPAN, V - k * SPAN);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += share((x[i] - largest) * inverse);
        until[k] = total += sum;
    }
    int64_t found = best;
    if (temperature > 0) {
        const double target = std::min(uniform * total, std::nextafter(total, 0.0));
        int64_t k = std::upper_bound(until.begin(), until.end(), target) - until.begin();
        k = std::min(k, spans - 1);
        double mass = k ? until[k - 1] : 0;
        // The span's sum was rounded otherwise: stay on its last token of some mass if this one falls short.
        for (int64_t i = k * SPAN; i < std::min(V, (k + 1) * SPAN); i++) {
            const float p = share((logits[i] - largest) * inverse);
            if (p == 0) continue;
            found = i;
            mass += p;
            if (mass > target) break;
        }
    }
    *token = found;
    *logprob = float((logits[found] - largest) * double(inverse) - std::log(total));
}

#include "panels.h"

}  // namespace

extern "C" void noria_threads(int64_t count) { omp_set_num_threads(int(count)); }

extern "C" void noria_choose(const float* logits, const float* temperature, const double* uniform, int64_t* token,
                             float* logprob, int64_t N, int64_t V) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n = 0; n < N; n++) choose(logits + n * V, V, temperature[n], uniform[n], token + n, logprob + n);
}

#define FOR_TYPE(SUFFIX, T)                                                                                           \
    extern "C" void noria_add_norm_##SUFFIX(float* x, const T* added, const float* weight, T* out, int64_t N,         \
                                            int64_t D, float eps) {                                                  \
        add_norm(x, added, weight, out, N, D, eps);                                                                   \
    }                                                                                                                 \
    extern "C" void noria_place_##SUFFIX(const T* qkv, T* query, T* key, T* value, const int64_t* slot,               \
                                         const float* cos, const float* sin, const float* query_norm,                 \
                                         const float* key_norm, int64_t N, int64_t H, int64_t G, int64_t d,           \
                                         float eps) {                                                                 \
        place(qkv, query, key, value, slot, cos, sin, query_norm, key_norm, N, H, G, d, eps);                         \
    }                                                                                                                 \
    extern "C" void noria_attend_##SUFFIX(const T* query, const T* key, const T* value, T* out,                       \
                                          const int32_t* tables, int64_t widest, const int32_t* row,                  \
                                          const int64_t* position, int64_t N, int64_t H, int64_t G, int64_t d,        \
                                          int64_t block, int64_t window, float scale) {                               \
        auto run = d == 16 ? attend<1, T> : d == 32 ? attend<2, T> : d == 64 ? attend<4, T> : d == 128 ? attend<8, T> : attend<16, T>; \
        run(query, key, value, out, tables, widest, row, position, N, H, G, d, block, window, scale);                 \
    }                                                                                                                 \
    extern "C" void noria_multiply_##SUFFIX(const T* x, const void* weight, const float* scale, T* out, int64_t M,     \
                                            int64_t I, int64_t O, int64_t bits) {                                     \
        if (bits == 32) multiply_as<Fp32>(weight, scale, x, out, M, I, O);                                            \
        else if (bits == 16) multiply_as<Bf16>(weight, scale, x, out, M, I, O);                                       \
        else if (bits == 8) multiply_as<Int8>(weight, scale, x, out, M, I, O);                                        \
        else multiply_as<Int4>(weight, scale, x, out, M, I, O);                                                       \
    }                                                                                                                 \
    extern "C" void noria_swiglu_##SUFFIX(const T* gate_up, T* out, int64_t N, int64_t F) {                           \
        swiglu(gate_up, out, N, F);                                                                                   \
    }

FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, bf16)

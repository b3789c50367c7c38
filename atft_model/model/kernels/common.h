// Vectors, small matrix products, exponentials and dropout for the kernels of a training step.
//
// Written for one model: SIZE, its hidden size, is given to the compiler. All matrices are
// row-major float32. A kernel works on tiles of TILE rows whose intermediates stay in a core's
// cache; nothing of them is kept from the forward for the backward pass, which computes them again.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int N = SIZE;
constexpr int TILE = 48;
constexpr float EPS = 1e-5f;  // of layer norms

#ifdef __AVX512F__
constexpr int WIDEST = 16, PANEL = 4;
#else
constexpr int WIDEST = 8, PANEL = 2;
#endif
constexpr int lanes(int size, int widest) {
    return size % widest == 0 ? widest : lanes(size, widest / 2);
}
constexpr int W = lanes(N, WIDEST);  // lanes of a vector; at least 4, see native.py
constexpr int V = N / W;             // vectors in a row

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef float vf_memory __attribute__((vector_size(W * 4), aligned(4), may_alias));

static inline vf load(const float* p) { return *(const vf_memory*)p; }
static inline void store(float* p, vf x) { *(vf_memory*)p = x; }
static inline void add_to(float* p, vf x) { store(p, load(p) + x); }
static inline vf larger(vf x, float bound) { return x < bound ? bound - vf{} : x; }  // NaN stays
static inline vf smaller(vf x, float bound) { return x > bound ? bound - vf{} : x; }

static inline float total(vf x) {
    float parts[W];
    std::memcpy(parts, &x, sizeof x);
#pragma GCC unroll 4
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// e^x = 2^n e^r with |r| <= ln 2 / 2, and e^r - 1 by its Taylor polynomial.
struct Exponential {
    vf power, rest;  // 2^n and e^r - 1
    explicit Exponential(vf x) {
        x = smaller(larger(x, -87.0f), 88.0f);
        const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
        vf shifted = x * 1.44269504f + magic;
        vf n = shifted - magic;
        vf r = x - n * 0.693145752f - n * 1.42860677e-6f;
        vf y = r * 1.98412698e-4f + 1.38888889e-3f;
        y = y * r + 8.33333333e-3f;
        y = y * r + 4.16666667e-2f;
        y = y * r + 1.66666667e-1f;
        y = y * r + 0.5f;
        y = y * r + 1.0f;
        rest = y * r;
        power = (vf)(((vu)shifted + 127u) << 23);
    }
    vf value() const { return power * rest + power; }
    vf less_one() const { return power * rest + (power - 1.0f); }  // exact near 0 too
};

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + Exponential(-x).value()); }
static inline vf tanh_of(vf x) {
    vf y = Exponential(smaller(2.0f * x, 40.0f)).less_one();
    return y / (y + 2.0f);
}
static inline vf elu(vf x) { return larger(x, 0.0f) + Exponential(smaller(x, 0.0f)).less_one(); }
// Its derivative from its value.
static inline vf elu_slope(vf y) { return smaller(y, 0.0f) + 1.0f; }

// Dropout from a counter: a seed and a row number give the same entries in both passes and with
// vectors of any width. Only their sum counts, so two seeds of a step must not be neighbours.
struct Dropout {
    uint64_t seed;
    int dropped;  // of 256 entries

    // One row of N: 1 where kept, 0 where dropped.
    inline void mask(uint64_t row, vf out[V]) const {
        uint64_t key = (seed + row) * 0x9E3779B97F4A7C15u;  // splitmix64 (Steele et al. 2014)
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9u;
        key = (key ^ (key >> 27)) * 0x94D049BB133111EBu;
        key ^= key >> 31;
        vu lane;
        for (int i = 0; i < W; i++) lane[i] = i;
        vu word{};
        int before = -1;
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            // 32 bits serve the units u, u + 16, u + 32, u + 48; lowbias32 (Wellons 2018).
            int unit = v * W, first = unit / 64 * 64 + unit % 16;
            if (first != before) {
                word = (lane + (uint32_t)first) * 0x9E3779B9u + (uint32_t)key;
                word = (word ^ (word >> 16)) * 0x21F0AAADu ^ (uint32_t)(key >> 32);
                word = (word ^ (word >> 15)) * 0x735A2D97u;
                word ^= word >> 15;
                before = first;
            }
            vi kept = (vi)((word >> (8 * (unit / 16 % 4))) & 255u) >= dropped;
            out[v] = (vf)(kept & (vi)(1.0f - vf{}));
        }
    }
};

// C (m × n) = or += A B with A(i, p) = a[i * row + p * column], B row-major (k × n).
template <int ROWS, int PANELS, bool ADD>
static inline void product_tile(int k, const float* a, long row, long column, const float* b,
                                long ldb, float* c, long ldc) {
    vf sum[ROWS][PANELS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < PANELS; j++) sum[i][j] = ADD ? load(c + i * ldc + j * W) : vf{};
    for (int p = 0; p < k; p++) {
        vf right[PANELS];
#pragma GCC unroll 4
        for (int j = 0; j < PANELS; j++) right[j] = load(b + p * ldb + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            vf left = a[i * row + p * column] - vf{};
#pragma GCC unroll 4
            for (int j = 0; j < PANELS; j++) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < PANELS; j++) store(c + i * ldc + j * W, sum[i][j]);
}

// All m rows: ROWS at a time, what remains by one less, and so on.
template <int ROWS, int PANELS, bool ADD>
static inline void product_rows(int m, int k, const float* a, long row, long column, const float* b,
                                long ldb, float* c, long ldc) {
    int i = 0;
    for (; i + ROWS <= m; i += ROWS)
        product_tile<ROWS, PANELS, ADD>(k, a + i * row, row, column, b, ldb, c + i * ldc, ldc);
    if constexpr (ROWS > 1)
        product_rows<ROWS - 1, PANELS, ADD>(m - i, k, a + i * row, row, column, b, ldb, c + i * ldc,
                                            ldc);
}

template <bool ADD, int COLUMNS>
static void product(int m, int k, const float* a, long row, long column, const float* b, float* c) {
    int j = 0;
    for (; j + PANEL * W <= COLUMNS; j += PANEL * W)
        product_rows<6, PANEL, ADD>(m, k, a, row, column, b + j, COLUMNS, c + j, COLUMNS);
    for (; j < COLUMNS; j += W)
        product_rows<6, 1, ADD>(m, k, a, row, column, b + j, COLUMNS, c + j, COLUMNS);
}

// C (m × COLUMNS) = A (m × INNER) B, so many of INNER at a time that B's panel stays in a cache.
template <int INNER, int COLUMNS>
static inline void times(int m, const float* a, const float* b, float* c) {
    constexpr int most = 128;
    product<false, COLUMNS>(m, INNER < most ? INNER : most, a, INNER, 1, b, c);
    for (int p = most; p < INNER; p += most)
        product<true, COLUMNS>(m, INNER - p < most ? INNER - p : most, a + p, INNER, 1,
                               b + p * COLUMNS, c);
}

// C (INNER × COLUMNS) += Aᵀ B, A (m × INNER) and B (m × COLUMNS).
template <int INNER, int COLUMNS>
static inline void add_transposed(int m, const float* a, const float* b, float* c) {
    product<true, COLUMNS>(INNER, m, a, 1, INNER, b, c);
}

// Normed and 1 / standard deviation of a row of N, as LayerNorm without its scale and shift.
static inline float standardise(vf x[V]) {
    vf sum{};
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) sum += x[v];
    float mean = total(sum) / N;
    vf squares{};
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) {
        x[v] -= mean;
        squares += x[v] * x[v];
    }
    float inverse = 1.0f / __builtin_sqrtf(total(squares) / N + EPS);
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) x[v] *= inverse;
    return inverse;
}

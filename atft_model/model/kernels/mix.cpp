// Variable selection's networks, weighted and summed: FeatureNetworks of feature_networks.py.
#include <memory>

#include "common.h"

// A feature's vectors [7, N]: what scales and shifts the input, the skip (2 each), the norm's
// scale, the bias of value and gate.
struct Vectors {
    const float *u, *b, *v, *c, *gamma, *value, *gate;
    explicit Vectors(const float* p)
        : u(p),
          b(p + N),
          v(p + 2 * N),
          c(p + 3 * N),
          gamma(p + 4 * N),
          value(p + 5 * N),
          gate(p + 6 * N) {}
};

struct Block {
    alignas(64) float inner[TILE * N];
    alignas(64) float both[TILE * 2 * N];  // value and gate
    alignas(64) float normed[TILE * N];
    float inverse[TILE];
};

// One feature's network on `rows` rows, up to the normed output.
static void network(int rows, const float* x, const Vectors& of, const float* weight,
                    const Dropout& dropout, uint64_t first, Block& block) {
    for (int r = 0; r < rows; r++) {
        vf mask[V] = {};
        if (dropout.dropped) dropout.mask(first + r, mask);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            vf y = elu(x[r] * load(of.u + v * W) + load(of.b + v * W));
            store(block.inner + r * N + v * W, dropout.dropped ? y * mask[v] : y);
        }
    }
    times<N, 2 * N>(rows, block.inner, weight, block.both);
    for (int r = 0; r < rows; r++) {
        float* both = block.both + r * 2 * N;
        vf out[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            vf value = load(both + v * W) + load(of.value + v * W);
            vf gate = sigmoid(load(both + N + v * W) + load(of.gate + v * W));
            store(both + v * W, value);
            store(both + N + v * W, gate);
            out[v] = x[r] * load(of.v + v * W) + load(of.c + v * W) + value * gate;
        }
        block.inverse[r] = standardise(out);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) store(block.normed + r * N + v * W, out[v]);
    }
}

extern "C" {

// The masks [rows, N] of rows 0 to rows - 1, for tests.
void dropout_masks(int, long rows, uint64_t seed, int dropped, float* masks) {
    Dropout dropout{seed, dropped};
    for (long r = 0; r < rows; r++) {
        vf mask[V];
        dropout.mask(r, mask);
        for (int v = 0; v < V; v++) store(masks + r * N + v * W, mask[v]);
    }
}

// x, w [features, rows]; vectors [features, 7, N]; weight [features, N, 2N], times dropout's scale;
// mixed [rows, N] is added to.
void mix_forward(int threads, long rows, long features, const float* x, const float* w,
                 const float* vectors, const float* weight, uint64_t seed, int dropped,
                 float* mixed) {
    Dropout dropout{seed, dropped};
#pragma omp parallel num_threads(threads)
    {
        auto scratch = std::make_unique<Block>();
        Block& block = *scratch;
#pragma omp for schedule(static, 1)
        for (long first = 0; first < rows; first += TILE) {
            int count = rows - first < TILE ? rows - first : TILE;
            for (long f = 0; f < features; f++) {
                Vectors of(vectors + f * 7 * N);
                network(count, x + f * rows + first, of, weight + f * 2 * N * N, dropout,
                        f * rows + first, block);
                for (int r = 0; r < count; r++) {
                    float share = w[f * rows + first + r];
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++)
                        add_to(mixed + (first + r) * N + v * W,
                               share * load(of.gamma + v * W) * load(block.normed + r * N + v * W));
                }
            }
        }
    }
}

// Gradients from that of the sum, `gradient` [rows, N]. transposed [features, 2N, N] is weight's.
// dx, dw [features, rows] are written; dvectors and dweight are added to.
void mix_backward(int threads, long rows, long features, const float* x, const float* w,
                  const float* vectors, const float* weight, const float* transposed, uint64_t seed,
                  int dropped, const float* gradient, float* dx, float* dw, float* dvectors,
                  float* dweight) {
    Dropout dropout{seed, dropped};
    struct Scratch {
        Block block;
        alignas(64) float dboth[TILE * 2 * N], dinner[TILE * N];
    };
#pragma omp parallel num_threads(threads)
    {
        auto scratch = std::make_unique<Scratch>();
        Block& block = scratch->block;
        float *dboth = scratch->dboth, *dinner = scratch->dinner;
#pragma omp for schedule(dynamic)
        for (long f = 0; f < features; f++) {
            Vectors of(vectors + f * 7 * N);
            for (long first = 0; first < rows; first += TILE) {
                vf sums[7][V] = {};  // of a tile: over all rows float32 would lose digits
                int count = rows - first < TILE ? rows - first : TILE;
                long at = f * rows + first;
                network(count, x + at, of, weight + f * 2 * N * N, dropout, at, block);
                for (int r = 0; r < count; r++) {
                    // With n = normed and m = gamma * gradient, LayerNorm's derivative is
                    // w / sigma * (m - mean(m) - n mean(m n)).
                    const float* both = block.both + r * 2 * N;
                    float share = w[at + r], scalar = x[at + r];
                    vf m[V], n[V], along{}, whole{};
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++) {
                        vf g = load(gradient + (first + r) * N + v * W);
                        n[v] = load(block.normed + r * N + v * W);
                        m[v] = g * load(of.gamma + v * W);
                        along += m[v] * n[v];
                        whole += m[v];
                        sums[4][v] += share * g * n[v];
                    }
                    float inner_product = total(along);
                    dw[at + r] = inner_product;
                    float mean = total(whole) / N, mean_along = inner_product / N;
                    float scale = block.inverse[r] * share;
                    vf skip{};
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++) {
                        vf d = scale * (m[v] - mean - n[v] * mean_along);
                        vf value = load(both + v * W), gate = load(both + N + v * W);
                        vf dvalue = d * gate;
                        vf dgate = dvalue * value * (1.0f - gate);
                        store(dboth + r * 2 * N + v * W, dvalue);
                        store(dboth + r * 2 * N + N + v * W, dgate);
                        skip += d * load(of.v + v * W);
                        sums[2][v] += d * scalar;
                        sums[3][v] += d;
                        sums[5][v] += dvalue;
                        sums[6][v] += dgate;
                    }
                    dx[at + r] = total(skip);
                }
                add_transposed<N, 2 * N>(count, block.inner, dboth, dweight + f * 2 * N * N);
                times<2 * N, N>(count, dboth, transposed + f * 2 * N * N, dinner);
                for (int r = 0; r < count; r++) {
                    vf mask[V] = {}, back{};
                    if (dropout.dropped) dropout.mask(at + r, mask);
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++) {
                        vf d = load(dinner + r * N + v * W) *
                               elu_slope(load(block.inner + r * N + v * W));
                        if (dropout.dropped) d *= mask[v];
                        back += d * load(of.u + v * W);
                        sums[0][v] += d * x[at + r];
                        sums[1][v] += d;
                    }
                    dx[at + r] += total(back);
                }
                for (int k = 0; k < 7; k++)
                    for (int v = 0; v < V; v++)
                        add_to(dvectors + (f * 7 + k) * N + v * W, sums[k][v]);
            }
        }
    }
}

}  // extern "C"

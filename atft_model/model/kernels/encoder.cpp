// The recurrent part of the temporal encoder on every window of a run: LSTM, gated skip and
// enrichment (temporal.py). A (date, stock) is read where it stands; windows are never copied.
#include <omp.h>

#include <memory>

#include "common.h"

struct Shape {
    long runs, days, stocks, lookback;
    long length() const { return days - lookback + 1; }
};

// The packed matrices, in the order of native.py's MATRICES: as a product needs them on its right,
// [in, out] forward and [out, in] backward.
template <class Float>
struct Matrices {
    Float *recurrent, *skip_gate, *input, *hidden, *gate;
    explicit Matrices(Float* p)
        : recurrent(p),
          skip_gate(p + 4 * N * N),
          input(p + 6 * N * N),
          hidden(p + 7 * N * N),
          gate(p + 8 * N * N) {}
};
constexpr int MATRICES = 10 * N * N;

enum { SKIP_VALUE, SKIP_GATE, SKIP_SCALE, SKIP_SHIFT, HIDDEN, VALUE, GATE, SCALE, SHIFT, VECTORS };

// Some windows of a run: `count` stocks from `stock` on, at each of `positions` positions.
struct Tile {
    long stocks, rows;
    long first[TILE];     // of a window's first day in [runs, days, stocks]
    long window[TILE];    // in [runs, length, stocks]
    long stock_of[TILE];  // of its stock in [runs, stocks]
    Tile(const Shape& shape, long run, long stock, long count, long position, long positions)
        : stocks(shape.stocks), rows(count * positions) {
        for (long r = 0; r < rows; r++) {
            long at = position + r / count;
            stock_of[r] = run * stocks + stock + r % count;
            first[r] = (run * shape.days + at) * stocks + stock + r % count;
            window[r] = (run * shape.length() + at) * stocks + stock + r % count;
        }
    }
    long day(int r, long t) const { return first[r] + t * stocks; }
};

struct GatedSum {  // of LayerNorm(skip + value * gate)
    alignas(64) float both[TILE * 2 * N];
    alignas(64) float normed[TILE * N];
    float inverse[TILE];
};

struct Enrichment {  // of one day of a tile
    alignas(64) float recurrent[TILE * N], local[TILE * N], inner[TILE * N], hidden[TILE * N];
    GatedSum skip, output;
};

// value and gate from their product, then the normed sum with `skip` (of row r).
template <class Skip>
static inline void gated_sum(int rows, const float* value_bias, const float* gate_bias, Skip skip,
                             GatedSum& to) {
    for (int r = 0; r < rows; r++) {
        float* both = to.both + r * 2 * N;
        const float* under = skip(r);
        vf out[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            vf value = load(both + v * W) + load(value_bias + v * W);
            vf gate = sigmoid(load(both + N + v * W) + load(gate_bias + v * W));
            store(both + v * W, value);
            store(both + N + v * W, gate);
            out[v] = load(under + v * W) + value * gate;
        }
        to.inverse[r] = standardise(out);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) store(to.normed + r * N + v * W, out[v]);
    }
}

// Gradient of the sum's inputs from that of its output: of `skip` (dskip) and of the product
// (dboth).
static inline void gated_sum_backward(int rows, const float* scale, const float* gradient,
                                      const GatedSum& from, float* dscale, float* dshift,
                                      float* dvalue_bias, float* dgate_bias, float* dskip,
                                      float* dboth) {
    vf sums[4][V] = {};
    for (int r = 0; r < rows; r++) {
        const float* both = from.both + r * 2 * N;
        vf m[V], n[V], along{}, whole{};
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            vf g = load(gradient + r * N + v * W);
            n[v] = load(from.normed + r * N + v * W);
            m[v] = g * load(scale + v * W);
            along += m[v] * n[v];
            whole += m[v];
            sums[0][v] += g * n[v];
            sums[1][v] += g;
        }
        float mean = total(whole) / N, mean_along = total(along) / N;
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            vf d = from.inverse[r] * (m[v] - mean - n[v] * mean_along);
            vf value = load(both + v * W), gate = load(both + N + v * W);
            vf dvalue = d * gate, dgate = dvalue * value * (1.0f - gate);
            store(dskip + r * N + v * W, d);
            store(dboth + r * 2 * N + v * W, dvalue);
            store(dboth + r * 2 * N + N + v * W, dgate);
            sums[2][v] += dvalue;
            sums[3][v] += dgate;
        }
    }
    float* to[4] = {dscale, dshift, dvalue_bias, dgate_bias};
    for (int k = 0; k < 4; k++)
        for (int v = 0; v < V; v++) add_to(to[k] + v * W, sums[k][v]);
}

struct Encoder {
    Shape shape;
    const float *gates, *days, *context, *vectors;
    Matrices<const float> forward;
    Dropout dropout;
    Encoder(Shape shape, const float* gates, const float* days, const float* context,
            const float* matrices, const float* vectors, Dropout dropout)
        : shape(shape), gates(gates), days(days), context(context), vectors(vectors),
          forward(matrices), dropout(dropout) {}
    const float* vector(int which) const { return vectors + which * N; }

    // Two rows of a dropout's counter a (window, day): before the skip's gate, before the output's.
    void masked(const Tile& tile, int r, long t, int which, vf mask[V]) const {
        dropout.mask((tile.window[r] * shape.lookback + t) * 2 + which, mask);
    }

    // One step: h and c from those before; `acts` [rows, 4N] are the gates, activated.
    void step(const Tile& tile, long t, const float* h_before, const float* c_before, float* h,
              float* c, float* acts) const {
        int rows = tile.rows;
        if (t > 0) times<N, 4 * N>(rows, h_before, forward.recurrent, acts);
        for (int r = 0; r < rows; r++) {
            const float* own = gates + tile.day(r, t) * 4 * N;
            float* row = acts + r * 4 * N;
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                vf act[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++) {
                    act[k] = load(own + k * N + v * W);
                    if (t > 0) act[k] += load(row + k * N + v * W);
                    act[k] = k == 2 ? tanh_of(act[k]) : sigmoid(act[k]);
                    store(row + k * N + v * W, act[k]);
                }
                vf cell = act[0] * act[2];
                if (t > 0) cell += act[1] * load(c_before + r * N + v * W);
                store(c + r * N + v * W, cell);
                store(h + r * N + v * W, act[3] * tanh_of(cell));
            }
        }
    }

    void enrich(const Tile& tile, long t, const float* h, Enrichment& e) const {
        int rows = tile.rows;
        for (int r = 0; r < rows; r++) {
            vf mask[V] = {};
            if (dropout.dropped) masked(tile, r, t, 0, mask);
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                vf y = load(h + r * N + v * W);
                store(e.recurrent + r * N + v * W, dropout.dropped ? y * mask[v] : y);
            }
        }
        times<N, 2 * N>(rows, e.recurrent, forward.skip_gate, e.skip.both);
        gated_sum(
            rows, vector(SKIP_VALUE), vector(SKIP_GATE),
            [&](int r) { return days + tile.day(r, t) * N; }, e.skip);
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int v = 0; v < V; v++)
                store(e.local + r * N + v * W,
                      load(e.skip.normed + r * N + v * W) * load(vector(SKIP_SCALE) + v * W) +
                          load(vector(SKIP_SHIFT) + v * W));
        times<N, N>(rows, e.local, forward.input, e.inner);
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                float* at = e.inner + r * N + v * W;
                store(at, elu(load(at) + load(context + tile.stock_of[r] * N + v * W)));
            }
        times<N, N>(rows, e.inner, forward.hidden, e.hidden);
        for (int r = 0; r < rows; r++) {
            vf mask[V] = {};
            if (dropout.dropped) masked(tile, r, t, 1, mask);
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                float* at = e.hidden + r * N + v * W;
                vf y = load(at) + load(vector(HIDDEN) + v * W);
                store(at, dropout.dropped ? y * mask[v] : y);
            }
        }
        times<N, 2 * N>(rows, e.hidden, forward.gate, e.output.both);
        gated_sum(
            rows, vector(VALUE), vector(GATE), [&](int r) { return e.local + r * N; }, e.output);
    }
};

// Windows of how many stocks, and at how many positions, a tile takes.
static void tile_size(const Shape& shape, long& stocks, long& positions) {
    positions = shape.length() < 8 ? shape.length() : 8;
    stocks = TILE / positions;
    if (stocks > shape.stocks) stocks = shape.stocks;
}

// `work` on the tiles of every block of stocks of every run; one thread has all of a block, so that
// no two write to the same (day, stock), and always the same one, so that sums do not change.
template <class Work>
static void over_tiles(int threads, const Shape& shape, Work work) {
    long stocks, positions;
    tile_size(shape, stocks, positions);
    long blocks = (shape.stocks + stocks - 1) / stocks;
#pragma omp parallel num_threads(threads)
    {
        auto local = work(omp_get_thread_num());
#pragma omp for schedule(static)
        for (long unit = 0; unit < shape.runs * blocks; unit++) {
            long first = unit % blocks * stocks;
            long count = shape.stocks - first < stocks ? shape.stocks - first : stocks;
            for (long p = 0; p < shape.length(); p += positions) {
                long some = shape.length() - p < positions ? shape.length() - p : positions;
                local(Tile(shape, unit / blocks, first, count, p, some));
            }
        }
    }
}

extern "C" {

// gates [runs, days, stocks, 4N]: the LSTM's inputs through its input matrix, both biases added;
// days [runs, days, stocks, N]; context [runs, stocks, N] with the enrichment's input bias;
// matrices of `Matrices`, the two before a gate times dropout's scale; vectors [VECTORS, N].
// enriched [runs * length * stocks, lookback, N] is written.
void encoder_forward(int threads, long runs, long all_days, long stocks, long lookback,
                     const float* gates, const float* days, const float* context,
                     const float* matrices, const float* vectors, uint64_t seed, int dropped,
                     float* enriched) {
    const Encoder encoder({runs, all_days, stocks, lookback}, gates, days, context, matrices,
                          vectors, {seed, dropped});
    over_tiles(threads, encoder.shape, [&](int) {
        struct Scratch {
            alignas(64) float h[TILE * N], c[TILE * N], acts[TILE * 4 * N];
            Enrichment e;
        };
        return [&, scratch = std::make_unique<Scratch>()](const Tile& tile) {
            Scratch& s = *scratch;
            for (long t = 0; t < lookback; t++) {
                encoder.step(tile, t, s.h, s.c, s.h, s.c, s.acts);
                encoder.enrich(tile, t, s.h, s.e);
                for (int r = 0; r < tile.rows; r++)
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++)
                        store(enriched + (tile.window[r] * lookback + t) * N + v * W,
                              load(s.e.output.normed + r * N + v * W) *
                                      load(encoder.vector(SCALE) + v * W) +
                                  load(encoder.vector(SHIFT) + v * W));
            }
        };
    });
}

// From `gradient`, that of enriched; `transposed` are the matrices [out, in]. dgates, ddays and
// dcontext are added to, and so are dmatrices [threads, MATRICES] and dvectors
// [threads, VECTORS * N].
void encoder_backward(int threads, long runs, long all_days, long stocks, long lookback,
                      const float* gates, const float* days, const float* context,
                      const float* matrices, const float* transposed, const float* vectors,
                      uint64_t seed, int dropped, const float* gradient, float* dgates,
                      float* ddays, float* dcontext, float* dmatrices, float* dvectors) {
    const Encoder encoder({runs, all_days, stocks, lookback}, gates, days, context, matrices,
                          vectors, {seed, dropped});
    Matrices<const float> back(transposed);
    over_tiles(threads, encoder.shape, [&](int thread) {
        struct Scratch {
            alignas(64) float dy[TILE * N], dskip[TILE * N], dboth[TILE * 2 * N], dinner[TILE * N],
                dlocal[TILE * N];
            alignas(64) float dh[TILE * N], dc[TILE * N], dgate[TILE * 4 * N],
                dcontext_rows[TILE * N];
            Enrichment e;
        };
        constexpr long day = TILE * N;
        // h and c before the first day and after each, and each day's gates.
        std::unique_ptr<float[]> history(new float[(2 * (lookback + 1) + 4 * lookback) * day]);
        return [&, thread, scratch = std::make_unique<Scratch>(),
                history = std::move(history)](const Tile& tile) {
            Scratch& s = *scratch;
            float *h = history.get(), *c = h + (lookback + 1) * day,
                  *acts = c + (lookback + 1) * day;
            Matrices<float> dm(dmatrices + thread * long(MATRICES));
            float* dv = dvectors + thread * long(VECTORS * N);
            int rows = tile.rows;
            for (long t = 0; t < lookback; t++)
                encoder.step(tile, t, h + t * day, c + t * day, h + (t + 1) * day,
                             c + (t + 1) * day, acts + 4 * t * day);
            std::memset(s.dh, 0, sizeof s.dh);
            std::memset(s.dc, 0, sizeof s.dc);
            std::memset(s.dcontext_rows, 0, sizeof s.dcontext_rows);
            for (long t = lookback - 1; t >= 0; t--) {
                Enrichment& e = s.e;
                encoder.enrich(tile, t, h + (t + 1) * day, e);
                for (int r = 0; r < rows; r++)
                    std::memcpy(s.dy + r * N, gradient + (tile.window[r] * lookback + t) * N,
                                N * sizeof(float));
                gated_sum_backward(rows, encoder.vector(SCALE), s.dy, e.output, dv + SCALE * N,
                                   dv + SHIFT * N, dv + VALUE * N, dv + GATE * N, s.dskip, s.dboth);
                add_transposed<N, 2 * N>(rows, e.hidden, s.dboth, dm.gate);
                times<2 * N, N>(rows, s.dboth, back.gate, s.dinner);
                vf sums[V] = {};
                for (int r = 0; r < rows; r++) {
                    vf mask[V] = {};
                    if (dropped) encoder.masked(tile, r, t, 1, mask);
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++) {
                        vf d = load(s.dinner + r * N + v * W);
                        if (dropped) d *= mask[v];
                        store(s.dinner + r * N + v * W, d);
                        sums[v] += d;
                    }
                }
                for (int v = 0; v < V; v++) add_to(dv + HIDDEN * N + v * W, sums[v]);
                add_transposed<N, N>(rows, e.inner, s.dinner, dm.hidden);
                times<N, N>(rows, s.dinner, back.hidden, s.dlocal);
                for (int i = 0; i < rows * N; i += W) {
                    vf d = load(s.dlocal + i) * elu_slope(load(e.inner + i));
                    store(s.dlocal + i, d);
                    add_to(s.dcontext_rows + i, d);
                }
                add_transposed<N, N>(rows, e.local, s.dlocal, dm.input);
                times<N, N>(rows, s.dlocal, back.input, s.dinner);
                for (int i = 0; i < rows * N; i += W) add_to(s.dinner + i, load(s.dskip + i));
                gated_sum_backward(rows, encoder.vector(SKIP_SCALE), s.dinner, e.skip,
                                   dv + SKIP_SCALE * N, dv + SKIP_SHIFT * N, dv + SKIP_VALUE * N,
                                   dv + SKIP_GATE * N, s.dskip, s.dboth);
                add_transposed<N, 2 * N>(rows, e.recurrent, s.dboth, dm.skip_gate);
                times<2 * N, N>(rows, s.dboth, back.skip_gate, s.dinner);
                for (int r = 0; r < rows; r++) {
                    vf mask[V] = {};
                    if (dropped) encoder.masked(tile, r, t, 0, mask);
                    const float* act = acts + (4 * t * TILE + 4 * r) * N;
                    float* into = dgates + tile.day(r, t) * 4 * N;
                    float* onto = ddays + tile.day(r, t) * N;
#pragma GCC unroll 16
                    for (int v = 0; v < V; v++) {
                        vf d = load(s.dinner + r * N + v * W);
                        vf dh = load(s.dh + r * N + v * W) + (dropped ? d * mask[v] : d);
                        vf i = load(act + v * W), f = load(act + N + v * W),
                           g = load(act + 2 * N + v * W), o = load(act + 3 * N + v * W);
                        vf now = tanh_of(load(c + (t + 1) * day + r * N + v * W));
                        vf dc = load(s.dc + r * N + v * W) + dh * o * (1.0f - now * now);
                        vf d4[4] = {dc * g * i * (1.0f - i), vf{}, dc * i * (1.0f - g * g),
                                    dh * now * o * (1.0f - o)};
                        if (t > 0) d4[1] = dc * load(c + t * day + r * N + v * W) * f * (1.0f - f);
                        store(s.dc + r * N + v * W, dc * f);
#pragma GCC unroll 4
                        for (int k = 0; k < 4; k++) {
                            store(s.dgate + r * 4 * N + k * N + v * W, d4[k]);
                            add_to(into + k * N + v * W, d4[k]);
                        }
                        add_to(onto + v * W, load(s.dskip + r * N + v * W));
                    }
                }
                if (t > 0) {
                    add_transposed<N, 4 * N>(rows, h + t * day, s.dgate, dm.recurrent);
                    times<4 * N, N>(rows, s.dgate, back.recurrent, s.dh);
                }
            }
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < V; v++)
                    add_to(dcontext + tile.stock_of[r] * N + v * W,
                           load(s.dcontext_rows + r * N + v * W));
        };
    });
}

}  // extern "C"

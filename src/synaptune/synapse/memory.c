/* The memory of fast_weights.py and its adjoint, token by token.
 *
 * The mechanism files document the equations and their sources. The tests compare this file with
 * the token loop `memory_step`.
 *
 * Arrays are row-major: pre, post and recalled (rows, tokens, rank), write (rows, tokens), gated
 * (rows, rank, rank), bdnf (rows, rank). A population has `sets` of parameters; each belongs to
 * rows / sets rows, in their order. A coordinate i of the post-activity has fast weights F[i] of
 * its own, so a few coordinates run at a time and only their weights are live.
 *
 * The sums over j of F[i][j] run as vectors over i, and the gradients of the keys, which are sums
 * over i, as vectors over j: no sum is taken within a vector but that of the change.
 *
 * REAL is float or double, set by the build. The file includes no Python header; ctypes loads it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* coordinates at once, forward */
#define WIDTH 4  /* coordinates at once, backward */
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;
typedef real Lanes __attribute__((vector_size(LANES * sizeof(real))));

/* Parameters and constants in the order of `_PACKED` and `_CONSTANTS` in memory_kernel.py. */
typedef struct {
    real rank, decay, rate, trace_decay, camkii_up, camkii_down, pp1_tau, camkii_thr, pp1_thr,
        bdnf_tau;
    real write_scale, switch_slope, gate_slope;
} Params;

/* Power and sum of clock.py, eq. (1), of a retention a over a tick, with derivatives by a. */
typedef struct {
    real power, gain, dpower, dgain;
} Geometric;

typedef struct {
    const real *pre, *post, *write;
    real *recalled, *gated, *bdnf;
    const real *drecalled;
    real *dpre, *dpost, *dwrite;
    const Params *params;
    int sets, rows, tokens, rank, tick, delta;
} Job;

/* Working memory of one row. Levels and gates are (tick + 1, rank). */
typedef struct {
    real *camkii, *pp1, *gates, *opening, *dopening; /* opening: mean gate of a tick */
    /* Backward only, by token: of the coordinates that run, WIDTH or LANES of them; dbeta of all. */
    real *weights, *change, *found, *dbeta;
} Work;

INLINE real sigmoid(real x) {
    x = x > 60 ? 60 : x < -60 ? -60 : x;
    return 1 / (1 + (sizeof(real) == 4 ? (real)expf((float)-x) : (real)exp((double)-x)));
}

INLINE Geometric geometric(real a, const int tick) {
    Geometric z = {1, 0, 0, 0};
    for (int k = 0; k < tick; k++) {
        z.dgain = z.dgain * a + z.gain;
        z.gain = z.gain * a + 1;
        z.dpower = z.dpower * a + z.power;
        z.power *= a;
    }
    return z;
}

/* What CaMKII retains per token; over a tick it is at least 0. */
INLINE real retain(const Params *p, real on, const int tick) {
    const real kept = 1 - p->camkii_up * on - p->camkii_down * (1 - on);
    return tick > 1 && kept < 0 ? 0 : kept;
}

INLINE real mean_size(const real *post, const int rank, const int tick) {
    real sum = 0;
    for (int t = 0; t < tick; t++) sum += post[t * rank] < 0 ? -post[t * rank] : post[t * rank];
    return sum / tick;
}

static int count_used(const Job *job, const Params *p) {
    return p->rank < job->rank ? (int)ceil((double)p->rank) : job->rank;
}

/* Fill levels, gates and openings of a row: kinase.py, eqs. (1) to (3). */
INLINE void open_gates(const Job *job, const Params *p, const real *post, Work *w, const int rank,
                       const int tick) {
    const int ticks = job->tokens / tick, used = count_used(job, p);
    const real slow = geometric(p->pp1_tau, tick).power, slope = p->switch_slope;
    memset(w->camkii, 0, sizeof(real) * rank);
    memset(w->pp1, 0, sizeof(real) * rank);
    for (int n = 0; n <= ticks; n++) {
        real *m = w->camkii + n * rank, *g = w->pp1 + n * rank, *gates = w->gates + n * rank;
        if (n) {
            const real *during = post + (size_t)(n - 1) * tick * rank;
#pragma omp simd
            for (int i = 0; i < rank; i++) {
                const real ca = mean_size(during + i, rank, tick);
                const real on = sigmoid(slope * (ca - p->camkii_thr)), up = p->camkii_up * on;
                const Geometric z = geometric(retain(p, on, tick), tick);
                m[i] = z.power * m[i - rank] + z.gain * up;
                g[i] = slow * g[i - rank] + (1 - slow) * sigmoid(slope * (p->pp1_thr - ca));
            }
        }
#pragma omp simd
        for (int i = 0; i < rank; i++) gates[i] = sigmoid(p->gate_slope * (m[i] - g[i]));
        real sum = 0;
        for (int i = 0; i < used; i++) sum += gates[i];
        w->opening[n] = sum / used;
    }
}

/* Add to dpost what the openings receive; the adjoint of `open_gates`. */
INLINE void reverse_gates(const Job *job, const Params *p, const real *post, const Work *w,
                          real *dpost, const int rank, const int tick) {
    const int ticks = job->tokens / tick, used = count_used(job, p);
    const real slow = geometric(p->pp1_tau, tick).power, slope = p->switch_slope;
    real dm[rank], dg[rank], dca[rank], on[rank], silent[rank], kept[rank], moves[rank];
    memset(dm, 0, sizeof dm);
    memset(dg, 0, sizeof dg);
    for (int n = ticks; n > 0; n--) {
        const real *during = post + (size_t)(n - 1) * tick * rank, *gates = w->gates + n * rank;
        const real *m = w->camkii + (n - 1) * rank, dopening = w->dopening[n] / used;
        real *out = dpost + (size_t)(n - 1) * tick * rank;
#pragma omp simd
        for (int i = 0; i < rank; i++) {
            const real ca = mean_size(during + i, rank, tick);
            on[i] = sigmoid(slope * (ca - p->camkii_thr));
            silent[i] = sigmoid(slope * (p->pp1_thr - ca));
            kept[i] = retain(p, on[i], tick);
            moves[i] = tick == 1 || kept[i] > 0; /* in a loop of its own, so that both vectorise */
        }
#pragma omp simd
        for (int i = 0; i < rank; i++) {
            const real dgate = dopening * p->gate_slope * gates[i] * (1 - gates[i]) * (i < used);
            dm[i] += dgate;
            dg[i] -= dgate;
            const Geometric z = geometric(kept[i], tick);
            const real up = p->camkii_up * on[i];
            const real dkept = moves[i] * dm[i] * (z.dpower * m[i] + z.dgain * up);
            const real don = p->camkii_up * (dm[i] * z.gain - dkept) + p->camkii_down * dkept;
            dca[i] = slope / tick * (don * on[i] * (1 - on[i]) -
                                     dg[i] * (1 - slow) * silent[i] * (1 - silent[i]));
            dm[i] *= z.power;
            dg[i] *= slow;
        }
        for (int t = 0; t < tick; t++)
#pragma omp simd
            for (int i = 0; i < rank; i++) {
                const real b = during[t * rank + i];
                out[t * rank + i] += b > 0 ? dca[i] : b < 0 ? -dca[i] : 0;
            }
    }
}

/* Return the sum over j of f[j] x[j]; four sums at once hide the latency of an addition. */
INLINE Lanes multiply(const Lanes *f, const real *x, const int rank) {
    Lanes sum[4] = {{0}};
    int j = 0;
    for (; j + 4 <= rank; j += 4)
        for (int k = 0; k < 4; k++) sum[k] += f[j + k] * x[j + k];
    for (; j < rank; j++) sum[0] += f[j] * x[j];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

/* Run the coordinates first to first + LANES - 1 over the tokens, those beyond the rank with a
 * post-activity of 0. Forward: write `recalled`, `gated` and `bdnf`. Backward: keep the writes in
 * w->change and F p in w->found, (tokens, LANES). */
INLINE void run(const Job *job, const Params *p, int row, int first, Work *w, const int rank) {
    const int tokens = job->tokens, count = rank - first < LANES ? rank - first : LANES;
    const size_t size = sizeof(real) * count;
    const real *pre = job->pre + (size_t)row * tokens * rank;
    const real *post = job->post + (size_t)row * tokens * rank + first;
    const real *write = job->write + (size_t)row * tokens;
    const real scale = p->write_scale * p->rate, fresh = 1 - p->trace_decay;
    Lanes f[rank], z[rank], bdnf = {0};
    memset(f, 0, sizeof f);
    memset(z, 0, sizeof z);
    for (int t = 0; t < tokens; t++) {
        const real *a = pre + (size_t)t * rank, *past = a - rank;
        const real beta = scale * write[t] * w->opening[t / job->tick];
        Lanes b = {0}, found = {0}, sum = {0};
        memcpy(&b, post + (size_t)t * rank, size);
        if (t) found = multiply(f, past, rank);
        const Lanes change = beta * (job->delta ? b - p->decay * found : b);
        if (t) {
            for (int j = 0; j < rank; j++) {
                z[j] = p->trace_decay * z[j] + fresh * change * past[j];
                f[j] = p->decay * f[j] + z[j];
            }
            sum = multiply(f, a, rank);
        }
        if (job->drecalled) {
            memcpy(w->change + (size_t)t * LANES, &change, sizeof change);
            memcpy(w->found + (size_t)t * LANES, &found, sizeof found);
        } else {
            memcpy(job->recalled + ((size_t)row * tokens + t) * rank + first, &sum, size);
            for (int c = 0; c < LANES; c++)
                bdnf[c] = p->bdnf_tau * bdnf[c] +
                          (1 - p->bdnf_tau) * (change[c] < 0 ? -change[c] : change[c]);
        }
    }
    if (job->drecalled) return;
    for (int c = 0; c < count; c++) {
        const size_t i = (size_t)row * rank + first + c;
        const real gate = w->gates[(size_t)(tokens / job->tick) * rank + first + c];
        for (int j = 0; j < rank; j++) job->gated[i * rank + j] = gate * f[j][c];
        job->bdnf[i] = bdnf[c];
    }
}

/* Keep F of the coordinates first + from to first + from + width - 1 after each token in
 * w->weights, from their writes. */
INLINE void replay(const Job *job, const Params *p, int row, int from, Work *w, const int rank,
                   const int width) {
    const real *pre = job->pre + (size_t)row * job->tokens * rank, fresh = 1 - p->trace_decay;
    real f[width][rank], z[width][rank];
    memset(f, 0, sizeof f);
    memset(z, 0, sizeof z);
    memset(w->weights, 0, sizeof f);
    for (int t = 1; t < job->tokens; t++) {
        const real *past = pre + (size_t)(t - 1) * rank;
        for (int c = 0; c < width; c++) {
            const real change = w->change[(size_t)t * LANES + from + c];
#pragma omp simd
            for (int j = 0; j < rank; j++) {
                z[c][j] = p->trace_decay * z[c][j] + fresh * change * past[j];
                f[c][j] = p->decay * f[c][j] + z[c][j];
            }
        }
        memcpy(w->weights + (size_t)t * width * rank, f, sizeof f);
    }
}

/* The adjoint of `run` for the coordinates that `replay` kept: add to dpre, dpost and w->dbeta. The
 * first token writes and recalls nothing. */
INLINE void reverse(const Job *job, const Params *p, int row, int first, int from, Work *w,
                    const int rank, const int width) {
    const int tokens = job->tokens;
    const size_t begin = (size_t)row * tokens * rank, shift = begin + first + from;
    const real *pre = job->pre + begin, *post = job->post + shift;
    const real *write = job->write + (size_t)row * tokens, *dout = job->drecalled + shift;
    real *dpre = job->dpre + begin, *dpost = job->dpost + shift;
    const real scale = p->write_scale * p->rate, fresh = 1 - p->trace_decay;
    real df[width][rank], dz[width][rank];
    memset(df, 0, sizeof df);
    memset(dz, 0, sizeof dz);
    for (int t = tokens - 1; t > 0; t--) {
        const real *a = pre + (size_t)t * rank, *past = a - rank;
        const real beta = scale * write[t] * w->opening[t / job->tick];
        real da[rank], dpast[rank];
        memset(da, 0, sizeof da);
        memset(dpast, 0, sizeof dpast);
        for (int c = 0; c < width; c++) {
            const real *f = w->weights + ((size_t)t * width + c) * rank, *before = f - width * rank;
            const real g = dout[(size_t)t * rank + c], b = post[(size_t)t * rank + c];
            const real change = w->change[(size_t)t * LANES + from + c];
            const real found = w->found[(size_t)t * LANES + from + c];
            real dchange = 0;
#pragma omp simd reduction(+ : dchange)
            for (int j = 0; j < rank; j++) {
                df[c][j] += g * a[j];
                da[j] += g * f[j];
                dz[c][j] += df[c][j];
                dchange += dz[c][j] * past[j];
            }
            dchange *= fresh;
            const real dfound = job->delta ? -p->decay * beta * dchange : 0;
#pragma omp simd
            for (int j = 0; j < rank; j++) {
                dpast[j] += fresh * change * dz[c][j] + dfound * before[j];
                df[c][j] = p->decay * df[c][j] + dfound * past[j];
                dz[c][j] *= p->trace_decay;
            }
            dpost[(size_t)t * rank + c] += beta * dchange;
            w->dbeta[t] += dchange * (job->delta ? b - p->decay * found : b);
        }
#pragma omp simd
        for (int j = 0; j < rank; j++) {
            dpre[(size_t)t * rank + j] += da[j];
            dpre[(size_t)(t - 1) * rank + j] += dpast[j];
        }
    }
}

INLINE void run_row(const Job *job, int row, Work *w, const int rank, const int tick) {
    const Params *p = job->params + row / (job->rows / job->sets);
    const int tokens = job->tokens;
    const real *post = job->post + (size_t)row * tokens * rank;
    open_gates(job, p, post, w, rank, tick);
    if (!job->drecalled) {
        for (int i = 0; i < rank; i += LANES) run(job, p, row, i, w, rank);
        return;
    }
    const real *write = job->write + (size_t)row * tokens;
    real *dpost = job->dpost + (size_t)row * tokens * rank;
    memset(dpost, 0, sizeof(real) * tokens * rank);
    memset(job->dpre + (size_t)row * tokens * rank, 0, sizeof(real) * tokens * rank);
    memset(w->dbeta, 0, sizeof(real) * tokens);
    memset(w->dopening, 0, sizeof(real) * (tokens / tick + 1));
    for (int i = 0; i < rank; i += LANES) {
        const int count = rank - i < LANES ? rank - i : LANES;
        run(job, p, row, i, w, rank);
        int c = 0;
        for (; c + WIDTH <= count; c += WIDTH) {
            replay(job, p, row, c, w, rank, WIDTH);
            reverse(job, p, row, i, c, w, rank, WIDTH);
        }
        for (; c < count; c++) {
            replay(job, p, row, c, w, rank, 1);
            reverse(job, p, row, i, c, w, rank, 1);
        }
    }
    const real scale = p->write_scale * p->rate;
    for (int t = 0; t < tokens; t++) {
        job->dwrite[(size_t)row * tokens + t] = scale * w->opening[t / tick] * w->dbeta[t];
        w->dopening[t / tick] += scale * write[t] * w->dbeta[t];
    }
    reverse_gates(job, p, post, w, dpost, rank, tick);
}

/* Run a row with constants where they are common: the loops over them vectorise. */
static void run_any(const Job *job, int row, Work *w) {
    switch (job->tick == 4 ? job->rank : 0) {
    case 8: return run_row(job, row, w, 8, 4);
    case 16: return run_row(job, row, w, 16, 4);
    case 32: return run_row(job, row, w, 32, 4);
    default: return run_row(job, row, w, job->rank, job->tick);
    }
}

/* Divide a block of memory for a row; NULL when there is none. */
static real *allocate(const Job *job, Work *w) {
    const size_t levels = (size_t)job->tokens / job->tick + 1, tokens = job->tokens;
    const size_t kept = job->drecalled ? tokens * (WIDTH * job->rank + 2 * LANES + 1) : 0;
    real *memory = malloc(sizeof(real) * (levels * (3 * job->rank + 2) + kept));
    if (!memory) return NULL;
    real *next = memory;
    w->camkii = next, next += levels * job->rank;
    w->pp1 = next, next += levels * job->rank;
    w->gates = next, next += levels * job->rank;
    w->opening = next, next += levels;
    w->dopening = next, next += levels;
    w->dbeta = next, next += tokens;
    w->change = next, next += LANES * tokens;
    w->found = next, next += LANES * tokens;
    w->weights = next;
    return memory;
}

/* Forward: writes `recalled`, `gated` (gate F after the last token) and `bdnf`. Backward: reads
 * `drecalled`, writes `dpre`, `dpost` and `dwrite`. Unused pointers are NULL. Returns 0, or 1 when
 * it cannot allocate memory. */
int synapse_memory(const real *pre, const real *post, const real *write, real *recalled,
                   real *gated, real *bdnf, const real *drecalled, real *dpre, real *dpost,
                   real *dwrite, const real *packed, int sets, int rows, int tokens, int rank,
                   int tick, int delta) {
    const Job job = {pre,   post,   write,  recalled,               gated, bdnf, drecalled, dpre,
                     dpost, dwrite, (const Params *)packed, sets,  rows, tokens,    rank, tick, delta};
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Work work;
        real *memory = allocate(&job, &work);
        failed = !memory;
#pragma omp for schedule(static)
        for (int row = 0; row < rows; row++) {
            if (!failed) run_any(&job, row, &work);
        }
        free(memory);
    }
    return failed;
}

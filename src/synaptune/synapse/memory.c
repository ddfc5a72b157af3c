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
 * REAL is float or double, set by the build. The file includes no Python header; ctypes loads it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 4 /* coordinates at once */
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;

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
    real *weights, *change, *found; /* of the coordinates that run, by token, backward only */
    real *dbeta;                                     /* by token, backward only */
} Work;

static real sigmoid(real x) {
    x = x > 60 ? 60 : x < -60 ? -60 : x;
    return 1 / (1 + (sizeof(real) == 4 ? (real)expf((float)-x) : (real)exp((double)-x)));
}

static Geometric geometric(real a, int tick) {
    Geometric z = {1, 0, 0, 0};
    const real slope = tick == 1 || a >= 0;
    if (tick > 1 && a < 0) a = 0;
    for (int k = 0; k < tick; k++) {
        z.dgain = z.dgain * a + z.gain;
        z.gain = z.gain * a + 1;
        z.dpower = z.dpower * a + z.power;
        z.power *= a;
    }
    z.dpower *= slope;
    z.dgain *= slope;
    return z;
}

static real mean_size(const real *post, int rank, int tick) {
    real sum = 0;
    for (int t = 0; t < tick; t++) sum += post[t * rank] < 0 ? -post[t * rank] : post[t * rank];
    return sum / tick;
}

static int count_used(const Job *job, const Params *p) {
    return p->rank < job->rank ? (int)ceil((double)p->rank) : job->rank;
}

/* Fill levels, gates and openings of a row: kinase.py, eqs. (1) to (3). */
static void open_gates(const Job *job, const Params *p, const real *post, Work *w) {
    const int rank = job->rank, ticks = job->tokens / job->tick, used = count_used(job, p);
    const real slow = geometric(p->pp1_tau, job->tick).power, slope = p->switch_slope;
    memset(w->camkii, 0, sizeof(real) * rank);
    memset(w->pp1, 0, sizeof(real) * rank);
    for (int n = 0; n <= ticks; n++) {
        real *m = w->camkii + n * rank, *g = w->pp1 + n * rank, sum = 0;
        for (int i = 0; i < rank; i++) {
            if (n) {
                const real ca = mean_size(post + (size_t)(n - 1) * job->tick * rank + i, rank,
                                          job->tick);
                const real up = p->camkii_up * sigmoid(slope * (ca - p->camkii_thr));
                const real down = p->camkii_down * sigmoid(slope * (p->camkii_thr - ca));
                const Geometric z = geometric(1 - up - down, job->tick);
                m[i] = z.power * m[i - rank] + z.gain * up;
                g[i] = slow * g[i - rank] + (1 - slow) * sigmoid(slope * (p->pp1_thr - ca));
            }
            w->gates[n * rank + i] = sigmoid(p->gate_slope * (m[i] - g[i]));
            if (i < used) sum += w->gates[n * rank + i];
        }
        w->opening[n] = sum / used;
    }
}

/* Add to dpost what the openings receive; the adjoint of `open_gates`. */
static void reverse_gates(const Job *job, const Params *p, const real *post, const Work *w,
                          real *dpost) {
    const int rank = job->rank, ticks = job->tokens / job->tick, used = count_used(job, p);
    const real slow = geometric(p->pp1_tau, job->tick).power, slope = p->switch_slope;
    for (int i = 0; i < used; i++) {
        real dm = 0, dg = 0;
        for (int n = ticks; n > 0; n--) {
            const size_t first = (size_t)(n - 1) * job->tick * rank + i;
            const real gate = w->gates[n * rank + i];
            const real dgate = w->dopening[n] / used * p->gate_slope * gate * (1 - gate);
            dm += dgate;
            dg -= dgate;
            const real ca = mean_size(post + first, rank, job->tick);
            const real on = sigmoid(slope * (ca - p->camkii_thr)), up = p->camkii_up * on;
            const real silent = sigmoid(slope * (p->pp1_thr - ca));
            const Geometric z = geometric(1 - up - p->camkii_down * (1 - on), job->tick);
            const real dretention = dm * (z.dpower * w->camkii[(n - 1) * rank + i] + z.dgain * up);
            /* The retention is 1 - up - camkii_down (1 - on). */
            const real don = p->camkii_up * (dm * z.gain - dretention) + p->camkii_down * dretention;
            const real dca = slope * (don * on * (1 - on) -
                                      dg * (1 - slow) * silent * (1 - silent));
            for (int t = 0; t < job->tick; t++) {
                const real b = post[first + t * rank];
                dpost[first + t * rank] += dca / job->tick * ((b > 0) - (b < 0));
            }
            dm *= z.power;
            dg *= slow;
        }
    }
}

/* Run the coordinates first to first + WIDTH - 1 over the tokens; several at once hide the latency
 * of their sums. Forward: write `recalled`, `gated` and `bdnf`. Backward: keep F after each token in
 * w->weights, the writes in w->change and F p in w->found. */
INLINE void run(const Job *job, const Params *p, int row, int first, Work *w, const int rank,
                const int width) {
    const int tokens = job->tokens;
    const real *pre = job->pre + (size_t)row * tokens * rank;
    const real *post = job->post + (size_t)row * tokens * rank + first;
    const real *write = job->write + (size_t)row * tokens;
    const real scale = p->write_scale * p->rate, fresh = 1 - p->trace_decay;
    real f[width][rank], z[width][rank], bdnf[width];
    memset(f, 0, sizeof f);
    memset(z, 0, sizeof z);
    memset(bdnf, 0, sizeof bdnf);
    for (int t = 0; t < tokens; t++) {
        const real *a = pre + (size_t)t * rank, *past = a - rank;
        const real beta = scale * write[t] * w->opening[t / job->tick];
        for (int c = 0; c < width; c++) {
            real found = 0, sum = 0;
            if (t)
                for (int j = 0; j < rank; j++) found += f[c][j] * past[j];
            const real b = post[(size_t)t * rank + c];
            const real change = beta * (job->delta ? b - p->decay * found : b);
            if (t)
                for (int j = 0; j < rank; j++) {
                    z[c][j] = p->trace_decay * z[c][j] + fresh * change * past[j];
                    f[c][j] = p->decay * f[c][j] + z[c][j];
                    sum += f[c][j] * a[j];
                }
            if (job->drecalled) {
                w->change[t * width + c] = change;
                w->found[t * width + c] = found;
            } else {
                job->recalled[((size_t)row * tokens + t) * rank + first + c] = sum;
                bdnf[c] = p->bdnf_tau * bdnf[c] +
                          (1 - p->bdnf_tau) * (change < 0 ? -change : change);
            }
        }
        if (job->drecalled) memcpy(w->weights + (size_t)t * width * rank, f, sizeof f);
    }
    if (job->drecalled) return;
    for (int c = 0; c < width; c++) {
        const size_t i = (size_t)row * rank + first + c;
        const real gate = w->gates[(size_t)(tokens / job->tick) * rank + first + c];
        for (int j = 0; j < rank; j++) job->gated[i * rank + j] = gate * f[c][j];
        job->bdnf[i] = bdnf[c];
    }
}

/* The adjoint of `run`: add to dpre, dpost and w->dbeta. The first token writes and recalls
 * nothing. */
INLINE void reverse(const Job *job, const Params *p, int row, int first, Work *w, const int rank,
                    const int width) {
    const int tokens = job->tokens;
    const size_t begin = (size_t)row * tokens * rank;
    const real *pre = job->pre + begin, *post = job->post + begin + first;
    const real *write = job->write + (size_t)row * tokens, *dout = job->drecalled + begin + first;
    real *dpre = job->dpre + begin, *dpost = job->dpost + begin + first;
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
            const real change = w->change[t * width + c], found = w->found[t * width + c];
            real dchange = 0;
            for (int j = 0; j < rank; j++) {
                df[c][j] += g * a[j];
                da[j] += g * f[j];
                dz[c][j] += df[c][j];
                dchange += dz[c][j] * past[j];
            }
            dchange *= fresh;
            const real dfound = job->delta ? -p->decay * beta * dchange : 0;
            for (int j = 0; j < rank; j++) {
                dpast[j] += fresh * change * dz[c][j] + dfound * before[j];
                df[c][j] = p->decay * df[c][j] + dfound * past[j];
                dz[c][j] *= p->trace_decay;
            }
            dpost[(size_t)t * rank + c] += beta * dchange;
            w->dbeta[t] += dchange * (job->delta ? b - p->decay * found : b);
        }
        for (int j = 0; j < rank; j++) {
            dpre[(size_t)t * rank + j] += da[j];
            dpre[(size_t)(t - 1) * rank + j] += dpast[j];
        }
    }
}

INLINE void run_row(const Job *job, int row, Work *w, const int rank) {
    const Params *p = job->params + row / (job->rows / job->sets);
    const int tokens = job->tokens;
    const real *post = job->post + (size_t)row * tokens * rank;
    open_gates(job, p, post, w);
    if (!job->drecalled) {
        int i = 0;
        for (; i + WIDTH <= rank; i += WIDTH) run(job, p, row, i, w, rank, WIDTH);
        for (; i < rank; i++) run(job, p, row, i, w, rank, 1);
        return;
    }
    const real *write = job->write + (size_t)row * tokens;
    real *dpost = job->dpost + (size_t)row * tokens * rank;
    memset(dpost, 0, sizeof(real) * tokens * rank);
    memset(job->dpre + (size_t)row * tokens * rank, 0, sizeof(real) * tokens * rank);
    memset(w->dbeta, 0, sizeof(real) * tokens);
    memset(w->dopening, 0, sizeof(real) * (tokens / job->tick + 1));
    int i = 0;
    for (; i + WIDTH <= rank; i += WIDTH) {
        run(job, p, row, i, w, rank, WIDTH);
        reverse(job, p, row, i, w, rank, WIDTH);
    }
    for (; i < rank; i++) {
        run(job, p, row, i, w, rank, 1);
        reverse(job, p, row, i, w, rank, 1);
    }
    const real scale = p->write_scale * p->rate;
    for (int t = 0; t < tokens; t++) {
        job->dwrite[(size_t)row * tokens + t] = scale * w->opening[t / job->tick] * w->dbeta[t];
        w->dopening[t / job->tick] += scale * write[t] * w->dbeta[t];
    }
    reverse_gates(job, p, post, w, dpost);
}

/* Divide a block of memory for a row; NULL when there is none. */
static real *allocate(const Job *job, Work *w) {
    const size_t levels = (size_t)job->tokens / job->tick + 1, tokens = job->tokens;
    const size_t kept = job->drecalled ? tokens * (WIDTH * (job->rank + 2) + 1) : 0;
    real *memory = malloc(sizeof(real) * (levels * (3 * job->rank + 2) + kept));
    if (!memory) return NULL;
    real *next = memory;
    w->camkii = next, next += levels * job->rank;
    w->pp1 = next, next += levels * job->rank;
    w->gates = next, next += levels * job->rank;
    w->opening = next, next += levels;
    w->dopening = next, next += levels;
    w->dbeta = next, next += tokens;
    w->change = next, next += WIDTH * tokens;
    w->found = next, next += WIDTH * tokens;
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
            if (failed) continue;
            switch (rank) { /* with a constant rank the loops over it vectorise */
            case 8: run_row(&job, row, &work, 8); break;
            case 16: run_row(&job, row, &work, 16); break;
            case 32: run_row(&job, row, &work, 32); break;
            default: run_row(&job, row, &work, rank);
            }
        }
        free(memory);
    }
    return failed;
}

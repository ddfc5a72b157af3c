/* The presynaptic scan of terminal.py and its adjoint; each key runs over the ticks since its
 * birth.
 *
 * The mechanism files document the equations and their sources. The tests compare this file with
 * terminal.py.
 *
 * Arrays are row-major, rows = batch * head: drive and noise (rows, updates, keys), efficacy
 * (rows, updates + 1, keys). A population has `sets` of parameters; each belongs to rows / sets
 * rows, in their order.
 *
 * REAL is float or double, set by the build. The file includes no Python header; ctypes loads it.
 */
#include <math.h>
#include <stdlib.h>

#define BLOCK 64
#define STATES 10
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;

/* Parameters and constants in the order of `_PACKED` and `_CONSTANTS` in kernel.py. */
typedef struct {
    real tau_c, alpha_ca, syt1_slope, syt7_slope, cpx_thresh, doc2_gain, tau_buf, buf_on, buf_off;
    real tau_rrp, rec_rate, prime_rate, unprime, nsf, endo_delay, init_rrp, init_reserve;
    real fill, use, max_energy, init_energy, amp_load, amp_leak;
    real syt1_share, syt7_share, syt7_clamp, doc2_slope, doc2_half, leak_share, birth_primed,
        fill_half, ampa_ceiling, noise_floor, quantum;
} Params;

typedef struct {
    real c, m, r, q, w, v, s, p, a, g;
} State;
typedef struct {
    real power, gain, total, dpower, dgain, dtotal;
} Geometric;

/* Coefficients of the retentions that do not depend on the state. */
typedef struct {
    Geometric dwell, recycle, refuel;
} Fixed;

/* With -ffast-math glibc declares vector variants of expf and exp; the loops over keys use them. */
INLINE real exponential(real x) {
    return sizeof(real) == 4 ? (real)expf((float)x) : (real)exp((double)x);
}
/* log(1 + e) for 0 <= e <= 1, as the series of 2 atanh(e / (2 + e)), to the precision of a float.
 * It is accurate for small e, where log of the rounded sum 1 + e is not. */
INLINE real logarithm1p(real e) {
    const real z = e / (2 + e), q = z * z;
    real sum = (real)1 / 13;
    sum = (real)1 / 11 + q * sum;
    sum = (real)1 / 9 + q * sum;
    sum = (real)1 / 7 + q * sum;
    sum = (real)1 / 5 + q * sum;
    sum = (real)1 / 3 + q * sum;
    return 2 * z * (1 + q * sum);
}
INLINE real minimum(real a, real b) {
    return sizeof(real) == 4 ? (real)fminf((float)a, (float)b) : (real)fmin((double)a, (double)b);
}
INLINE real maximum(real a, real b) {
    return sizeof(real) == 4 ? (real)fmaxf((float)a, (float)b) : (real)fmax((double)a, (double)b);
}
INLINE real root(real x) {
    return sizeof(real) == 4 ? (real)sqrtf((float)x) : (real)sqrt((double)x);
}
INLINE real clamp(real x, real top) { return minimum(maximum(x, 0), top); }
INLINE real positive(real x) { return (real)(x >= 0); }
INLINE real within(real x, real top) { return (real)(x >= 0) * (real)(x <= top); }
INLINE real sigmoid(real x) {
    return (real)1 / ((real)1 + exponential(minimum(maximum(-x, (real)-60), (real)60)));
}
INLINE real softplus(real x) {
    return maximum(x, 0) + logarithm1p(exponential(maximum(minimum(x, -x), (real)-60)));
}

/* One doubling step of geometric_sums in clock.py, with derivatives by the retention, for one
 * binary digit of c below the leading one. */
INLINE void digit(Geometric *z, real a, real slope, int set) {
    z->dtotal = 2 * z->dtotal + 2 * z->gain * z->dgain;
    z->total = 2 * z->total + z->gain * z->gain;
    z->dgain = z->dgain * (1 + z->power) + z->gain * z->dpower;
    z->gain = z->gain * (1 + z->power);
    z->dpower = 2 * z->power * z->dpower;
    z->power = z->power * z->power;
    if (!set) return;
    z->dtotal += z->dgain;
    z->total += z->gain;
    z->dgain = z->dgain * a + z->gain * slope;
    z->gain = z->gain * a + 1;
    z->dpower = z->dpower * a + z->power * slope;
    z->power = z->power * a;
}
/* Unrolled by hand: with a constant c only arithmetic remains. c < 1024, see MAX_TOKENS in
 * kernel.py. */
#define DIGIT(k)                                                                                   \
    if (c >> (k + 1)) digit(&z, a, slope, (c >> k) & 1)
INLINE Geometric geometric(real a, const int c) {
    Geometric z = {a, 1, 0, 1, 0, 0};
    if (c == 1) return z;
    const real slope = positive(a);
    a = maximum(a, 0);
    z.power = a;
    z.dpower = slope;
    DIGIT(8); DIGIT(7); DIGIT(6); DIGIT(5); DIGIT(4); DIGIT(3); DIGIT(2); DIGIT(1); DIGIT(0);
    return z;
}

/* Intermediate values of one tick; `step` writes them, `adjoint` reads them. */
typedef struct {
    Geometric calcium, buffer, pool, snare, primed, ampa;
    real s, u, inflow, mean_calcium, sensed, y1, y7, yd, rho_raw, rho, refill_rate, occupied, f1,
        fill, xraw, available, expected, variance, sd, draw, x;
    real recovered, returned, used, mean_snare, primes, load, c_raw, m_raw, r_raw, s_raw,
        mean_snare_raw, p_raw, a_raw, g_raw;
    real z1, z7, zd, probability, size, fluctuation, efficacy;
} Tick;

INLINE State step(State o, real l, real eta, const Params *p, const Fixed *fixed, const int c,
                  Tick *t) {
    const real n = (real)c, inv = (real)1 / n;
    State w;
    t->s = sigmoid(l);
    t->u = softplus(l);
    t->inflow = (1 - p->tau_c) * p->alpha_ca * t->u + p->buf_off * o.m;
    t->calcium = geometric(p->tau_c - p->buf_on * (1 - o.m), c);
    t->c_raw = t->calcium.power * o.c + t->calcium.gain * t->inflow;
    w.c = maximum(t->c_raw, 0);
    t->mean_calcium = (t->calcium.gain * o.c + t->calcium.total * t->inflow) * inv;
    t->buffer = geometric(p->tau_buf - p->buf_on * t->mean_calcium - p->buf_off, c);
    t->m_raw = t->buffer.power * o.m + t->buffer.gain * p->buf_on * t->mean_calcium;
    w.m = clamp(t->m_raw, 1);
    t->sensed = t->mean_calcium + (w.c - o.c) * inv;

    t->y1 = sigmoid(p->syt1_slope * (t->sensed - p->cpx_thresh));
    t->y7 = sigmoid(p->syt7_slope * (t->sensed - p->syt7_clamp * p->cpx_thresh));
    t->yd = sigmoid(p->doc2_slope * (t->sensed - p->doc2_half));
    t->rho_raw = t->s * o.p * (p->syt1_share * t->y1 + p->syt7_share * t->y7) +
                 p->leak_share * p->doc2_gain * t->yd;
    t->rho = clamp(t->rho_raw, 1);

    t->refill_rate = o.v / ((o.v + 1) * p->tau_rrp);
    t->pool = geometric(1 - t->rho - t->refill_rate, c);
    t->occupied = t->pool.gain * o.r + t->pool.total * t->refill_rate * p->init_rrp;
    t->f1 = t->refill_rate * (n * p->init_rrp - t->occupied);
    t->fill = minimum(maximum(t->f1, 0), o.v);
    t->xraw = t->rho * t->occupied;
    t->available = o.r + t->fill;
    t->expected = minimum(t->xraw, t->available);
    const real floor_ = p->quantum * p->noise_floor, safe = maximum(t->available, floor_);
    t->variance = t->expected * (1 - t->expected / safe);
    t->sd = root(maximum(t->variance, 0) + p->noise_floor);
    t->draw = t->expected + t->sd * eta;
    t->x = minimum(maximum(t->draw, 0), t->available); /* the expected release where eta is 0 */

    w.q = fixed->dwell.power * o.q + fixed->dwell.gain * t->x * inv;
    t->recovered = o.q + t->x - w.q;
    const real recovered = maximum(t->recovered, 0);
    w.w = fixed->recycle.power * o.w + fixed->recycle.gain * recovered * inv;
    t->returned = o.w + recovered - w.w;
    t->r_raw = o.r - t->x + t->fill;
    w.r = maximum(t->r_raw, 0);
    w.v = o.v + maximum(t->returned, 0) - t->fill;

    t->used = p->unprime * t->x * inv;
    t->snare = geometric(1 - t->used - p->nsf, c);
    t->s_raw = t->snare.power * o.s + t->snare.gain * p->nsf;
    w.s = clamp(t->s_raw, 1);
    t->mean_snare_raw = (t->snare.gain * o.s + t->snare.total * p->nsf) * inv;
    t->mean_snare = clamp(t->mean_snare_raw, 1);
    t->primes = p->prime_rate * t->mean_snare;
    t->primed = geometric(1 - t->primes - t->used, c);
    t->p_raw = t->primed.power * o.p + t->primed.gain * t->primes;
    w.p = clamp(t->p_raw, 1);

    t->a_raw = fixed->refuel.power * o.a +
               fixed->refuel.gain * (p->fill * p->max_energy - p->use * t->x * inv);
    w.a = maximum(t->a_raw, 0);
    t->load = p->amp_load * t->x * inv;
    t->ampa = geometric(1 - t->load - p->amp_leak, c);
    t->g_raw = t->ampa.power * o.g + t->ampa.gain * p->ampa_ceiling * t->load;
    w.g = clamp(t->g_raw, p->ampa_ceiling);

    t->z1 = sigmoid(p->syt1_slope * (w.c - p->cpx_thresh));
    t->z7 = sigmoid(p->syt7_slope * (w.c - p->syt7_clamp * p->cpx_thresh));
    t->zd = sigmoid(p->doc2_slope * (w.c - p->doc2_half));
    t->probability = w.p * (p->syt1_share * t->z1 + p->syt7_share * t->z7) + p->doc2_gain * t->zd;
    t->size = w.g * (1 + p->fill_half) * w.a / (w.a + p->fill_half);
    t->fluctuation = (t->x + p->quantum) / (t->expected + p->quantum);
    t->efficacy = t->probability * w.r * t->size * t->fluctuation;
    return w;
}

/* Adjoint of `step`. Takes the gradients of the next state, `d`, and of the efficacy, `de`. Returns
 * the gradient of the old state and writes that of the drive. */
INLINE State adjoint(State o, real l, real eta, State d, real de, const Params *p,
                     const Fixed *fixed, const int c, real *drive) {
    const real n = (real)c, inv = (real)1 / n;
    Tick t;
    const State w = step(o, l, eta, p, fixed, c, &t);
    State g;
    const real size_r = t.size * w.r;
    const real dprob = de * size_r * t.fluctuation,
               dsize = de * t.probability * w.r * t.fluctuation,
               dfluct = de * t.probability * size_r;
    real dr = d.r + de * t.probability * t.size * t.fluctuation;
    const real base = 1 / (t.expected + p->quantum);
    real dx = dfluct * base, dexp = -dfluct * (t.x + p->quantum) * base * base;
    const real half = 1 / (w.a + p->fill_half);
    real dg = d.g + dsize * (1 + p->fill_half) * w.a * half;
    real da = d.a + dsize * w.g * (1 + p->fill_half) * p->fill_half * half * half;
    const real slope1 = p->syt1_share * p->syt1_slope, slope7 = p->syt7_share * p->syt7_slope,
               sloped = p->doc2_gain * p->doc2_slope;
    real dp = d.p + dprob * (p->syt1_share * t.z1 + p->syt7_share * t.z7);
    real dc = d.c + dprob * (w.p * (slope1 * t.z1 * (1 - t.z1) + slope7 * t.z7 * (1 - t.z7)) +
                             sloped * t.zd * (1 - t.zd));

    dg *= within(t.g_raw, p->ampa_ceiling);
    g.g = dg * t.ampa.power;
    real dload = dg * t.ampa.gain * p->ampa_ceiling;
    dload -= dg * (o.g * t.ampa.dpower + p->ampa_ceiling * t.load * t.ampa.dgain);
    dx += dload * p->amp_load * inv;
    da *= positive(t.a_raw);
    g.a = da * fixed->refuel.power;
    dx -= da * fixed->refuel.gain * p->use * inv;

    dp *= within(t.p_raw, 1);
    g.p = dp * t.primed.power;
    const real dkeep = dp * (o.p * t.primed.dpower + t.primes * t.primed.dgain);
    real dused = -dkeep;
    const real dmean =
        (dp * t.primed.gain - dkeep) * p->prime_rate * within(t.mean_snare_raw, 1) * inv;
    const real ds = d.s * within(t.s_raw, 1);
    g.s = dmean * t.snare.gain + ds * t.snare.power;
    dused -= ds * o.s * t.snare.dpower + (dmean * o.s + ds * p->nsf) * t.snare.dgain +
             dmean * p->nsf * t.snare.dtotal;
    dx += dused * p->unprime * inv;

    dr *= positive(t.r_raw);
    g.r = dr;
    g.v = d.v;
    dx -= dr;
    real dfill = dr - d.v;
    const real dret = d.v * positive(t.returned);
    const real dw = d.w - dret;
    g.w = dret + dw * fixed->recycle.power;
    const real drec = (dret + dw * fixed->recycle.gain * inv) * positive(t.recovered);
    const real dq = d.q - drec;
    g.q = drec + dq * fixed->dwell.power;
    dx += drec + dq * fixed->dwell.gain * inv;

    const real over = (real)(t.draw > t.available);
    const real ddraw = dx * positive(t.draw) * (1 - over);
    const real dvar = ddraw * eta * (real)0.5 / t.sd * positive(t.variance);
    const real floor_ = p->quantum * p->noise_floor,
               ratio = t.expected / maximum(t.available, floor_);
    real davail = dx * over + dvar * ratio * ratio;
    dexp += ddraw + dvar * (1 - 2 * ratio);
    const real free = (real)(t.xraw <= t.available);
    davail += dexp * (1 - free);
    const real dxraw = dexp * free;
    g.r += davail;
    dfill += davail;
    const real ample = (real)(t.f1 <= o.v);
    g.v += dfill * (1 - ample);
    const real df1 = dfill * ample * positive(t.f1);
    real drefill_rate = df1 * (n * p->init_rrp - t.occupied);
    const real docc = dxraw * t.rho - df1 * t.refill_rate;
    real drho = dxraw * t.occupied;
    g.r += docc * t.pool.gain;
    drefill_rate += docc * t.pool.total * p->init_rrp;
    const real dpool = docc * (o.r * t.pool.dgain + t.refill_rate * p->init_rrp * t.pool.dtotal);
    drho -= dpool;
    drefill_rate -= dpool;
    g.v += drefill_rate / (p->tau_rrp * (o.v + 1) * (o.v + 1));

    drho *= within(t.rho_raw, 1);
    const real evoked = p->syt1_share * t.y1 + p->syt7_share * t.y7;
    const real dspike = drho * o.p * evoked, sp = drho * t.s * o.p;
    g.p += drho * t.s * evoked;
    const real dsensed = sp * (slope1 * t.y1 * (1 - t.y1) + slope7 * t.y7 * (1 - t.y7)) +
                         drho * p->leak_share * sloped * t.yd * (1 - t.yd);
    real dmean_calcium = dsensed;
    dc = (dc + dsensed * inv) * positive(t.c_raw);
    const real dm = d.m * within(t.m_raw, 1);
    g.m = dm * t.buffer.power;
    dmean_calcium +=
        p->buf_on * (dm * t.buffer.gain -
                     dm * (o.m * t.buffer.dpower + p->buf_on * t.mean_calcium * t.buffer.dgain));
    dmean_calcium *= inv;
    g.c = dmean_calcium * t.calcium.gain - dsensed * inv + dc * t.calcium.power;
    const real din = dmean_calcium * t.calcium.total + dc * t.calcium.gain;
    const real dretention = dc * o.c * t.calcium.dpower +
                            (dmean_calcium * o.c + dc * t.inflow) * t.calcium.dgain +
                            dmean_calcium * t.inflow * t.calcium.dtotal;
    g.m += dretention * p->buf_on + din * p->buf_off;
    *drive = dspike * t.s * (1 - t.s) + din * (1 - p->tau_c) * p->alpha_ca * t.s;
    return g;
}

typedef real Bank[STATES][BLOCK];
#define LOAD(b, j)                                                                                 \
    {(b)[0][j], (b)[1][j], (b)[2][j], (b)[3][j], (b)[4][j],                                        \
     (b)[5][j], (b)[6][j], (b)[7][j], (b)[8][j], (b)[9][j]}
#define STORE(b, j, z)                                                                             \
    do {                                                                                           \
        (b)[0][j] = (z).c;                                                                         \
        (b)[1][j] = (z).m;                                                                         \
        (b)[2][j] = (z).r;                                                                         \
        (b)[3][j] = (z).q;                                                                         \
        (b)[4][j] = (z).w;                                                                         \
        (b)[5][j] = (z).v;                                                                         \
        (b)[6][j] = (z).s;                                                                         \
        (b)[7][j] = (z).p;                                                                         \
        (b)[8][j] = (z).a;                                                                         \
        (b)[9][j] = (z).g;                                                                         \
    } while (0)

INLINE void init_states(Bank state, const Params *p) {
    const State z = {
        0, 0, p->init_rrp, 0, 0, p->init_reserve, p->birth_primed, p->birth_primed, p->init_energy,
        1};
    for (int j = 0; j < BLOCK; j++) STORE(state, j, z);
}

INLINE real birth_efficacy(const Params *p) {
    const real y1 = sigmoid(-p->syt1_slope * p->cpx_thresh),
               y7 = sigmoid(-p->syt7_slope * p->syt7_clamp * p->cpx_thresh);
    const real chance = p->birth_primed * (p->syt1_share * y1 + p->syt7_share * y7) +
                        p->doc2_gain * sigmoid(-p->doc2_slope * p->doc2_half);
    return chance * p->init_rrp * (1 + p->fill_half) * p->init_energy /
           (p->init_energy + p->fill_half);
}

/* Run one block of keys [first, last) of one row forward. `tape` receives the state before
 * every tick; `out` receives the efficacy. Both may be NULL. */
INLINE void run(const real *drive, const real *noise, real *out, Bank *tape, const Params *p,
                const Fixed *fixed, int updates, int keys, int first, int last, const int c) {
    Bank state;
    init_states(state, p);
    const int first_tick = first / c < updates ? first / c : updates;
    if (out) {
        const real e0 = birth_efficacy(p);
        for (int n = 0; n <= updates; n++)
            for (int j = first; j < last; j++) out[(size_t)n * keys + j] = e0;
    }
    for (int n = first_tick; n < updates; n++) {
        const int count = ((n + 1) * c < last ? (n + 1) * c : last) - first;
        const real *l = drive + (size_t)n * keys + first,
                   *eta = noise ? noise + (size_t)n * keys + first : NULL;
        real *e = out ? out + (size_t)(n + 1) * keys + first : NULL;
        if (tape)
            for (int i = 0; i < STATES; i++)
                for (int j = 0; j < BLOCK; j++) tape[n][i][j] = state[i][j];
        real efficacy[BLOCK], eta_block[BLOCK];
        for (int j = 0; j < count; j++) eta_block[j] = eta ? eta[j] : 0;
#pragma omp simd
        for (int j = 0; j < count; j++) {
            const State o = LOAD(state, j);
            Tick t;
            const State w = step(o, l[j], eta_block[j], p, fixed, c, &t);
            STORE(state, j, w);
            efficacy[j] = t.efficacy;
        }
        if (e)
            for (int j = 0; j < count; j++) e[j] = efficacy[j];
    }
}

/* Run one block of keys backward over the ticks of `tape`; writes the gradient of the drive. */
INLINE void reverse(const real *drive, const real *noise, const real *dout, real *ddrive,
                    Bank *tape, const Params *p, const Fixed *fixed, int updates, int keys,
                    int first, int last, const int c) {
    Bank d;
    for (int i = 0; i < STATES; i++)
        for (int j = 0; j < BLOCK; j++) d[i][j] = 0;
    const int first_tick = first / c < updates ? first / c : updates;
    for (int n = updates - 1; n >= first_tick; n--) {
        const int count = ((n + 1) * c < last ? (n + 1) * c : last) - first;
        const size_t at = (size_t)n * keys + first;
        const real *l = drive + at, *de = dout + at + keys;
        real dl[BLOCK], eta_block[BLOCK];
        for (int j = 0; j < count; j++) eta_block[j] = noise ? noise[at + j] : 0;
#pragma omp simd
        for (int j = 0; j < count; j++) {
            const State o = LOAD(tape[n], j), next = LOAD(d, j);
            const State g = adjoint(o, l[j], eta_block[j], next, de[j], p, fixed, c, &dl[j]);
            STORE(d, j, g);
        }
        for (int j = 0; j < count; j++) ddrive[at + j] = dl[j];
        for (int j = count; j < last - first; j++) ddrive[at + j] = 0;
    }
    for (int n = 0; n < first_tick; n++)
        for (int j = first; j < last; j++) ddrive[(size_t)n * keys + j] = 0;
}

/* The arguments of `synapse_scan`. */
typedef struct {
    const real *drive, *noise;
    real *efficacy;
    const real *defficacy;
    real *ddrive;
    const Params *params;
    int sets, rows, updates, keys;
} Job;

INLINE void run_block(const Job *job, Bank *tape, int task, const int c) {
    const int keys = job->keys, updates = job->updates, blocks = (keys + BLOCK - 1) / BLOCK;
    const int row = task / blocks, first = task % blocks * BLOCK,
              last = first + BLOCK < keys ? first + BLOCK : keys;
    const Params *p = job->params + row / (job->rows / job->sets);
    const Fixed fixed = {geometric(1 - 1 / p->endo_delay, c), geometric(1 - p->rec_rate, c),
                         geometric(1 - p->fill, c)};
    const size_t in_offset = (size_t)row * updates * keys,
                 out_offset = (size_t)row * (updates + 1) * keys;
    const real *drive = job->drive + in_offset, *noise = job->noise ? job->noise + in_offset : NULL;
    run(drive, noise, job->efficacy ? job->efficacy + out_offset : NULL, tape, p, &fixed, updates,
        keys, first, last, c);
    if (tape)
        reverse(drive, noise, job->defficacy + out_offset, job->ddrive + in_offset, tape, p, &fixed,
                updates, keys, first, last, c);
}

/* Forward: writes `efficacy`. Backward: reads `defficacy`, writes `ddrive`. Unused pointers are
 * NULL. Returns 0, or 1 when it cannot allocate memory. */
int synapse_scan(const real *drive, const real *noise, real *efficacy, const real *defficacy,
                 real *ddrive, const real *packed, int sets, int rows, int updates, int keys,
                 int tokens) {
    const Job job = {drive, noise, efficacy, defficacy, ddrive, (const Params *)packed,
                     sets,  rows,  updates,  keys};
    const int tasks = rows * ((keys + BLOCK - 1) / BLOCK);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Bank *tape = defficacy ? malloc(sizeof(Bank) * (size_t)(updates + 1)) : NULL;
        failed = defficacy && !tape;
#pragma omp for schedule(static)
        for (int task = 0; task < tasks; task++) {
            if (failed) continue;
            switch (tokens) { /* with a constant tick the loops over keys vectorise */
            case 1: run_block(&job, tape, task, 1); break;
            case 8: run_block(&job, tape, task, 8); break;
            case 16: run_block(&job, tape, task, 16); break;
            case 32: run_block(&job, tape, task, 32); break;
            default: run_block(&job, tape, task, tokens);
            }
        }
        free(tape);
    }
    return failed;
}

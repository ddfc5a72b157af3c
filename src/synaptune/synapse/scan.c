/* The presynaptic scan of terminal.py, forward and adjoint, one key at a time over the ticks since its birth.
 *
 * The equations and their sources stand in the mechanism files; terminal.py is the reference this file is tested against.
 * Arrays, row-major, rows = batch * head: drive and noise (rows, updates, keys), efficacy (rows, updates + 1, keys).
 * REAL is float or double, set by the build. Compiled without a Python header, loaded through ctypes.
 */
#include <math.h>
#include <stdlib.h>

#define BLOCK 64
#define STATES 10
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;

/* The order of kernel.py's `_PACKED`. */
typedef struct {
    real tau_c, alpha_ca, syt1_slope, syt7_slope, cpx_thresh, doc2_gain, tau_buf, buf_on, buf_off;
    real tau_rrp, rec_rate, prime_rate, unprime, nsf, endo_delay, init_rrp, init_reserve;
    real fill, use, max_energy, init_energy, amp_load, amp_leak;
    real syt1_share, syt7_share, syt7_clamp, doc2_slope, doc2_half, leak_share, birth_primed, fill_half, ampa_ceiling, noise_floor, quantum;
} Params;

typedef struct { real c, m, r, q, w, v, s, p, a, g; } State;
typedef struct { real power, gain, total, dpower, dgain, dtotal; } Geometric;

/* Retentions that do not depend on the state, once per call. */
typedef struct { Geometric dwell, recycle, refuel; } Fixed;

/* With -ffast-math glibc declares vector variants of expf and exp, which let the loops over keys vectorise. */
INLINE real exponential(real x) { return sizeof(real) == 4 ? (real)expf((float)x) : (real)exp((double)x); }
/* log(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e)), to the precision of a float: exact where e is small, which log(1 + e) is not. */
INLINE real logarithm1p(real e) {
    const real z = e / (2 + e), q = z * z;
    return 2 * z * (1 + q * ((real)1 / 3 + q * ((real)1 / 5 + q * ((real)1 / 7 + q * ((real)1 / 9 + q * ((real)1 / 11 + q * ((real)1 / 13)))))));
}
INLINE real least(real a, real b) { return sizeof(real) == 4 ? (real)fminf((float)a, (float)b) : (real)fmin((double)a, (double)b); }
INLINE real most(real a, real b) { return sizeof(real) == 4 ? (real)fmaxf((float)a, (float)b) : (real)fmax((double)a, (double)b); }
INLINE real root(real x) { return sizeof(real) == 4 ? (real)sqrtf((float)x) : (real)sqrt((double)x); }
INLINE real clamp(real x, real top) { return least(most(x, 0), top); }
INLINE real positive(real x) { return (real)(x >= 0); }
INLINE real within(real x, real top) { return (real)(x >= 0) * (real)(x <= top); }
INLINE real sigmoid(real x) { return (real)1 / ((real)1 + exponential(least(most(-x, (real)-60), (real)60))); }
INLINE real softplus(real x) { return most(x, 0) + logarithm1p(exponential(most(least(x, -x), (real)-60))); }

/* clock.py, with derivatives in the retention: one binary digit of c below the leading one. */
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
/* Written out instead of a loop, so that with a constant c nothing but arithmetic is left. c < 1024 (model/config.py). */
#define DIGIT(k) if (c >> (k + 1)) digit(&z, a, slope, (c >> k) & 1)
INLINE Geometric geometric(real a, const int c) {
    Geometric z = {a, 1, 0, 1, 0, 0};
    if (c == 1) return z;
    const real slope = positive(a);
    a = most(a, 0);
    z.power = a;
    z.dpower = slope;
    DIGIT(8); DIGIT(7); DIGIT(6); DIGIT(5); DIGIT(4); DIGIT(3); DIGIT(2); DIGIT(1); DIGIT(0);
    return z;
}

/* Everything a tick computes: the adjoint reads what the step made. */
typedef struct {
    Geometric calcium, buffer, pool, snare, primed, ampa;
    real s, u, inflow, before, seen, y1, y7, yd, rho_raw, rho, rate, occupied, f1, fill, xraw, available, expected, variance, sd, drawn, x;
    real recovered, returned, used, meanwhile, primes, load, c_raw, m_raw, r_raw, s_raw, mw_raw, p_raw, a_raw, g_raw;
    real z1, z7, zd, probability, size, fluctuation, efficacy;
} Tick;

INLINE State step(State o, real l, real eta, const Params *p, const Fixed *fixed, const int c, Tick *t) {
    const real n = (real)c, inv = (real)1 / n;
    State w;
    t->s = sigmoid(l);
    t->u = softplus(l);
    t->inflow = (1 - p->tau_c) * p->alpha_ca * t->u + p->buf_off * o.m;
    t->calcium = geometric(p->tau_c - p->buf_on * (1 - o.m), c);
    t->c_raw = t->calcium.power * o.c + t->calcium.gain * t->inflow;
    w.c = most(t->c_raw, 0);
    t->before = (t->calcium.gain * o.c + t->calcium.total * t->inflow) * inv;
    t->buffer = geometric(p->tau_buf - p->buf_on * t->before - p->buf_off, c);
    t->m_raw = t->buffer.power * o.m + t->buffer.gain * p->buf_on * t->before;
    w.m = clamp(t->m_raw, 1);
    t->seen = t->before + (w.c - o.c) * inv;

    t->y1 = sigmoid(p->syt1_slope * (t->seen - p->cpx_thresh));
    t->y7 = sigmoid(p->syt7_slope * (t->seen - p->syt7_clamp * p->cpx_thresh));
    t->yd = sigmoid(p->doc2_slope * (t->seen - p->doc2_half));
    t->rho_raw = t->s * o.p * (p->syt1_share * t->y1 + p->syt7_share * t->y7) + p->leak_share * p->doc2_gain * t->yd;
    t->rho = clamp(t->rho_raw, 1);

    t->rate = o.v / ((o.v + 1) * p->tau_rrp);
    t->pool = geometric(1 - t->rho - t->rate, c);
    t->occupied = t->pool.gain * o.r + t->pool.total * t->rate * p->init_rrp;
    t->f1 = t->rate * (n * p->init_rrp - t->occupied);
    t->fill = least(most(t->f1, 0), o.v);
    t->xraw = t->rho * t->occupied;
    t->available = o.r + t->fill;
    t->expected = least(t->xraw, t->available);
    const real floor_ = p->quantum * p->noise_floor, safe = most(t->available, floor_);
    t->variance = t->expected * (1 - t->expected / safe);
    t->sd = root(most(t->variance, 0) + p->noise_floor);
    t->drawn = t->expected + t->sd * eta;
    t->x = least(most(t->drawn, 0), t->available); /* the expected release where eta is 0 */

    w.q = fixed->dwell.power * o.q + fixed->dwell.gain * t->x * inv;
    t->recovered = o.q + t->x - w.q;
    const real recovered = most(t->recovered, 0);
    w.w = fixed->recycle.power * o.w + fixed->recycle.gain * recovered * inv;
    t->returned = o.w + recovered - w.w;
    t->r_raw = o.r - t->x + t->fill;
    w.r = most(t->r_raw, 0);
    w.v = o.v + most(t->returned, 0) - t->fill;

    t->used = p->unprime * t->x * inv;
    t->snare = geometric(1 - t->used - p->nsf, c);
    t->s_raw = t->snare.power * o.s + t->snare.gain * p->nsf;
    w.s = clamp(t->s_raw, 1);
    t->mw_raw = (t->snare.gain * o.s + t->snare.total * p->nsf) * inv;
    t->meanwhile = clamp(t->mw_raw, 1);
    t->primes = p->prime_rate * t->meanwhile;
    t->primed = geometric(1 - t->primes - t->used, c);
    t->p_raw = t->primed.power * o.p + t->primed.gain * t->primes;
    w.p = clamp(t->p_raw, 1);

    t->a_raw = fixed->refuel.power * o.a + fixed->refuel.gain * (p->fill * p->max_energy - p->use * t->x * inv);
    w.a = most(t->a_raw, 0);
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

/* Adjoint of `step`: gradient of the next state `d` and of the efficacy `de` -> gradient of the old state, and of the drive. */
INLINE State adjoint(State o, real l, real eta, State d, real de, const Params *p, const Fixed *fixed, const int c, real *drive) {
    const real n = (real)c, inv = (real)1 / n;
    Tick t;
    const State w = step(o, l, eta, p, fixed, c, &t);
    State g;
    const real size_r = t.size * w.r;
    const real dprob = de * size_r * t.fluctuation, dsize = de * t.probability * w.r * t.fluctuation, dfluct = de * t.probability * size_r;
    real dr = d.r + de * t.probability * t.size * t.fluctuation;
    const real base = 1 / (t.expected + p->quantum);
    real dx = dfluct * base, dexp = -dfluct * (t.x + p->quantum) * base * base;
    const real half = 1 / (w.a + p->fill_half);
    real dg = d.g + dsize * (1 + p->fill_half) * w.a * half;
    real da = d.a + dsize * w.g * (1 + p->fill_half) * p->fill_half * half * half;
    const real slope1 = p->syt1_share * p->syt1_slope, slope7 = p->syt7_share * p->syt7_slope, sloped = p->doc2_gain * p->doc2_slope;
    real dp = d.p + dprob * (p->syt1_share * t.z1 + p->syt7_share * t.z7);
    real dc = d.c + dprob * (w.p * (slope1 * t.z1 * (1 - t.z1) + slope7 * t.z7 * (1 - t.z7)) + sloped * t.zd * (1 - t.zd));

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
    const real dmean = (dp * t.primed.gain - dkeep) * p->prime_rate * within(t.mw_raw, 1) * inv;
    const real ds = d.s * within(t.s_raw, 1);
    g.s = dmean * t.snare.gain + ds * t.snare.power;
    dused -= ds * o.s * t.snare.dpower + (dmean * o.s + ds * p->nsf) * t.snare.dgain + dmean * p->nsf * t.snare.dtotal;
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

    const real over = (real)(t.drawn > t.available);
    const real ddrawn = dx * positive(t.drawn) * (1 - over);
    const real dvar = ddrawn * eta * (real)0.5 / t.sd * positive(t.variance);
    const real floor_ = p->quantum * p->noise_floor, ratio = t.expected / most(t.available, floor_);
    real davail = dx * over + dvar * ratio * ratio;
    dexp += ddrawn + dvar * (1 - 2 * ratio);
    const real free = (real)(t.xraw <= t.available);
    davail += dexp * (1 - free);
    const real dxraw = dexp * free;
    g.r += davail;
    dfill += davail;
    const real ample = (real)(t.f1 <= o.v);
    g.v += dfill * (1 - ample);
    const real df1 = dfill * ample * positive(t.f1);
    real drate = df1 * (n * p->init_rrp - t.occupied);
    const real docc = dxraw * t.rho - df1 * t.rate;
    real drho = dxraw * t.occupied;
    g.r += docc * t.pool.gain;
    drate += docc * t.pool.total * p->init_rrp;
    const real dpool = docc * (o.r * t.pool.dgain + t.rate * p->init_rrp * t.pool.dtotal);
    drho -= dpool;
    drate -= dpool;
    g.v += drate / (p->tau_rrp * (o.v + 1) * (o.v + 1));

    drho *= within(t.rho_raw, 1);
    const real evoked = p->syt1_share * t.y1 + p->syt7_share * t.y7;
    const real dspike = drho * o.p * evoked, sp = drho * t.s * o.p;
    g.p += drho * t.s * evoked;
    const real dseen = sp * (slope1 * t.y1 * (1 - t.y1) + slope7 * t.y7 * (1 - t.y7)) + drho * p->leak_share * sloped * t.yd * (1 - t.yd);
    real dbefore = dseen;
    dc = (dc + dseen * inv) * positive(t.c_raw);
    const real dm = d.m * within(t.m_raw, 1);
    g.m = dm * t.buffer.power;
    dbefore += p->buf_on * (dm * t.buffer.gain - dm * (o.m * t.buffer.dpower + p->buf_on * t.before * t.buffer.dgain));
    dbefore *= inv;
    g.c = dbefore * t.calcium.gain - dseen * inv + dc * t.calcium.power;
    const real din = dbefore * t.calcium.total + dc * t.calcium.gain;
    const real dkept = dc * o.c * t.calcium.dpower + (dbefore * o.c + dc * t.inflow) * t.calcium.dgain + dbefore * t.inflow * t.calcium.dtotal;
    g.m += dkept * p->buf_on + din * p->buf_off;
    *drive = dspike * t.s * (1 - t.s) + din * (1 - p->tau_c) * p->alpha_ca * t.s;
    return g;
}

typedef real Bank[STATES][BLOCK];
#define LOAD(b, j) {(b)[0][j], (b)[1][j], (b)[2][j], (b)[3][j], (b)[4][j], (b)[5][j], (b)[6][j], (b)[7][j], (b)[8][j], (b)[9][j]}
#define STORE(b, j, z) \
    do { \
        (b)[0][j] = (z).c; (b)[1][j] = (z).m; (b)[2][j] = (z).r; (b)[3][j] = (z).q; (b)[4][j] = (z).w; \
        (b)[5][j] = (z).v; (b)[6][j] = (z).s; (b)[7][j] = (z).p; (b)[8][j] = (z).a; (b)[9][j] = (z).g; \
    } while (0)

INLINE void born(Bank state, const Params *p) {
    const State z = {0, 0, p->init_rrp, 0, 0, p->init_reserve, p->birth_primed, p->birth_primed, p->init_energy, 1};
    for (int j = 0; j < BLOCK; j++) STORE(state, j, z);
}

INLINE real newborn(const Params *p) {
    const real y1 = sigmoid(-p->syt1_slope * p->cpx_thresh), y7 = sigmoid(-p->syt7_slope * p->syt7_clamp * p->cpx_thresh);
    const real chance = p->birth_primed * (p->syt1_share * y1 + p->syt7_share * y7) + p->doc2_gain * sigmoid(-p->doc2_slope * p->doc2_half);
    return chance * p->init_rrp * (1 + p->fill_half) * p->init_energy / (p->init_energy + p->fill_half);
}

/* One block of keys [first, last) of one row. `tape`, where given, keeps the state before every tick; `out` may be NULL. */
INLINE void run(const real *drive, const real *noise, real *out, Bank *tape, const Params *p, const Fixed *fixed, int updates, int keys,
                int first, int last, const int c) {
    Bank state;
    born(state, p);
    const int birth = first / c < updates ? first / c : updates;
    if (out) {
        const real e0 = newborn(p);
        for (int n = 0; n <= updates; n++)
            for (int j = first; j < last; j++) out[(size_t)n * keys + j] = e0;
    }
    for (int n = birth; n < updates; n++) {
        const int alive = ((n + 1) * c < last ? (n + 1) * c : last) - first;
        const real *l = drive + (size_t)n * keys + first, *eta = noise ? noise + (size_t)n * keys + first : NULL;
        real *e = out ? out + (size_t)(n + 1) * keys + first : NULL;
        if (tape)
            for (int i = 0; i < STATES; i++)
                for (int j = 0; j < BLOCK; j++) tape[n][i][j] = state[i][j];
        real efficacy[BLOCK], kick[BLOCK];
        for (int j = 0; j < alive; j++) kick[j] = eta ? eta[j] : 0;
#pragma omp simd
        for (int j = 0; j < alive; j++) {
            const State o = LOAD(state, j);
            Tick t;
            const State w = step(o, l[j], kick[j], p, fixed, c, &t);
            STORE(state, j, w);
            efficacy[j] = t.efficacy;
        }
        if (e)
            for (int j = 0; j < alive; j++) e[j] = efficacy[j];
    }
}

INLINE void reverse(const real *drive, const real *noise, const real *dout, real *ddrive, Bank *tape, const Params *p, const Fixed *fixed,
                    int updates, int keys, int first, int last, const int c) {
    Bank d;
    for (int i = 0; i < STATES; i++)
        for (int j = 0; j < BLOCK; j++) d[i][j] = 0;
    const int birth = first / c < updates ? first / c : updates;
    for (int n = updates - 1; n >= birth; n--) {
        const int alive = ((n + 1) * c < last ? (n + 1) * c : last) - first;
        const size_t at = (size_t)n * keys + first;
        const real *l = drive + at, *de = dout + at + keys;
        real dl[BLOCK], kick[BLOCK];
        for (int j = 0; j < alive; j++) kick[j] = noise ? noise[at + j] : 0;
#pragma omp simd
        for (int j = 0; j < alive; j++) {
            const State o = LOAD(tape[n], j), next = LOAD(d, j);
            const State g = adjoint(o, l[j], kick[j], next, de[j], p, fixed, c, &dl[j]);
            STORE(d, j, g);
        }
        for (int j = 0; j < alive; j++) ddrive[at + j] = dl[j];
        for (int j = alive; j < last - first; j++) ddrive[at + j] = 0;
    }
    for (int n = 0; n < birth; n++)
        for (int j = first; j < last; j++) ddrive[(size_t)n * keys + j] = 0;
}

typedef struct {
    const real *drive, *noise;
    real *efficacy;
    const real *defficacy;
    real *ddrive;
    const Params *params;
    int rows, updates, keys;
} Job;

INLINE void block_of(const Job *job, Bank *tape, int task, const int c) {
    const Params *p = job->params;
    const Fixed fixed = {geometric(1 - 1 / p->endo_delay, c), geometric(1 - p->rec_rate, c), geometric(1 - p->fill, c)};
    const int keys = job->keys, updates = job->updates, blocks = (keys + BLOCK - 1) / BLOCK;
    const int row = task / blocks, first = task % blocks * BLOCK, last = first + BLOCK < keys ? first + BLOCK : keys;
    const size_t in = (size_t)row * updates * keys, wide = (size_t)row * (updates + 1) * keys;
    const real *drive = job->drive + in, *noise = job->noise ? job->noise + in : NULL;
    run(drive, noise, job->efficacy ? job->efficacy + wide : NULL, tape, p, &fixed, updates, keys, first, last, c);
    if (tape) reverse(drive, noise, job->defficacy + wide, job->ddrive + in, tape, p, &fixed, updates, keys, first, last, c);
}

/* Forward: `efficacy` is written. Backward: `defficacy` is read, `ddrive` written. Unused pointers are NULL. 0, or 1 without memory. */
int synapse_scan(const real *drive, const real *noise, real *efficacy, const real *defficacy, real *ddrive, const real *packed, int rows,
                 int updates, int keys, int tokens) {
    const Job job = {drive, noise, efficacy, defficacy, ddrive, (const Params *)packed, rows, updates, keys};
    const int tasks = rows * ((keys + BLOCK - 1) / BLOCK);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Bank *tape = defficacy ? malloc(sizeof(Bank) * (size_t)(updates + 1)) : NULL;
        failed = defficacy && !tape;
#pragma omp for schedule(static)
        for (int task = 0; task < tasks; task++) {
            if (failed) continue;
            switch (tokens) { /* a constant tick leaves only arithmetic in the loops over keys, so they vectorise */
            case 1: block_of(&job, tape, task, 1); break;
            case 8: block_of(&job, tape, task, 8); break;
            case 16: block_of(&job, tape, task, 16); break;
            case 32: block_of(&job, tape, task, 32); break;
            default: block_of(&job, tape, task, tokens);
            }
        }
        free(tape);
    }
    return failed;
}

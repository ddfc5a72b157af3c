/* One step of BiostatisV6 on a CPU, float32. The equations are those of biostatis.py.
 * Arrays are contiguous; sums are taken in blocks, in float within a block and in double over them. */

#include <math.h>
#include <stdint.h>

#define BLOCK 512
#define AHEAD (2 * BLOCK) /* a processor's own prefetch of a single stream stops at each page */
#define MOST_SERIAL 65536
#define RESIDENT 131072 /* elements of a tensor whose gradient and moments stay in a cache of 2 MiB */

typedef struct {
    float *w;
    const float *g;
    float *m, *v, *slow, *fast; /* fast is NULL where the fast average is the first moment */
    float *step;
    float *targets; /* sums of C, then of E, each of the tensor and of its group; NULL if fixed */
    int64_t n;
    double *sums; /* SUMS values of `measure` */
} tensor_t;

typedef struct {
    double lr, decay, beta1, beta2, eps, coherence, energy, rho, lam, target_steps;
} settings_t;

enum { SQUARES, ACTIVITY, DOT, POWER, SIZE, SCALE, SUMS };

/* tanh |x| to 2e-7, a rational function of the kind that Eigen uses, so that the loop vectorises. */
static inline float tanh_abs(float x) {
    x = fabsf(x);
    x = x > 7.9f ? 7.9f : x;
    const float s = x * x;
    float p = -2.76076847742355e-16f;
    p = p * s + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}

static inline void fetch(const float *array, int64_t start, int64_t n) {
    const int64_t end = start + AHEAD + BLOCK < n ? start + AHEAD + BLOCK : n;
    for (int64_t i = start + AHEAD; i < end; i += 16)
        __builtin_prefetch(array + i);
}

/* The sums of a tensor. Of its gradient: SQUARES g^2, ACTIVITY tanh |g|. With the moments after this
 * step: DOT m g, POWER m^2, SIZE |m|, SCALE sqrt v. Nothing is written, so `update` reads the old
 * moments again. */
static void measure(const tensor_t *x, const settings_t *settings, int of_gradient, int of_moments) {
    const float beta1 = (float)settings->beta1, beta2 = (float)settings->beta2;
    const float *restrict g = x->g, *restrict m = x->m, *restrict v = x->v;
    const int64_t n = x->n;
    double squares = 0.0, activity = 0.0, dot = 0.0, power = 0.0, size = 0.0, scale = 0.0;
#pragma omp parallel for reduction(+ : squares, activity, dot, power, size, scale) if (n > MOST_SERIAL)
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = start + BLOCK < n ? start + BLOCK : n;
        fetch(g, start, n);
        if (of_gradient) {
            float s = 0.0f, t = 0.0f;
            for (int64_t i = start; i < end; i++) {
                s += g[i] * g[i];
                t += tanh_abs(g[i]);
            }
            squares += s;
            activity += t;
        }
        if (of_moments) {
            fetch(m, start, n);
            fetch(v, start, n);
            float d = 0.0f, p = 0.0f, a = 0.0f, r = 0.0f;
            for (int64_t i = start; i < end; i++) {
                const float first = beta1 * m[i] + (1.0f - beta1) * g[i];
                d += first * g[i];
                p += first * first;
                a += fabsf(first);
                r += sqrtf(beta2 * v[i] + (1.0f - beta2) * g[i] * g[i]);
            }
            dot += d;
            power += p;
            size += a;
            scale += r;
        }
    }
    if (of_gradient) {
        x->sums[SQUARES] = squares;
        x->sums[ACTIVITY] = activity;
    }
    if (of_moments) {
        x->sums[DOT] = dot;
        x->sums[POWER] = power;
        x->sums[SIZE] = size;
        x->sums[SCALE] = scale;
    }
}

static double clip(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

/* h e of a tensor, eqs. (2) to (6); C and E of the tensor, then of its group. The step is counted. */
static double compute_gain(const tensor_t *x, const settings_t *s, const double *c, const double *e) {
    double dc[2], de[2];
    for (int k = 0; k < 2; k++) {
        if (!x->targets) {
            dc[k] = c[k] - s->coherence;
            de[k] = s->energy - e[k];
            continue;
        }
        float *sums = x->targets + k;
        dc[k] = de[k] = 0.0;
        if (*x->step <= s->target_steps) {
            sums[0] += (float)c[k];
            sums[2] += (float)e[k];
        } else {
            dc[k] = c[k] / fmax(1e-30, sums[0] / s->target_steps) - 1.0;
            de[k] = 1.0 - e[k] / fmax(1e-30, sums[2] / s->target_steps);
        }
    }
    const double h_l = 1.0 - s->rho * tanh(dc[0]), h_g = 1.0 - 0.5 * s->rho * tanh(dc[1]);
    const double e_l = clip(0.8 * (1.0 + s->lam * de[0]) + 0.2, 0.85, 1.15);
    const double e_g = clip(0.9 * (1.0 + 0.5 * s->lam * de[1]) + 0.1, 0.925, 1.075);
    return (0.3 * h_g + 0.7 * h_l) * (0.3 * e_g + 0.7 * e_l);
}

/* Moments, averages and weights, eqs. (7) to (10):
 * w <- w - (shrink w + c_m m / (sqrt v root + eps) + c_fast fast + c_slow slow + c_g g + c_abs |g|) */
static void update(const tensor_t *x, const settings_t *s, double gain) {
    const double step = *x->step, rate = s->lr * gain, *sums = x->sums;
    const double cosine = sums[DOT] / fmax(1e-30, sqrt(sums[POWER] * sums[SQUARES]));
    const double balance = sums[SIZE] < 0.2 * sums[SCALE] ? 0.05 * (1.0 - exp(-0.02 * step)) : 0.0;
    const float beta1 = (float)s->beta1, beta2 = (float)s->beta2, eps = (float)s->eps;
    const float shrink = (float)(s->lr * s->decay); /* a float holds it more exactly than 1 - it */
    const float c_m = (float)(rate / (1.0 - pow(s->beta1, step)));
    const float root = (float)(1.0 / sqrt(1.0 - pow(s->beta2, step)));
    const float c_fast = (float)(rate * 0.05 * 0.6), c_slow = (float)(rate * 0.05 * 0.4);
    const float c_g = (float)(rate * 0.01 * (1.0 + balance));
    const float c_abs = (float)(rate * 0.01 * 0.5 * tanh(cosine));
    const float keep_fast = 0.9f, keep_slow = 0.99f;
    const int64_t n = x->n;
    float *restrict w = x->w, *restrict m = x->m, *restrict v = x->v;
    float *restrict slow = x->slow, *restrict fast = x->fast;
    const float *restrict g = x->g;
#pragma omp parallel for if (n > MOST_SERIAL)
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = start + BLOCK < n ? start + BLOCK : n;
        if (fast)
            for (int64_t i = start; i < end; i++) {
                fast[i] = keep_fast * fast[i] + (1.0f - keep_fast) * g[i];
                w[i] -= c_fast * fast[i] / (1.0f - shrink); /* the loop below shrinks it */
            }
        const float c_first = fast ? 0.0f : c_fast;
        for (int64_t i = start; i < end; i++) {
            const float first = m[i] = beta1 * m[i] + (1.0f - beta1) * g[i];
            const float second = v[i] = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
            const float average = slow[i] = keep_slow * slow[i] + (1.0f - keep_slow) * g[i];
            w[i] -= shrink * w[i] + (c_m * first / (sqrtf(second) * root + eps) + c_first * first +
                                     c_slow * average + c_g * g[i] + c_abs * fabsf(g[i]));
        }
    }
}

/* A step of all tensors of a group. The sums over the group come first, eq. (1). The moments of a
 * tensor that fits the cache are measured just before its update, which then finds them there; those
 * of a larger one together with its gradient, which is then read once less. */
void step(const tensor_t *tensors, int64_t count, const settings_t *settings) {
    double squares = 0.0, activity = 0.0, elements = 0.0;
    for (int64_t k = 0; k < count; k++) {
        measure(&tensors[k], settings, 1, tensors[k].n > RESIDENT);
        squares += tensors[k].sums[SQUARES];
        activity += tensors[k].sums[ACTIVITY];
        elements += (double)tensors[k].n;
    }
    for (int64_t k = 0; k < count; k++) {
        const tensor_t *x = &tensors[k];
        *x->step += 1.0f;
        const double n = (double)x->n;
        const double c[2] = {x->sums[ACTIVITY] / n, activity / elements};
        const double e[2] = {x->sums[SQUARES] / n, squares / elements};
        const double gain = compute_gain(x, settings, c, e);
        if (x->n <= RESIDENT)
            measure(x, settings, 0, 1);
        update(x, settings, gain);
    }
}

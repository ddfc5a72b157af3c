/* One step of BiostatisV6 on a CPU, float32. The equations are those of biostatis.py.
 * Arrays are contiguous; sums are taken in blocks, in float within a block and in double over them. */

#include <math.h>
#include <stdint.h>

#define BLOCK 2048
#define MOST_SERIAL 65536

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

/* Sums over a tensor: [0] g^2, [1] tanh |g|, and with the moments after this step [2] m g, [3] m^2,
 * [4] |m|, [5] sqrt v. Nothing is written, so the second function reads the old moments again. */
void measure(const float *restrict g, const float *restrict m, const float *restrict v, int64_t n,
             float beta1, float beta2, double *restrict sums) {
    double squares = 0.0, activity = 0.0, dot = 0.0, power = 0.0, size = 0.0, scale = 0.0;
#pragma omp parallel for reduction(+ : squares, activity, dot, power, size, scale) if (n > MOST_SERIAL)
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = start + BLOCK < n ? start + BLOCK : n;
        float s = 0.0f, t = 0.0f, d = 0.0f, p = 0.0f, a = 0.0f, r = 0.0f;
        for (int64_t i = start; i < end; i++) {
            const float x = g[i], xx = x * x;
            const float first = beta1 * m[i] + (1.0f - beta1) * x;
            s += xx;
            t += tanh_abs(x);
            d += first * x;
            p += first * first;
            a += fabsf(first);
            r += sqrtf(beta2 * v[i] + (1.0f - beta2) * xx);
        }
        squares += s;
        activity += t;
        dot += d;
        power += p;
        size += a;
        scale += r;
    }
    sums[0] = squares;
    sums[1] = activity;
    sums[2] = dot;
    sums[3] = power;
    sums[4] = size;
    sums[5] = scale;
}

/* Moments, averages and weights:
 * w <- w - (shrink w + c_m m / (sqrt v root + eps) + c_fast fast + c_slow slow + c_g g + c_abs |g|)
 * `fast` is NULL where the fast average is the first moment. */
void update(float *restrict w, const float *restrict g, float *restrict m, float *restrict v,
            float *restrict slow, float *restrict fast, int64_t n, float beta1, float beta2,
            float keep_fast, float keep_slow, float shrink, float c_m, float root, float eps,
            float c_fast, float c_slow, float c_g, float c_abs) {
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
            const float x = g[i];
            const float first = m[i] = beta1 * m[i] + (1.0f - beta1) * x;
            const float second = v[i] = beta2 * v[i] + (1.0f - beta2) * x * x;
            const float average = slow[i] = keep_slow * slow[i] + (1.0f - keep_slow) * x;
            w[i] -= shrink * w[i] + (c_m * first / (sqrtf(second) * root + eps) + c_first * first +
                                     c_slow * average + c_g * x + c_abs * fabsf(x));
        }
    }
}

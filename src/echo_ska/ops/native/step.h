/* One token of every head: the decoding state in place (ops/decoding.py), in double, for one REAL type of the token. */

#ifndef STEP_ONCE
#define STEP_ONCE
#define STEP_VECTORS (VECTOR_BYTES == 64 ? 6 : 3)
#define INLINE static inline __attribute__((always_inline))

/* Columns of `out` (n) = a (r) times matrix (r x n), in registers. */
INLINE void combine_columns(const int vectors, long r, long n, const double *a, const double *matrix, double *out) {
  const long lanes = VECTOR_BYTES / sizeof(double);
  vector_f64 sum[STEP_VECTORS];
  for (int j = 0; j < vectors; j++) sum[j] = (vector_f64){0};
  for (long i = 0; i < r; i++)
    for (int j = 0; j < vectors; j++) sum[j] += a[i] * *(const vector_f64 *)(matrix + i * n + j * lanes);
  for (int j = 0; j < vectors; j++) *(vector_f64 *)(out + j * lanes) = sum[j];
}

static void combine(long r, long n, const double *a, const double *matrix, double *out) {
  const long lanes = VECTOR_BYTES / sizeof(double);
  long j = 0;
  for (; j + STEP_VECTORS * lanes <= n; j += STEP_VECTORS * lanes)
    combine_columns(STEP_VECTORS, r, n, a, matrix + j, out + j);
  for (; j + lanes <= n; j += lanes) combine_columns(1, r, n, a, matrix + j, out + j);
  for (; j < n; j++) {
    double sum = 0;
    for (long i = 0; i < r; i++) sum += a[i] * matrix[i * n + j];
    out[j] = sum;
  }
}

/* The inverse loses h h^T / spread, G gains x x^T and the lag's rows x_{t-1} x^T; next = point times the new lag. */
typedef struct {
  long r;
  double spread;
  double *inverse, *gram, *lag;
  const double *x, *h, *previous, *point;
  double *next;
} RankOne;

INLINE void update_columns(const int vectors, RankOne one, long from) {
  const long lanes = VECTOR_BYTES / sizeof(double);
  vector_f64 x[STEP_VECTORS], h[STEP_VECTORS], next[STEP_VECTORS];
  for (int j = 0; j < vectors; j++) {
    x[j] = *(const vector_f64 *)(one.x + from + j * lanes);
    h[j] = *(const vector_f64 *)(one.h + from + j * lanes);
    next[j] = (vector_f64){0};
  }
  for (long i = 0; i < one.r; i++) {
    const double of_h = one.h[i] / one.spread;
    for (int j = 0; j < vectors; j++) {
      const long place = i * one.r + from + j * lanes;
      vector_f64 *const lag = (vector_f64 *)(one.lag + place);
      *(vector_f64 *)(one.inverse + place) -= of_h * h[j];
      *(vector_f64 *)(one.gram + place) += one.x[i] * x[j];
      next[j] += one.point[i] * (*lag += one.previous[i] * x[j]);
    }
  }
  for (int j = 0; j < vectors; j++) *(vector_f64 *)(one.next + from + j * lanes) = next[j];
}

static void update(RankOne one) {
  const long lanes = VECTOR_BYTES / sizeof(double);
  long j = 0;
  for (; j + STEP_VECTORS * lanes <= one.r; j += STEP_VECTORS * lanes) update_columns(STEP_VECTORS, one, j);
  for (; j + lanes <= one.r; j += lanes) update_columns(1, one, j);
  for (; j < one.r; j++) {
    one.next[j] = 0;
    for (long i = 0; i < one.r; i++) {
      const long place = i * one.r + j;
      one.inverse[place] -= one.h[i] / one.spread * one.h[j];
      one.gram[place] += one.x[i] * one.x[j];
      one.next[j] += one.point[i] * (one.lag[place] += one.previous[i] * one.x[j]);
    }
  }
}

/* C (P x r) gains u x^T, then y = C point. Four rows at once: a sum over one row's lanes waits for itself. */
INLINE void write_and_read_rows(const int rows, long r, const double *u, const double *x, const double *point,
                                double *moment, double *y) {
  const long lanes = VECTOR_BYTES / sizeof(double), whole = r / lanes * lanes;
  vector_f64 sums[4] = {{0}, {0}, {0}, {0}};
  double rest[4] = {0, 0, 0, 0};
  for (long j = 0; j < whole; j += lanes) {
    const vector_f64 of_x = *(const vector_f64 *)(x + j), of_point = *(const vector_f64 *)(point + j);
    for (int i = 0; i < rows; i++) {
      vector_f64 *const place = (vector_f64 *)(moment + i * r + j);
      sums[i] += (*place += u[i] * of_x) * of_point;
    }
  }
  for (long j = whole; j < r; j++)
    for (int i = 0; i < rows; i++) rest[i] += (moment[i * r + j] += u[i] * x[j]) * point[j];
  for (int i = 0; i < rows; i++) {
    for (long lane = 0; lane < lanes; lane++) rest[i] += sums[i][lane];
    y[i] = rest[i];
  }
}

static void write_and_read(long P, long r, const double *u, const double *x, const double *point, double *moment,
                           double *y) {
  long i = 0;
  for (; i + 4 <= P; i += 4) write_and_read_rows(4, r, u + i, x, point, moment + i * r, y + i);
  for (; i < P; i++) write_and_read_rows(1, r, u + i, x, point, moment + i * r, y + i);
}
#endif

static double NAME(coefficient)(const void *given, double uniform, long place) {
  return given ? ((const REAL *)given)[place] : uniform;
}

/* Head `z` of all rows' heads, row after row. */
static void NAME(step_head)(const Step *step, long z) {
  const long r = step->rank, P = step->head_dim, height = 2 * r + P;
  double x[MOST_ROWS], q[MOST_ROWS], h[MOST_ROWS], first[MOST_ROWS], last[MOST_ROWS], next[MOST_ROWS];
  double u[MOST_ROWS], y[MOST_ROWS];
  const REAL *key = (const REAL *)step->key + z * r, *query = (const REAL *)step->query + z * r;
  const REAL *value = (const REAL *)step->value + z * P;
  double *gram = step->moments + z * height * r, *lag = gram + r * r, *moment = lag + r * r;
  double *inverse = step->inverse + z * r * r, *previous = step->previous_key + z * r;
  const double weight = sqrt(NAME(coefficient)(step->write_weight, 1, z));
  for (long j = 0; j < r; j++) x[j] = weight * key[j], q[j] = query[j];

  /* (G + x x^T)^-1 = J - h h^T / (1 + x^T h) with h = J x, and p_0 by the same formula. */
  combine(r, r, x, inverse, h);
  combine(r, r, q, inverse, first);
  const double spread = 1 + dot_f64(r, x, h), match = dot_f64(r, q, h) / spread;
  for (long j = 0; j < r; j++) last[j] = first[j] -= h[j] * match;
  update((RankOne){r, spread, inverse, gram, lag, x, h, previous, last, next});
  memcpy(previous, x, r * sizeof(double));

  const double scale = NAME(coefficient)(step->scale, step->uniform_scale, z % step->heads);
  double filtered = scale, plain = 0;
  if (step->power) {
    const double gain = NAME(coefficient)(step->gain, step->uniform_gain, z % step->heads);
    const double blend = NAME(coefficient)(step->blend, 1, z);
    for (long k = 0; k < step->power; k++) filtered *= gain;
    filtered *= blend, plain = scale * (1 - blend);
  }
  const double *readout = step->readouts ? step->readouts + z * 2 * P * r : 0; /* what a frozen chunk reads */
  if (!readout) {
    for (long k = 0; k < step->power; k++) {
      if (k) combine(r, r, last, lag, next);
      combine(r, r, next, inverse, last);
    }
    for (long j = 0; j < r; j++) last[j] = plain * first[j] + filtered * last[j];
  }
  for (long i = 0; i < P; i++) u[i] = weight * value[i];
  write_and_read(P, r, u, x, readout ? q : last, moment, y);
  if (readout)
    for (long i = 0; i < P; i++)
      y[i] = plain * dot_f64(r, readout + i * r, q) + filtered * dot_f64(r, readout + (P + i) * r, q);
  for (long i = 0; i < P; i++) ((REAL *)step->output)[z * P + i] = (REAL)y[i];
}

static void NAME(step)(Step *step) {
  for (;;) {
    const int64_t z = __atomic_fetch_add(&step->next, 1, __ATOMIC_RELAXED);
    if (z >= step->rows * step->heads) return;
    NAME(step_head)(step, z);
  }
}

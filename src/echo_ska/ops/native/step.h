/* One token of every head: the decoding state in place (ops/decoding.py), in double, for one REAL type of the token. */

static double NAME(coefficient)(const void *given, double uniform, long place) {
  return given ? ((const REAL *)given)[place] : uniform;
}

static void NAME(step)(const Step *step) {
  const long r = step->rank, P = step->head_dim, height = 2 * r + P;
  double x[MOST_RANK], h[MOST_RANK], first[MOST_RANK], last[MOST_RANK], next[MOST_RANK];
  for (long z = 0; z < step->matrices; z++) {
    const REAL *key = (const REAL *)step->key + z * r, *query = (const REAL *)step->query + z * r;
    const REAL *value = (const REAL *)step->value + z * P;
    double *gram = step->moments + z * height * r, *lag = gram + r * r, *moment = lag + r * r;
    double *inverse = step->inverse + z * r * r, *previous = step->previous_key + z * r;
    const double weight = sqrt(NAME(coefficient)(step->write_weight, 1, z));
    for (long j = 0; j < r; j++) x[j] = weight * key[j], h[j] = first[j] = 0;
    for (long i = 0; i < r; i++) {
      const double *row = inverse + i * r, of_key = x[i], of_query = query[i];
      for (long j = 0; j < r; j++) h[j] += of_key * row[j], first[j] += of_query * row[j];
    }
    /* (G + x x^T)^-1 = J - h h^T / (1 + x^T h), and p_0 by the same formula. */
    const double spread = 1 + dot_f64(r, x, h);
    double match = 0;
    for (long j = 0; j < r; j++) match += query[j] * h[j];
    for (long j = 0; j < r; j++) last[j] = first[j] -= h[j] * (match / spread);
    for (long i = 0; i < r; i++) {
      const double of_row = h[i] / spread, now = x[i], before = previous[i];
      double *inverse_row = inverse + i * r, *gram_row = gram + i * r, *lag_row = lag + i * r;
      for (long j = 0; j < r; j++) inverse_row[j] -= of_row * h[j];
      for (long j = 0; j < r; j++) gram_row[j] += now * x[j];
      for (long j = 0; j < r; j++) lag_row[j] += before * x[j];
    }
    for (long k = 0; k < step->power; k++) {
      for (long j = 0; j < r; j++) next[j] = 0;
      for (long i = 0; i < r; i++)
        for (long j = 0; j < r; j++) next[j] += last[i] * lag[i * r + j];
      for (long j = 0; j < r; j++) last[j] = 0;
      for (long i = 0; i < r; i++)
        for (long j = 0; j < r; j++) last[j] += next[i] * inverse[i * r + j];
    }
    const double scale = NAME(coefficient)(step->scale, step->uniform_scale, z % step->heads);
    double filtered = scale, plain = 0;
    if (step->power) {
      const double gain = NAME(coefficient)(step->gain, step->uniform_gain, z % step->heads);
      const double blend = NAME(coefficient)(step->blend, 1, z);
      for (long k = 0; k < step->power; k++) filtered *= gain;
      filtered *= blend, plain = scale * (1 - blend);
    }
    for (long j = 0; j < r; j++) last[j] = plain * first[j] + filtered * last[j];
    for (long i = 0; i < P; i++) {
      const double of_value = weight * value[i];
      double *row = moment + i * r;
      for (long j = 0; j < r; j++) row[j] += of_value * x[j];
      ((REAL *)step->output)[z * P + i] = (REAL)dot_f64(r, row, last);
    }
    for (long j = 0; j < r; j++) previous[j] = x[j];
  }
}

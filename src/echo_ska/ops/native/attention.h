/* One head of one sequence, forward and backward, for one REAL type. The algebra is that of docs/method.md section 3:
   segments of tokens, each whitened by the statistics before it (its anchor), read in chunks. */

/* What the backward pass adds. The carried gradients are those of the statistics after the tokens in hand. */
typedef struct {
  REAL *gram, *lag, *moment, *previous;        /* carried: r x rp, r x rp, P x rp; of the key before the chunk */
  REAL *carried;                               /* the same of every head in hand */
  REAL *window_gram, *window_lag, *window_moment; /* of the reads of the window in hand; the carried ones where that is
                                                     one chunk */
  REAL *incoming, *symmetric, *lag_t, *moment_t;
  REAL *output, *values, *values_t, *keys, *before, *point, *scores, *solved, *rows;
  REAL *snapshots;                             /* J, A, C at the start of each window of a segment */
  REAL *segment_keys, *segment_values, *segment_W; /* of a segment: whitened keys, behind the one before it; .. */
  REAL *segment_solved;                        /* .. and p_0 .. p_K, where they are computed again */
} NAME(Gradients);

/* What one worker computes with. Rows are tokens or key dimensions; `rp` and `vp` are r and P in whole vectors. */
typedef struct {
  long r, P, rp, vp, rd, vd, chunk, score_row;
  double *gram, *lag, *moment, *keys64, *values64, *upper, *lower, *whitener, *transposed, *work; /* statistics */
  REAL *anchor, *solved;                       /* where nothing is kept for a backward pass */
  REAL *whiten, *unwhiten;                     /* L^-T and L^-1, r x rp */
  REAL *inverse, *operator_, *readout;         /* J [r x rp], A^T or A [r x rp], C^T [r x vp] or C [P x rp] */
  REAL *frozen_inverse, *frozen_operator, *frozen_readout;
  REAL *raw, *keys, *keys_t, *W, *solve_rows_t, *queries, *values, *factor, *scores, *step, *point, *line;
  NAME(Gradients) grad;
} NAME(Head);

/* Numbers of one anchor: L^-1, A, the change of basis from the anchor before, C L^-T. */
static long NAME(anchor_size)(const Call *call) {
  return (3 * call->rank + call->head_dim) * NAME(padded)(call->rank);
}

static REAL *NAME(take)(char **arena, long count) {
  REAL *found = (REAL *)*arena;
  *arena += (count * sizeof(REAL) + 63) / 64 * 64;
  return found;
}

static double *NAME(take64)(char **arena, long count) {
  double *found = (double *)*arena;
  *arena += (count * sizeof(double) + 63) / 64 * 64;
  return found;
}

static void NAME(lay_out)(const Call *call, NAME(Head) * head, char **arena) {
  const long r = call->rank, P = call->head_dim, S = call->chunk;
  const long rp = NAME(padded)(r), vp = NAME(padded)(P), rd = padded_f64(r), vd = padded_f64(P);
  const long sp = NAME(padded)(S + 1) + 64 / sizeof(REAL);
  head->r = r, head->P = P, head->rp = rp, head->vp = vp, head->rd = rd, head->vd = vd, head->chunk = S;
  head->score_row = sp;
  const long most = (r > P ? r : P), wide = rd > vd ? rd : vd;
  double **doubles[] = {&head->gram, &head->lag, &head->moment, &head->upper, &head->lower, &head->whitener,
                        &head->transposed, &head->work};
  for (int i = 0; i < 8; i++) *doubles[i] = NAME(take64)(arena, most * wide);
  head->keys64 = NAME(take64)(arena, (S + 1) * rd);
  head->values64 = NAME(take64)(arena, S * vd);
  head->whiten = NAME(take)(arena, r * rp);
  head->inverse = NAME(take)(arena, r * rp), head->operator_ = NAME(take)(arena, r * rp);
  head->readout = NAME(take)(arena, (most + 1) * (rp > vp ? rp : vp));
  head->frozen_inverse = NAME(take)(arena, r * rp), head->frozen_operator = NAME(take)(arena, r * rp);
  head->frozen_readout = NAME(take)(arena, (most + 1) * (rp > vp ? rp : vp));
  head->raw = NAME(take)(arena, (S + 1) * rp), head->keys = NAME(take)(arena, (S + 1) * rp);
  head->W = NAME(take)(arena, S * rp);
  head->keys_t = NAME(take)(arena, r * sp), head->solve_rows_t = NAME(take)(arena, r * sp);
  head->queries = NAME(take)(arena, S * rp), head->values = NAME(take)(arena, S * vp);
  head->factor = NAME(take)(arena, S * sp);
  head->scores = NAME(take)(arena, S * sp);
  head->step = NAME(take)(arena, S * rp), head->point = NAME(take)(arena, S * rp);
  head->line = NAME(take)(arena, (S > most ? S : most) * (rp > vp ? rp : vp));
  head->anchor = NAME(take)(arena, NAME(anchor_size)(call));
  head->solved = NAME(take)(arena, S * (call->power + 1) * rp);
  if (!call->backward) return;
  NAME(Gradients) *grad = &head->grad;
  const long carried = 2 * r * rp + P * rp + rp;
  grad->gram = NAME(take)(arena, carried);
  grad->lag = grad->gram + r * rp, grad->moment = grad->lag + r * rp, grad->previous = grad->moment + P * rp;
  grad->carried = NAME(take)(arena, call->group * carried);
  grad->window_gram = grad->gram, grad->window_lag = grad->lag, grad->window_moment = grad->moment;
  REAL **squares[] = {&grad->incoming,    &grad->symmetric,  &grad->lag_t,        &grad->moment_t,
                      &grad->window_gram, &grad->window_lag, &grad->window_moment};
  for (int i = 0; i < (call->interval ? 7 : 4); i++) *squares[i] = NAME(take)(arena, most * (rp > vp ? rp : vp));
  REAL **lines[] = {&grad->output, &grad->values, &grad->keys, &grad->before, &grad->point, &grad->rows};
  for (int i = 0; i < 6; i++) *lines[i] = NAME(take)(arena, S * (rp > vp ? rp : vp));
  grad->values_t = NAME(take)(arena, P * sp), grad->scores = NAME(take)(arena, (call->power + 1) * S * sp);
  grad->solved = NAME(take)(arena, S * (call->power + 1) * rp);
  grad->snapshots = NAME(take)(arena, call->most_windows * (2 * r + P) * rp);
  const long segment = call->longest_segment;
  grad->segment_keys = NAME(take)(arena, (segment + 1) * rp), grad->segment_W = NAME(take)(arena, segment * rp);
  grad->segment_values = NAME(take)(arena, segment * vp);
  grad->segment_solved = NAME(take)(arena, call->keep_rows ? 0 : segment * (call->power + 1) * rp);
}

/* Tokens t..t+m of one head, each times sqrt(weight): to (m x row) in REAL, columns zero-padded. Tokens t+next.. will
   be wanted soon. */
static void NAME(load)(const Call *call, const void *from, long h, long t, long m, long next, long width,
                       const REAL *weights, REAL *to, long row) {
  const REAL *source = (const REAL *)from;
  for (long i = 0; i < m; i++) {
    const long place = (t + i) * call->heads + h;
    const REAL factor = weights ? NAME(root)(weights[place]) : 1;
    const REAL *ahead = source + (place + call->heads * next) * width;
    for (long j = 0; j < width; j += 64 / sizeof(REAL)) __builtin_prefetch(ahead + j);
    for (long j = 0; j < width; j++) to[i * row + j] = factor * source[place * width + j];
    for (long j = width; j < row; j++) to[i * row + j] = 0;
  }
}

/* scores (m x m) = rows other^T for the pairs s <= t, 0 for the others; `other_t` is r x m. */
static void NAME(mask)(const NAME(Head) * head, long m, REAL *scores) {
  for (long t = 0; t < m; t++) {
    const long block_end = t / TILE_ROWS * TILE_ROWS + TILE_ROWS <= m ? t / TILE_ROWS * TILE_ROWS + TILE_ROWS : m;
    const long end = NAME(padded)(block_end);
    for (long s = t + 1; s < end; s++) scores[t * head->score_row + s] = 0;
  }
}

static void NAME(causal_scores)(const NAME(Head) * head, long m, long width, const REAL *rows, long row,
                                const REAL *other_t, REAL *scores) {
  NAME(product)(SET, LOWER_C, m, m, width, rows, row, 1, other_t, head->score_row, scores, head->score_row);
  NAME(mask)(head, m, scores);
}

/* solved = rows J - mask(rows W^T) W, row by row G~_t^-1; without `solve_rows` (a frozen read) rows J alone. */
static void NAME(solve)(const NAME(Head) * head, long m, const REAL *rows, const REAL *inverse, const REAL *solve_rows,
                        REAL *scores, REAL *solved) {
  const long r = head->r, rp = head->rp;
  NAME(product)(SET, FULL, m, r, r, rows, rp, 1, inverse, rp, solved, rp);
  if (!solve_rows) return;
  NAME(causal_scores)(head, m, r, rows, rp, head->solve_rows_t, scores);
  NAME(product)(SUBTRACT, LOWER_A, m, r, m, scores, head->score_row, 1, solve_rows, rp, solved, rp);
}

/* The statistics' double sums gain m tokens; keys64 has the key before them in row 0 and carries the last one on. */
static void NAME(advance_statistics)(const Call *call, NAME(Head) * head, long m) {
  const long r = head->r, P = head->P, rp = head->rp, rd = head->rd, vd = head->vd;
  double *keys = head->keys64 + rd;
  for (long i = 0; i < m; i++) {
    for (long j = 0; j < r; j++) keys[i * rd + j] = head->raw[(i + 1) * rp + j];
    for (long j = r; j < rd; j++) keys[i * rd + j] = 0;
    for (long j = 0; j < P; j++) head->values64[i * vd + j] = head->values[i * head->vp + j];
  }
  product_f64(ADD, UPPER_C, r, r, m, keys, 1, rd, keys, rd, head->gram, rd);
  if (call->sum_lags) product_f64(ADD, FULL, r, r, m, keys, 1, rd, head->keys64, rd, head->lag, rd);
  product_f64(ADD, FULL, P, r, m, head->values64, 1, vd, keys, rd, head->moment, rd);
  for (long j = 0; j < rd; j++) head->keys64[j] = keys[(m - 1) * rd + j];
}

/* Whiten by this anchor from here on; J is the identity there. */
static void NAME(use_anchor)(NAME(Head) * head, REAL *anchor) {
  const long r = head->r, rp = head->rp;
  head->unwhiten = anchor;
  NAME(transpose)(r, r, anchor, rp, head->whiten, rp);
  for (long i = 0; i < r; i++)
    for (long j = 0; j < rp; j++) head->inverse[i * rp + j] = i == j;
}

/* Factor the statistics at a segment's start. Fills upper (U with U^T U = G~) and whitener (L^-1) in double, and the
   anchor that is kept: L^-1, A (unless the power is 0), C L^-T and the change of basis from the anchor before it,
   L^-1 L_before, where the transpose of that L is given. */
static int NAME(set_anchor)(const Call *call, NAME(Head) * head, double ridge, const double *upper_before,
                            REAL *anchor) {
  const long r = head->r, P = head->P, rp = head->rp, rd = head->rd;
  REAL *whitener = anchor, *operator_ = anchor + r * rp, *basis = anchor + 2 * r * rp, *readout = anchor + 3 * r * rp;
  for (long i = 0; i < r; i++) {
    for (long j = 0; j < rd; j++) {
      head->upper[i * rd + j] = head->gram[i * rd + j];
      head->whitener[i * rd + j] = 0;
    }
    head->upper[i * rd + i] += ridge;
    head->whitener[i * rd + i] = 1;
  }
  const int failed = cholesky_f64(r, head->upper, rd);
  if (failed) return failed;
  solve_lower_f64(r, r, head->upper, rd, head->whitener, rd);
  for (long i = 0; i < r; i++)
    for (long j = i + 1; j < rd; j++) head->whitener[i * rd + j] = 0;
  transpose_f64(r, r, head->whitener, rd, head->transposed, rd);
#define KEEP(ROWS, FROM, TO)                                                                                           \
  for (long i = 0; i < (ROWS); i++)                                                                                    \
    for (long j = 0; j < rp; j++) (TO)[i * rp + j] = j < r ? (REAL)(FROM)[i * rd + j] : 0
  KEEP(r, head->whitener, whitener);
  if (upper_before) {
    for (long i = 0; i < r; i++)
      for (long j = 0; j < rd; j++) head->lower[i * rd + j] = j < r ? upper_before[j * r + i] : 0;
    product_f64(SET, LOWER_A, r, r, r, head->whitener, rd, 1, head->lower, rd, head->work, rd);
    KEEP(r, head->work, basis);
  }
  if (call->power) {
    product_f64(SET, LOWER_A, r, r, r, head->whitener, rd, 1, head->lag, rd, head->work, rd);
    product_f64(SET, UPPER_B, r, r, r, head->work, rd, 1, head->transposed, rd, head->lower, rd);
    KEEP(r, head->lower, operator_);
  }
  product_f64(SET, UPPER_B, P, r, r, head->moment, rd, 1, head->transposed, rd, head->work, rd);
  KEEP(P, head->work, readout);
#undef KEEP
  NAME(use_anchor)(head, anchor);
  return 0;
}

/* Load chunk t..t+m: raw and whitened keys, behind the one before them, and values. */
static void NAME(load_chunk)(const Call *call, NAME(Head) * head, long h, long t, long m) {
  const long r = head->r, rp = head->rp;
  const REAL *weights = (const REAL *)call->write_weight;
  NAME(load)(call, call->key, h, t, m, m, r, weights, head->raw + rp, rp);
  NAME(load)(call, call->value, h, t, m, m, head->P, weights, head->values, head->vp);
  NAME(product)(SET, UPPER_B, m, r, r, head->raw + rp, rp, 1, head->whiten, rp, head->keys + rp, rp);
}

static void NAME(transpose_keys)(NAME(Head) * head, long m) {
  NAME(transpose)(m + 1, head->r, head->keys, head->rp, head->keys_t, head->score_row);
}

/* W of the chunk, m rows. Returns 0, or where I + X J X^T is not positive definite (it always is, of finite keys). */
static int NAME(factor_chunk)(NAME(Head) * head, long m, const REAL *inverse, int is_first, REAL *W) {
  const long r = head->r, rp = head->rp, sp = head->score_row;
  const REAL *keys = head->keys + rp;
  if (is_first) /* J is the identity */
    memcpy(W, keys, m * rp * sizeof(REAL));
  else
    NAME(product)(SET, FULL, m, r, r, keys, rp, 1, inverse, rp, W, rp);
  NAME(product)(SET, UPPER_C, m, m, r, W, rp, 1, head->keys_t + 1, sp, head->factor, sp);
  for (long i = 0; i < m; i++) head->factor[i * sp + i] += 1;
  const int failed = NAME(cholesky)(m, head->factor, sp);
  if (!failed) NAME(solve_lower)(m, r, head->factor, sp, W, rp);
  return failed;
}

/* p_0 .. p_K of the chunk's queries, m rows each, one after the other in `solved`. */
static void NAME(solve_queries)(const Call *call, NAME(Head) * head, long m, const REAL *inverse,
                                const REAL *operator_t, const REAL *W, REAL *solved) {
  const long r = head->r, rp = head->rp;
  NAME(solve)(head, m, head->queries, inverse, W, head->scores, solved);
  for (long j = 0; j < call->power; j++) {
    const REAL *before = solved + j * m * rp;
    NAME(product)(SET, FULL, m, r, r, before, rp, 1, operator_t, rp, head->step, rp);
    if (W) {
      NAME(causal_scores)(head, m, r, before, rp, head->keys_t, head->scores);
      NAME(product)(ADD, LOWER_A, m, r, m, head->scores, head->score_row, 1, head->keys + rp, rp, head->step, rp);
    }
    NAME(solve)(head, m, head->step, inverse, W, head->scores, solved + (j + 1) * m * rp);
  }
}

/* plain p_0 + filtered p_K, m x rp. */
static void NAME(blend)(const Call *call, const NAME(Head) * head, long h, long t, long m, const REAL *solved,
                        REAL *point) {
  const REAL *plain = (const REAL *)call->plain, *filtered = (const REAL *)call->filtered;
  for (long i = 0; i < m; i++) {
    const long place = (t + i) * call->heads + h;
    const REAL *first = solved + i * head->rp, *last = first + call->power * m * head->rp;
    const REAL a = plain ? plain[place] : 0, b = filtered[place];
    if (plain)
      for (long j = 0; j < head->rp; j++) point[i * head->rp + j] = a * first[j] + b * last[j];
    else
      for (long j = 0; j < head->rp; j++) point[i * head->rp + j] = b * last[j];
  }
}

static void NAME(copy_state)(const NAME(Head) * head, long readout_size) {
  const long size = head->r * head->rp;
  memcpy(head->frozen_inverse, head->inverse, size * sizeof(REAL));
  memcpy(head->frozen_operator, head->operator_, size * sizeof(REAL));
  memcpy(head->frozen_readout, head->readout, readout_size * sizeof(REAL));
}

/* Tokens of the next chunk: none crosses the end of its segment or of its window (chunk-causal reading). */
static long NAME(chunk_length)(const Call *call, long first, long t, long end) {
  long m = call->chunk < end - t ? call->chunk : end - t;
  if (call->interval) {
    const long left = call->interval - (t - first) % call->interval;
    if (left < m) m = left;
  }
  return m;
}

/* The raw key before token t, in REAL and double, and whitened in row 0 of keys. */
static void NAME(load_previous)(const Call *call, NAME(Head) * head, long n, long h, long t) {
  const long r = head->r, rp = head->rp;
  if (t == call->bounds[n]) {
    const double *previous = call->previous_key + (n * call->heads + h) * r;
    for (long j = 0; j < rp; j++) head->raw[j] = j < r ? (REAL)previous[j] : 0;
    for (long j = 0; j < head->rd; j++) head->keys64[j] = j < r ? previous[j] : 0;
  } else {
    NAME(load)(call, call->key, h, t - 1, 1, 1, r, (const REAL *)call->write_weight, head->raw, rp);
    for (long j = 0; j < head->rd; j++) head->keys64[j] = j < r ? head->raw[j] : 0;
  }
  NAME(product)(SET, UPPER_B, 1, r, r, head->raw, rp, 1, head->whiten, rp, head->keys, rp);
}

/* One segment of one head. The statistics after the segment before it stand where the call returns them. Returns 0, the
   minor where the statistics plus the ridge are not positive definite, or less than 0 where a chunk in REAL is not. */
static int NAME(forward_segment)(const Call *call, NAME(Head) * head, long n, long h, long g) {
  const long r = head->r, P = head->P, rp = head->rp, vp = head->vp, rd = head->rd, sp = head->score_row;
  const long first = call->bounds[n], kept = (call->power + 1) * rp; /* p_0 .. p_K, chunk by chunk */
  const long begin = call->segments[g], end = segment_end(call, n, g);
  const int is_first = g == call->segment_first[n];
  double *upper = call->keep_anchors ? call->last_upper + (n * call->heads + h) * r * r : 0;
  REAL *anchor = upper ? (REAL *)call->anchors + (g * call->heads + h) * NAME(anchor_size)(call) : head->anchor;
  read_state(call, n, h, is_first, head->gram, head->lag, head->moment, rd);
  const int failed = NAME(set_anchor)(call, head, call->ridge[h], is_first ? 0 : upper, anchor);
  if (failed) return failed;
  if (upper)
    for (long i = 0; i < r; i++)
      for (long j = 0; j < r; j++) upper[i * r + j] = j >= i ? head->upper[i * rd + j] : 0;
  if (call->power) NAME(transpose)(r, r, anchor + r * rp, rp, head->operator_, rp);
  NAME(transpose)(P, r, anchor + 3 * r * rp, rp, head->readout, vp);
  NAME(load_previous)(call, head, n, h, begin);
  if (call->interval) NAME(copy_state)(head, r * vp);
  for (long t = begin, m; t < end; t += m) {
    m = NAME(chunk_length)(call, first, t, end);
    if (call->interval && t == last_boundary(call, n))
      freeze_state(call, n, h, head->gram, head->lag, head->moment, rd);
    const int window_ends = !call->interval || (t + m - first) % call->interval == 0;
    const int more = call->interval ? (t - first) / call->interval < (end - 1 - first) / call->interval : t + m < end;
    REAL *solved = call->keep_rows ? (REAL *)call->rows + (h * call->tokens + t) * kept : head->solved, *W = head->W;
    NAME(load_chunk)(call, head, h, t, m);
    NAME(transpose_keys)(head, m);
    NAME(load)(call, call->query, h, t, m, m, r, 0, head->step, rp);
    NAME(product)(SET, UPPER_B, m, r, r, head->step, rp, 1, head->whiten, rp, head->queries, rp);
    if (!call->interval || more) {
      const int broken = NAME(factor_chunk)(head, m, head->inverse, t == begin, W);
      if (broken) return -broken;
    }
    REAL *output = (REAL *)call->output + (t * call->heads + h) * P;
    if (call->interval) {
      NAME(solve_queries)(call, head, m, head->frozen_inverse, head->frozen_operator, 0, solved);
    } else {
      NAME(transpose)(m, r, W, rp, head->solve_rows_t, sp);
      NAME(solve_queries)(call, head, m, head->inverse, head->operator_, W, solved);
    }
    NAME(blend)(call, head, h, t, m, solved, head->point);
    const REAL *readout = call->interval ? head->frozen_readout : head->readout;
    NAME(product)(SET, FULL, m, P, r, head->point, rp, 1, readout, vp, head->line, vp);
    if (!call->interval) {
      NAME(causal_scores)(head, m, r, head->point, rp, head->keys_t + 1, head->scores);
      NAME(product)(ADD, LOWER_A, m, P, m, head->scores, sp, 1, head->values, vp, head->line, vp);
    }
    for (long i = 0; i < m; i++)
      for (long j = 0; j < P; j++) output[i * call->heads * P + j] = head->line[i * vp + j];
    NAME(advance_statistics)(call, head, m);
    if (!more) continue;
    NAME(product)(SUBTRACT, FULL, r, r, m, W, 1, rp, W, rp, head->inverse, rp);
    if (call->power) NAME(product)(ADD, FULL, r, r, m, head->keys, 1, rp, head->keys + rp, rp, head->operator_, rp);
    NAME(product)(ADD, FULL, r, P, m, head->keys + rp, 1, rp, head->values, vp, head->readout, vp);
    memcpy(head->keys, head->keys + m * rp, rp * sizeof(REAL));
    if (call->interval && window_ends) NAME(copy_state)(head, r * vp);
  }
  if (call->interval && last_boundary(call, n) == end && end == call->bounds[n + 1])
    freeze_state(call, n, h, head->gram, head->lag, head->moment, rd);
  write_state(call, n, h, head->gram, head->lag, head->moment, rd, call->gram_after, call->lag_after,
              call->moment_after);
  return 0;
}

/* Some heads of one sequence, segment by segment: heads lie beside each other in memory, tokens far apart. */
static void NAME(forward)(const Call *call, NAME(Head) * head, long n, long from, long to) {
  const long r = head->r;
  for (long g = call->segment_first[n]; g < call->segment_first[n + 1]; g++)
    for (long h = from; h < to; h++) {
      int32_t *info = call->info + n * call->heads + h;
      if (!*info) *info = NAME(forward_segment)(call, head, n, h, g);
    }
  if (call->bounds[n] < call->bounds[n + 1]) return;
  for (long h = from; h < to; h++) { /* no token: the state as it was */
    read_state(call, n, h, 1, head->gram, head->lag, head->moment, head->rd);
    write_state(call, n, h, head->gram, head->lag, head->moment, head->rd, call->gram_after, call->lag_after,
                call->moment_after);
    if (call->interval) freeze_state(call, n, h, head->gram, head->lag, head->moment, head->rd);
    if (call->keep_anchors)
      for (long i = 0; i < r * r; i++) call->last_upper[(n * call->heads + h) * r * r + i] = i % (r + 1) == 0;
  }
}

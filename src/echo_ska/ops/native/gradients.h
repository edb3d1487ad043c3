/* The backward pass of one head of one sequence, for one REAL type: segments and chunks in reverse, adjoint solves, no
   derivative of a factorisation. */

static void NAME(clear)(REAL *numbers, long count) { memset(numbers, 0, count * sizeof(REAL)); }

static void NAME(add)(REAL *to, const REAL *from, long count) {
  for (long i = 0; i < count; i++) to[i] += from[i];
}

static REAL *NAME(solved_rows)(const Call *call, const NAME(Head) * head, long h, long begin, long t) {
  const long kept = (call->power + 1) * head->rp;
  return call->keep_rows ? (REAL *)call->rows + (h * call->tokens + t) * kept
                         : head->grad.segment_solved + (t - begin) * kept;
}

/* Look at the chunk of the segment's keys, values and W that begins with token t. */
static void NAME(look_at)(NAME(Head) * head, long begin, long t) {
  head->keys = head->grad.segment_keys + (t - begin) * head->rp;
  head->values = head->grad.segment_values + (t - begin) * head->vp;
  head->W = head->grad.segment_W + (t - begin) * head->rp;
}

/* The segment's keys, values and W, and J, A, C at the start of every window; where nothing was kept, its reads. */
static void NAME(retrace)(const Call *call, NAME(Head) * head, long n, long h, long begin, long end,
                          const REAL *anchor) {
  const long r = head->r, P = head->P, rp = head->rp, first = call->bounds[n];
  const long square = r * rp, size = 2 * square + P * rp;
  memcpy(head->operator_, anchor + square, square * sizeof(REAL));
  memcpy(head->readout, anchor + 3 * square, P * rp * sizeof(REAL));
  REAL *snapshot = head->grad.snapshots - size;
  NAME(look_at)(head, begin, begin);
  NAME(load_previous)(call, head, n, h, begin);
  for (long t = begin, m; t < end; t += m) {
    m = NAME(chunk_length)(call, first, t, end);
    if (!call->interval || (t - first) % call->interval == 0) {
      snapshot += size;
      memcpy(snapshot, head->inverse, square * sizeof(REAL));
      memcpy(snapshot + square, head->operator_, square * sizeof(REAL));
      memcpy(snapshot + 2 * square, head->readout, P * rp * sizeof(REAL));
      if (!call->keep_rows) NAME(transpose)(r, r, head->operator_, rp, head->frozen_operator, rp);
    }
    const int more = call->interval ? (t - first) / call->interval < (end - 1 - first) / call->interval : t + m < end;
    NAME(look_at)(head, begin, t);
    NAME(load_chunk)(call, head, h, t, m);
    REAL *solved = NAME(solved_rows)(call, head, h, begin, t), *W = head->W;
    if (!call->interval || more) {
      NAME(transpose_keys)(head, m);
      NAME(factor_chunk)(head, m, head->inverse, t == begin, W);
    }
    if (!call->keep_rows) {
      NAME(load)(call, call->query, h, t, m, m, r, 0, head->step, rp);
      NAME(product)(SET, UPPER_B, m, r, r, head->step, rp, 1, head->whiten, rp, head->queries, rp);
      if (!call->interval) NAME(transpose)(m, r, W, rp, head->solve_rows_t, head->score_row);
      NAME(solve_queries)(call, head, m, snapshot, head->frozen_operator, call->interval ? 0 : W, solved);
    }
    if (!more) continue;
    NAME(product)(SUBTRACT, FULL, r, r, m, W, 1, rp, W, rp, head->inverse, rp);
    if (call->power) NAME(product)(ADD, FULL, r, r, m, head->keys + rp, 1, rp, head->keys, rp, head->operator_, rp);
    NAME(product)(ADD, FULL, P, r, m, head->values, 1, head->vp, head->keys + rp, rp, head->readout, rp);
  }
}

/* Gradients of the coefficients, and `step` = what p_K gets of the point's gradient. */
static void NAME(unblend)(const Call *call, NAME(Head) * head, long h, long t, long m, const REAL *solved) {
  const long r = head->r, rp = head->rp;
  const REAL *plain = (const REAL *)call->plain, *filtered = (const REAL *)call->filtered;
  for (long i = 0; i < m; i++) {
    const long place = (t + i) * call->heads + h;
    const REAL *first = solved + i * rp, *last = first + call->power * m * rp, *point = head->grad.point + i * rp;
    ((REAL *)call->filtered_grad)[place] = NAME(dot)(r, point, last);
    if (plain) ((REAL *)call->plain_grad)[place] = NAME(dot)(r, point, first);
    for (long j = 0; j < rp; j++) head->step[i * rp + j] = filtered[place] * point[j];
  }
}

/* The adjoint solves c_K .. c_0 of the chunk, from `step`, into grad.solved as p_0 .. p_K lie. */
static void NAME(adjoint_solves)(const Call *call, NAME(Head) * head, long h, long t, long m, const REAL *inverse,
                                 const REAL *operator_, const REAL *W) {
  const long r = head->r, rp = head->rp, sp = head->score_row;
  NAME(Gradients) *grad = &head->grad;
  for (long j = call->power;; j--) {
    if (j == 0 && call->plain)
      for (long i = 0; i < m; i++) {
        const REAL factor = ((const REAL *)call->plain)[(t + i) * call->heads + h];
        for (long p = 0; p < rp; p++) head->step[i * rp + p] += factor * grad->point[i * rp + p];
      }
    REAL *c = grad->solved + j * m * rp, *scores = grad->scores + j * head->chunk * sp;
    NAME(solve)(head, m, head->step, inverse, W, head->scores, c);
    if (W) NAME(causal_scores)(head, m, r, c, rp, head->keys_t + 1, scores);
    if (j == 0) return;
    NAME(product)(SET, FULL, m, r, r, c, rp, 1, operator_, rp, head->step, rp);
    if (W) NAME(product)(ADD, LOWER_A, m, r, m, scores, sp, 1, head->keys, rp, head->step, rp);
  }
}

/* Raw gradients of the chunk's keys, values and weights from the whitened ones. */
static void NAME(write_gradients)(const Call *call, NAME(Head) * head, long h, long t, long m) {
  const long r = head->r, P = head->P, rp = head->rp, vp = head->vp;
  NAME(Gradients) *grad = &head->grad;
  if (uses_lag(call)) NAME(add)(grad->keys, grad->before + rp, (m - 1) * rp);
  NAME(product)(SET, LOWER_B, m, r, r, grad->keys, rp, 1, head->unwhiten, rp, grad->rows, rp);
  if (uses_lag(call)) {
    NAME(add)(grad->rows + (m - 1) * rp, grad->previous, r);
    NAME(product)(SET, LOWER_B, 1, r, r, grad->before, rp, 1, head->unwhiten, rp, grad->previous, rp);
  }
  const REAL *weights = (const REAL *)call->write_weight;
  for (long i = 0; i < m; i++) {
    const long place = (t + i) * call->heads + h;
    const REAL factor = weights ? NAME(root)(weights[place]) : 1;
    REAL *key = (REAL *)call->key_grad + place * r, *value = (REAL *)call->value_grad + place * P;
    const REAL *of_key = grad->rows + i * rp, *of_value = grad->values + i * vp;
    for (long j = 0; j < r; j++) key[j] = factor * of_key[j];
    for (long j = 0; j < P; j++) value[j] = factor * of_value[j];
    if (!weights) continue;
    const REAL *given_key = (const REAL *)call->key + place * r, *given_value = (const REAL *)call->value + place * P;
    REAL sum = 0;
    for (long j = 0; j < r; j++) sum += of_key[j] * given_key[j];
    for (long j = 0; j < P; j++) sum += of_value[j] * given_value[j];
    ((REAL *)call->write_weight_grad)[place] = factor > 0 ? sum / (2 * factor) : 0; /* at 0: defined as 0 */
  }
}

static void NAME(backward_chunk)(const Call *call, NAME(Head) * head, long h, long begin, long t, long m,
                                 const REAL *snapshot) {
  const long r = head->r, P = head->P, rp = head->rp, vp = head->vp, sp = head->score_row;
  const REAL *inverse = snapshot, *operator_ = snapshot + r * rp, *readout = snapshot + 2 * r * rp;
  const REAL *solved = NAME(solved_rows)(call, head, h, begin, t);
  NAME(Gradients) *grad = &head->grad;
  NAME(look_at)(head, begin, t);
  const REAL *W = head->W;
  NAME(transpose_keys)(head, m);
  NAME(load)(call, call->output_grad, h, t, m, -m, P, 0, grad->output, vp);
  NAME(blend)(call, head, h, t, m, solved, head->point);
  const REAL *keys = head->keys + rp;
  NAME(product)(SET, FULL, m, r, P, grad->output, vp, 1, readout, rp, grad->point, rp);
  if (call->interval) {
    NAME(clear)(grad->values, m * vp);
    NAME(clear)(grad->keys, m * rp);
  } else {
    NAME(transpose)(m, r, W, rp, head->solve_rows_t, sp);
    NAME(transpose)(m, P, head->values, vp, grad->values_t, sp);
    NAME(causal_scores)(head, m, P, grad->output, vp, grad->values_t, head->scores);
    NAME(product)(ADD, LOWER_A, m, r, m, head->scores, sp, 1, keys, rp, grad->point, rp);
    NAME(product)(SET, UPPER_A, m, r, m, head->scores, 1, sp, head->point, rp, grad->keys, rp);
    NAME(causal_scores)(head, m, r, head->point, rp, head->keys_t + 1, head->scores);
    NAME(product)(SET, UPPER_A, m, P, m, head->scores, 1, sp, grad->output, vp, grad->values, vp);
  }
  /* What later reads say of this chunk's tokens. */
  NAME(product)(ADD, FULL, m, r, r, keys, rp, 1, grad->symmetric, rp, grad->keys, rp);
  if (uses_lag(call)) NAME(product)(ADD, FULL, m, r, r, head->keys, rp, 1, grad->lag_t, rp, grad->keys, rp);
  NAME(product)(ADD, FULL, m, r, P, head->values, vp, 1, grad->moment, rp, grad->keys, rp);
  NAME(product)(ADD, FULL, m, P, r, keys, rp, 1, grad->moment_t, vp, grad->values, vp);
  if (uses_lag(call)) NAME(product)(SET, FULL, m, r, r, keys, rp, 1, grad->lag, rp, grad->before, rp);

  NAME(product)(ADD, FULL, P, r, m, grad->output, 1, vp, head->point, rp, grad->window_moment, rp);
  NAME(unblend)(call, head, h, t, m, solved);
  NAME(adjoint_solves)(call, head, h, t, m, inverse, operator_, call->interval ? 0 : W);
  NAME(product)(SET, LOWER_B, m, r, r, grad->solved, rp, 1, head->unwhiten, rp, grad->rows, rp);
  for (long i = 0; i < m; i++) {
    REAL *query = (REAL *)call->query_grad + ((t + i) * call->heads + h) * r;
    for (long j = 0; j < r; j++) query[j] = grad->rows[i * rp + j];
  }
  /* All powers at once: c_j^T p_j, and c_j^T p_{j-1} from the second on. */
  const long all = call->power * m;
  NAME(product)(SUBTRACT, FULL, r, r, all + m, grad->solved, 1, rp, solved, rp, grad->window_gram, rp);
  if (all) NAME(product)(ADD, FULL, r, r, all, grad->solved + m * rp, 1, rp, solved, rp, grad->window_lag, rp);
  for (long j = 0; j <= call->power && !call->interval; j++) {
    const REAL *c = grad->solved + j * m * rp, *p = solved + j * m * rp, *scores = grad->scores + j * head->chunk * sp;
    NAME(product)(SET, LOWER_C, m, m, r, p, rp, 1, head->keys_t + 1, sp, head->scores, sp);
    if (j) NAME(product)(SUBTRACT, LOWER_C, m, m, r, p - m * rp, rp, 1, head->keys_t, sp, head->scores, sp);
    NAME(mask)(head, m, head->scores);
    NAME(product)(SUBTRACT, UPPER_A, m, r, m, head->scores, 1, sp, c, rp, grad->keys, rp);
    NAME(product)(SUBTRACT, UPPER_A, m, r, m, scores, 1, sp, p, rp, grad->keys, rp);
    if (j) NAME(product)(ADD, UPPER_A, m, r, m, scores, 1, sp, p - m * rp, rp, grad->before, rp);
  }
  NAME(write_gradients)(call, head, h, t, m);
}

/* The carried gradients gain those of the window's reads; the forms that the products need follow. */
static void NAME(turn_window)(const Call *call, NAME(Head) * head, int begins) {
  const long r = head->r, P = head->P, rp = head->rp, vp = head->vp;
  NAME(Gradients) *grad = &head->grad;
  if (begins && call->interval) {
    NAME(add)(grad->gram, grad->window_gram, r * rp), NAME(clear)(grad->window_gram, r * rp);
    NAME(add)(grad->lag, grad->window_lag, r * rp), NAME(clear)(grad->window_lag, r * rp);
    NAME(add)(grad->moment, grad->window_moment, P * rp), NAME(clear)(grad->window_moment, P * rp);
  }
  NAME(transpose)(r, r, grad->gram, rp, grad->symmetric, rp);
  NAME(add)(grad->symmetric, grad->gram, r * rp);
  if (uses_lag(call)) NAME(transpose)(r, r, grad->lag, rp, grad->lag_t, rp);
  NAME(transpose)(P, r, grad->moment, rp, grad->moment_t, vp);
}

/* square (r x rp) = left^T square right. */
static void NAME(sandwich)(NAME(Head) * head, const REAL *matrix, REAL *square) {
  const long r = head->r, rp = head->rp;
  NAME(product)(SET, FULL, r, r, r, square, rp, 1, matrix, rp, head->frozen_readout, rp);
  NAME(product)(SET, FULL, r, r, r, matrix, 1, rp, head->frozen_readout, rp, square, rp);
}

/* Add the gradients of statistics that the call returned, in the basis of the last anchor (whose L is `upper`
   transposed). The reads of the segment are told apart from them by `incoming`. */
static void NAME(add_returned)(const Call *call, NAME(Head) * head, long n, long h, const double *gram,
                               const double *lag, const double *moment) {
  const long r = head->r, P = head->P, rp = head->rp, state = n * call->heads + h;
  NAME(Gradients) *grad = &head->grad;
  const double *upper = call->last_upper + state * r * r;
  REAL *lower = head->frozen_inverse, *given = head->frozen_operator;
  for (long i = 0; i < r; i++)
    for (long j = 0; j < rp; j++) lower[i * rp + j] = j < r ? (REAL)upper[j * r + i] : 0;
  for (int which = 0; which < 2; which++) {
    const double *from = (which ? lag : gram) + state * r * r;
    for (long i = 0; i < r; i++)
      for (long j = 0; j < rp; j++) given[i * rp + j] = j < r ? (REAL)from[i * r + j] : 0;
    NAME(sandwich)(head, lower, given);
    NAME(add)(which ? grad->lag : grad->gram, given, r * rp);
    if (!which) NAME(add)(grad->incoming, given, r * rp);
  }
  for (long i = 0; i < P; i++)
    for (long j = 0; j < rp; j++)
      head->frozen_readout[i * rp + j] = j < r ? (REAL)moment[(state * P + i) * r + j] : 0;
  NAME(product)(ADD, FULL, P, r, r, head->frozen_readout, rp, 1, lower, rp, grad->moment, rp);
}

static void NAME(begin_backward)(const Call *call, NAME(Head) * head, long n, long h) {
  const long r = head->r, P = head->P, rp = head->rp;
  NAME(Gradients) *grad = &head->grad;
  REAL *squares[] = {grad->gram, grad->lag, grad->incoming};
  for (int i = 0; i < 3; i++) NAME(clear)(squares[i], r * rp);
  NAME(clear)(grad->moment, P * rp), NAME(clear)(grad->previous, rp);
  call->ridge_grad[n * call->heads + h] = 0;
  if (call->gram_after_grad)
    NAME(add_returned)(call, head, n, h, call->gram_after_grad, call->lag_after_grad, call->moment_after_grad);
}

static void NAME(add_frozen)(const Call *call, NAME(Head) * head, long n, long h) {
  if (!call->gram_frozen_grad) return;
  NAME(add_returned)(call, head, n, h, call->gram_frozen_grad, call->lag_frozen_grad, call->moment_frozen_grad);
  NAME(turn_window)(call, head, 0);
}

/* The gradients of the initial statistics, out of the basis of the first anchor. */
static void NAME(end_backward)(const Call *call, NAME(Head) * head, long n, long h) {
  const long r = head->r, P = head->P, rp = head->rp, state = n * call->heads + h;
  NAME(Gradients) *grad = &head->grad;
  if (call->bounds[n] < call->bounds[n + 1]) {
    NAME(product)(SET, FULL, P, r, r, grad->moment, rp, 1, head->unwhiten, rp, head->frozen_readout, rp);
    memcpy(grad->moment, head->frozen_readout, P * rp * sizeof(REAL));
    NAME(sandwich)(head, head->unwhiten, grad->gram);
    NAME(sandwich)(head, head->unwhiten, grad->lag);
  }
  for (long i = 0; i < r; i++)
    for (long j = 0; j < r; j++) {
      call->gram_grad[(state * r + i) * r + j] = (grad->gram[i * rp + j] + grad->gram[j * rp + i]) / 2;
      call->lag_grad[(state * r + i) * r + j] = grad->lag[i * rp + j];
    }
  for (long i = 0; i < P; i++)
    for (long j = 0; j < r; j++) call->moment_grad[(state * P + i) * r + j] = grad->moment[i * rp + j];
  for (long j = 0; j < r; j++) call->previous_grad[state * r + j] = grad->previous[j];
}

static void NAME(backward_segment)(const Call *call, NAME(Head) * head, long n, long h, long g) {
  const long r = head->r, P = head->P, rp = head->rp, first = call->bounds[n], size = (2 * r + P) * rp;
  const long begin = call->segments[g], end = segment_end(call, n, g);
  NAME(Gradients) *grad = &head->grad;
  REAL *anchor = (REAL *)call->anchors + (g * call->heads + h) * NAME(anchor_size)(call);
  NAME(use_anchor)(head, anchor);
  NAME(retrace)(call, head, n, h, begin, end, anchor);
  memcpy(grad->incoming, grad->gram, r * rp * sizeof(REAL));
  if (call->interval) {
    NAME(clear)(grad->window_gram, r * rp), NAME(clear)(grad->window_lag, r * rp);
    NAME(clear)(grad->window_moment, P * rp);
  }
  NAME(turn_window)(call, head, 0);
  const long boundary = call->interval && end == call->bounds[n + 1] ? last_boundary(call, n) : -1;
  for (long stop = end; stop > begin;) {
    if (stop == boundary) NAME(add_frozen)(call, head, n, h);
    /* The chunks of a window, counted from its start as the forward pass counted them. */
    const long window = call->interval ? call->interval : call->chunk;
    const long base = call->interval ? first : begin;
    const long index = (stop - 1 - base) / window, opens = base + index * window;
    const long t = opens + (stop - 1 - opens) / call->chunk * call->chunk;
    const long windows_before = call->interval ? index - (begin - first) / window : index;
    NAME(backward_chunk)(call, head, h, begin, t, stop - t, grad->snapshots + windows_before * size);
    if (t == opens) NAME(turn_window)(call, head, 1);
    stop = t;
  }
  NAME(product)(SET, UPPER_B, r, r, r, anchor, rp, 1, head->whiten, rp, head->frozen_readout, rp);
  double of_ridge = 0;
  for (long i = 0; i < r; i++)
    for (long j = 0; j < r; j++)
      of_ridge += (double)(grad->gram[i * rp + j] - grad->incoming[i * rp + j]) * head->frozen_readout[i * rp + j];
  call->ridge_grad[n * call->heads + h] += of_ridge;
  if (begin == boundary) NAME(add_frozen)(call, head, n, h);
  if (g == call->segment_first[n]) return;
  const REAL *basis = anchor + 2 * r * rp;
  NAME(sandwich)(head, basis, grad->gram);
  NAME(sandwich)(head, basis, grad->lag);
  NAME(product)(SET, FULL, P, r, r, grad->moment, rp, 1, basis, rp, head->frozen_readout, rp);
  memcpy(grad->moment, head->frozen_readout, P * rp * sizeof(REAL));
}

/* Some heads of one sequence, segment by segment, as forward; what a head carries waits in `carried` meanwhile. */
static void NAME(backward)(const Call *call, NAME(Head) * head, long n, long from, long to) {
  NAME(Gradients) *grad = &head->grad;
  REAL *const working = grad->gram; /* gram, lag, moment and previous are one block */
  const long size = grad->previous + head->rp - working;
  for (long h = from; h < to; h++) {
    NAME(begin_backward)(call, head, n, h);
    memcpy(grad->carried + (h - from) * size, working, size * sizeof(REAL));
  }
  for (long g = call->segment_first[n + 1] - 1; g >= call->segment_first[n]; g--)
    for (long h = from; h < to; h++) {
      memcpy(working, grad->carried + (h - from) * size, size * sizeof(REAL));
      NAME(backward_segment)(call, head, n, h, g);
      memcpy(grad->carried + (h - from) * size, working, size * sizeof(REAL));
    }
  for (long h = from; h < to; h++) {
    memcpy(working, grad->carried + (h - from) * size, size * sizeof(REAL));
    const long g = call->segment_first[n];
    head->unwhiten = (REAL *)call->anchors + (g * call->heads + h) * NAME(anchor_size)(call);
    NAME(end_backward)(call, head, n, h);
  }
}

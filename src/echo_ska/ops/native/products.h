/* Small matrix products in registers, for one REAL type. Matrices are row-major; the columns of B and C come in whole
   vectors (leading dimensions are padded with zeros), A is read by single numbers and may therefore be transposed. */

#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL NAME(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

static inline long NAME(padded)(long columns) { return (columns + LANES - 1) / LANES * LANES; }

static REAL NAME(dot)(long n, const REAL *a, const REAL *b) {
  NAME(vector) sums = {0};
  const long whole = n / LANES * LANES;
  for (long j = 0; j < whole; j += LANES) sums += *(const NAME(vector) *)(a + j) * *(const NAME(vector) *)(b + j);
  REAL sum = 0;
  for (long j = 0; j < LANES; j++) sum += sums[j];
  for (long j = whole; j < n; j++) sum += a[j] * b[j];
  return sum;
}

/* C[rows x vectors] (+ or -)= A[rows x k] B[k x vectors]. The first four arguments are constants at every call, so
   that the accumulators stay in registers. */
static inline __attribute__((always_inline)) void NAME(tile)(
    const int rows, const int vectors, const int accumulate, const int subtract, long k, const REAL *restrict a,
    long a_row, long a_column, const REAL *restrict b, long b_row, REAL *restrict c, long c_row) {
  NAME(vector) sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < vectors; j++)
      sum[i][j] = accumulate ? *(const NAME(vector) *)(c + i * c_row + j * LANES) : (NAME(vector)){0};
  for (long p = 0; p < k; p++) {
    NAME(vector) line[TILE_VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < vectors; j++) {
      line[j] = *(const NAME(vector) *)(b + p * b_row + j * LANES);
      IN_REGISTER(line[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const REAL factor = a[i * a_row + p * a_column];
#pragma GCC unroll 3
      for (int j = 0; j < vectors; j++)
        sum[i][j] = subtract ? sum[i][j] - factor * line[j] : sum[i][j] + factor * line[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < vectors; j++) *(NAME(vector) *)(c + i * c_row + j * LANES) = sum[i][j];
}

static inline __attribute__((always_inline)) void NAME(tiles)(
    const int accumulate, const int subtract, long rows, long vectors, long k, const REAL *a, long a_row,
    long a_column, const REAL *b, long b_row, REAL *c, long c_row) {
#define TILE(R, V) NAME(tile)(R, V, accumulate, subtract, k, a, a_row, a_column, b, b_row, c, c_row)
#define TILE_OF(R)                                                                                                     \
  if (vectors == 3) TILE(R, 3);                                                                                        \
  else if (vectors == 2) TILE(R, 2);                                                                                   \
  else TILE(R, 1)
#if TILE_ROWS == 8
  if (rows == 8) {
    TILE_OF(8);
    return;
  }
#endif
  if (rows == 4) {
    TILE_OF(4);
  } else {
    TILE_OF(1);
  }
#undef TILE_OF
#undef TILE
}

/* C (m x n) becomes, or gains, or loses, A B with A m x k and B k x n. `shape` says what is known to be zero, or not
   wanted, so that it is not computed. n is rounded up to whole vectors. */
static __attribute__((noinline)) void NAME(product)(
    Update update, Shape shape, long m, long n, long k, const REAL *a, long a_row, long a_column, const REAL *b,
    long b_row, REAL *c, long c_row) {
  const long columns = NAME(padded)(n);
  for (long i = 0; i < m;) {
    const long rows = m - i >= TILE_ROWS ? TILE_ROWS : m - i >= 4 ? 4 : 1, end = i + rows;
    long last = columns;
    if (shape == LOWER_C && NAME(padded)(end) < last) last = NAME(padded)(end);
    for (long j = shape == UPPER_C ? i / LANES * LANES : 0, next; j < last; j = next) {
      const long left = (last - j) / LANES, vectors = left == 4 ? 2 : left < TILE_VECTORS ? left : TILE_VECTORS;
      next = j + vectors * LANES;
      long from = 0, to = k;
      if (shape == LOWER_A && end < to) to = end;
      if (shape == UPPER_A) from = i;
      if (shape == UPPER_B && next < to) to = next;
      if (shape == LOWER_B) from = j < k ? j : k;
      const REAL *first_a = a + i * a_row + from * a_column, *first_b = b + from * b_row + j;
      REAL *first_c = c + i * c_row + j;
#define TILES(ACCUMULATE, SUBTRACT)                                                                                    \
  NAME(tiles)(ACCUMULATE, SUBTRACT, rows, vectors, to - from, first_a, a_row, a_column, first_b, b_row, first_c, c_row)
      if (update == SET) TILES(0, 0);
      else if (update == ADD) TILES(1, 0);
      else TILES(1, 1);
#undef TILES
    }
    i = end;
  }
}

/* to (columns x rows, leading dimension to_row) = from (rows x columns) transposed, in blocks of 4 x 4. */
static void NAME(transpose)(long rows, long columns, const REAL *from, long from_row, REAL *to, long to_row) {
  typedef REAL quad __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
  const long whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (long i = 0; i < whole_rows; i += 4)
    for (long j = 0; j < whole_columns; j += 4) {
      const REAL *block = from + i * from_row + j;
      const quad a = *(const quad *)block, b = *(const quad *)(block + from_row);
      const quad c = *(const quad *)(block + 2 * from_row), d = *(const quad *)(block + 3 * from_row);
      const quad ab = SHUFFLE(a, b, 0, 4, 1, 5), ab_high = SHUFFLE(a, b, 2, 6, 3, 7);
      const quad cd = SHUFFLE(c, d, 0, 4, 1, 5), cd_high = SHUFFLE(c, d, 2, 6, 3, 7);
      REAL *turned = to + j * to_row + i;
      *(quad *)turned = SHUFFLE(ab, cd, 0, 1, 4, 5);
      *(quad *)(turned + to_row) = SHUFFLE(ab, cd, 2, 3, 6, 7);
      *(quad *)(turned + 2 * to_row) = SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
      *(quad *)(turned + 3 * to_row) = SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
    }
  for (long i = 0; i < rows; i++)
    for (long j = i < whole_rows ? whole_columns : 0; j < columns; j++) to[j * to_row + i] = from[i * from_row + j];
}

/* a (n x n, symmetric, its upper triangle read) becomes U with U^T U = a in its upper triangle; what is below is left
   undefined. Returns 0, or the order of the first leading minor that is not positive. */
static int NAME(cholesky)(long n, REAL *a, long row) {
  for (long i = 0; i < n; i += 4) {
    const long end = n - i < 4 ? n : i + 4, left = i / LANES * LANES;
    if (i) NAME(product)(SUBTRACT, FULL, end - i, n - left, i, a + i, 1, row, a + left, row, a + i * row + left, row);
    for (long t = i; t < end; t++) {
      REAL *line = a + t * row;
      for (long p = i; p < t; p++) {
        const REAL factor = a[p * row + t];
        for (long j = t; j < n; j++) line[j] -= factor * a[p * row + j];
      }
      if (!(line[t] > 0) || !__builtin_isfinite(line[t])) return (int)(t + 1);
      const REAL inverse = 1 / NAME(root)(line[t]);
      for (long j = t; j < n; j++) line[j] *= inverse;
    }
  }
  return 0;
}

/* rows (n x columns) become U^-T rows. */
static void NAME(solve_lower)(long n, long columns, const REAL *upper, long upper_row, REAL *rows, long row) {
  const long width = NAME(padded)(columns);
  for (long i = 0; i < n; i += 4) {
    const long end = n - i < 4 ? n : i + 4;
    if (i) NAME(product)(SUBTRACT, FULL, end - i, columns, i, upper + i, 1, upper_row, rows, row, rows + i * row, row);
    for (long t = i; t < end; t++) {
      REAL *line = rows + t * row;
      for (long p = i; p < t; p++) {
        const REAL factor = upper[p * upper_row + t];
        for (long j = 0; j < width; j++) line[j] -= factor * rows[p * row + j];
      }
      const REAL inverse = 1 / upper[t * upper_row + t];
      for (long j = 0; j < width; j++) line[j] *= inverse;
    }
  }
}
#undef LANES

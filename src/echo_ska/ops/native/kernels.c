/* Spectral Koopman Attention on a CPU: the causal reads of one head at a time, in registers and cache.

   Plain C with the vector extensions of GCC and Clang; compiled where it runs (build.py), called through ctypes from
   as many threads as the caller likes, each taking the next head that nobody has taken. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 8 /* 24 sums in 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#ifndef TILE_ROWS
#define TILE_ROWS 4 /* 12 sums in 16 registers */
#endif
#define TILE_VECTORS 3

/* Left to themselves, compilers read a line of B from memory once for every row of A: a quarter slower, measured. */
#if defined(__AVX512F__)
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#elif defined(__x86_64__)
#define IN_REGISTER(vector) __asm__("" : "+x"(vector))
#elif defined(__aarch64__)
#define IN_REGISTER(vector) __asm__("" : "+w"(vector))
#else
#define IN_REGISTER(vector) (void)(vector)
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (NAME(places)){__VA_ARGS__})
typedef int32_t places_f32 __attribute__((vector_size(16)));
typedef int64_t places_f64 __attribute__((vector_size(32)));
#endif

typedef enum { SET, ADD, SUBTRACT } Update;
/* LOWER_C, UPPER_C: only that triangle is wanted. LOWER_A ..: that operand is zero outside the triangle. */
typedef enum { FULL, LOWER_C, UPPER_C, LOWER_A, UPPER_A, LOWER_B, UPPER_B } Shape;

/* One call; the fields of `Call` in build.py, in this order. Arrays are contiguous. REAL is float or double. */
typedef struct {
  int64_t is_double, backward, keep_rows, keep_anchors, sum_lags, tokens, sequences, heads, rank, head_dim, power;
  int64_t interval, chunk, longest_segment, most_windows;
  int64_t group, next; /* a worker takes `group` heads of a sequence at a time */
  const int64_t *bounds, *segments, *segment_first; /* flat tokens of each sequence; segments' first tokens */
  const void *query, *key, *value, *write_weight, *plain, *filtered; /* [tokens, heads, ..] */
  const double *ridge, *gram, *lag_moment, *value_moment, *previous_key;
  void *output;
  double *gram_after, *lag_after, *moment_after, *gram_frozen, *lag_frozen, *moment_frozen;
  void *rows, *anchors;
  double *last_upper;
  int32_t *info;
  const void *output_grad;
  const double *gram_after_grad, *lag_after_grad, *moment_after_grad; /* null where nobody used them */
  const double *gram_frozen_grad, *lag_frozen_grad, *moment_frozen_grad; /* the same, and in exact reads */
  void *query_grad, *key_grad, *value_grad, *write_weight_grad, *plain_grad, *filtered_grad;
  double *ridge_grad, *gram_grad, *lag_grad, *moment_grad, *previous_grad;
} Call;

/* One token of every head of a layer, in place on its decoding state. Absent coefficients are uniform. */
typedef struct {
  int64_t is_double, rows, heads, rank, head_dim, power, next;
  double uniform_gain, uniform_scale;
  double *moments, *inverse, *previous_key;
  int64_t *count, *position;
  const double *readouts; /* null unless reading chunk-causally */
  const void *query, *key, *value, *write_weight, *blend, *gain, *scale;
  void *output;
} Step;

#define MOST_ROWS 2048 /* of a decoding state's moments, and so more than its rank or head_dim */

#define REAL double
#define NAME(name) name##_f64
#define root_f64 sqrt
#include "products.h"

/* The statistics that the call starts from, or has reached. */
static void read_state(const Call *call, long n, long h, int initial, double *gram, double *lag, double *moment,
                       long row) {
  const long r = call->rank, P = call->head_dim, state = n * call->heads + h;
  const double *from_gram = initial ? call->gram : call->gram_after;
  const double *from_lag = initial ? call->lag_moment : call->lag_after;
  const double *from_moment = initial ? call->value_moment : call->moment_after;
  for (long i = 0; i < r; i++)
    for (long j = 0; j < row; j++) {
      const long place = (state * r + i) * r + j;
      gram[i * row + j] = j < r ? from_gram[place] : 0;
      lag[i * row + j] = j < r ? from_lag[place] : 0;
    }
  for (long i = 0; i < P; i++)
    for (long j = 0; j < row; j++) moment[i * row + j] = j < r ? from_moment[(state * P + i) * r + j] : 0;
}

static void write_state(const Call *call, long n, long h, const double *gram, const double *lag, const double *moment,
                        long row, double *gram_to, double *lag_to, double *moment_to) {
  const long r = call->rank, P = call->head_dim, state = n * call->heads + h;
  for (long i = 0; i < r; i++)
    for (long j = 0; j < r; j++) {
      const long place = (state * r + i) * r + j;
      gram_to[place] = i <= j ? gram[i * row + j] : gram[j * row + i];
      lag_to[place] = lag[i * row + j];
    }
  for (long i = 0; i < P; i++)
    for (long j = 0; j < r; j++) moment_to[(state * P + i) * r + j] = moment[i * row + j];
}

/* The last token at which a window of the sequence begins, or ends with it; chunk-causal reads freeze there. */
static long last_boundary(const Call *call, long n) {
  const long first = call->bounds[n];
  return first + (call->bounds[n + 1] - first) / call->interval * call->interval;
}

static void freeze_state(const Call *call, long n, long h, const double *gram, const double *lag, const double *moment,
                         long row) {
  write_state(call, n, h, gram, lag, moment, row, call->gram_frozen, call->lag_frozen, call->moment_frozen);
}

/* Whether gradients flow through the lag moment: into reads by a power, or into the returned one. */
static int uses_lag(const Call *call) { return call->power > 0 || call->lag_after_grad; }

static long segment_end(const Call *call, long n, long g) {
  return g + 1 < call->segment_first[n + 1] ? call->segments[g + 1] : call->bounds[n + 1];
}

#include "attention.h"
#include "gradients.h"
#include "step.h"
#undef REAL
#undef NAME
#define REAL float
#define NAME(name) name##_f32
#define root_f32 sqrtf
#include "products.h"
#include "attention.h"
#include "gradients.h"
#include "step.h"

/* Bytes of scratch memory that every worker of this call needs. */
int64_t echo_ska_scratch_bytes(const Call *call) {
  static char start[64];
  char *arena = start;
  if (call->is_double) {
    Head_f64 head;
    lay_out_f64(call, &head, &arena);
  } else {
    Head_f32 head;
    lay_out_f32(call, &head, &arena);
  }
  return arena - start;
}

/* Numbers kept for each anchor of each head. */
int64_t echo_ska_anchor_size(const Call *call) {
  return call->is_double ? anchor_size_f64(call) : anchor_size_f32(call);
}

/* Numbers kept for each token of each head. */
int64_t echo_ska_row_size(const Call *call) {
  return (call->power + 1) * (call->is_double ? padded_f64(call->rank) : padded_f32(call->rank));
}

/* Work until no head is left. `scratch` is this worker's own, 64-byte aligned and without signalling garbage. */
void echo_ska_work(Call *call, char *scratch) {
  Head_f64 doubles;
  Head_f32 floats;
  if (call->is_double)
    lay_out_f64(call, &doubles, &scratch);
  else
    lay_out_f32(call, &floats, &scratch);
  const int64_t groups = (call->heads + call->group - 1) / call->group;
  for (;;) {
    const int64_t task = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
    if (task >= call->sequences * groups) return;
    const long n = task / groups, from = task % groups * call->group;
    const long to = from + call->group < call->heads ? from + call->group : call->heads;
    if (call->backward)
      call->is_double ? backward_f64(call, &doubles, n, from, to) : backward_f32(call, &floats, n, from, to);
    else
      call->is_double ? forward_f64(call, &doubles, n, from, to) : forward_f32(call, &floats, n, from, to);
  }
}

/* GOMP_parallel of the caller's OpenMP. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
  Call *call;
  char *scratch;
  int64_t scratch_bytes, next;
} Team;

static void work_in_team(void *given) {
  Team *team = given;
  const int64_t place = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED);
  echo_ska_work(team->call, team->scratch + place * team->scratch_bytes);
}

/* Work on the threads that `parallel` has waiting; `scratch` is for all. */
void echo_ska_work_together(Call *call, char *scratch, int64_t scratch_bytes, int64_t threads, Parallel parallel) {
  Team team = {call, scratch, scratch_bytes, 0};
  parallel(work_in_team, &team, (unsigned)threads, 0);
}

/* Ask for large pages: first touches of small ones cost more than what is computed for them. */
void echo_ska_expect_large(char *start, int64_t bytes) {
#ifdef __linux__
  const uintptr_t page = 4096, begin = ((uintptr_t)start + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)start + bytes) / page * page;
  if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

static void step_in_team(void *step) { ((Step *)step)->is_double ? step_f64(step) : step_f32(step); }

/* One token; on `threads` threads of `parallel` if there are more than one. */
void echo_ska_step(Step *step, int64_t threads, Parallel parallel) {
  step->next = 0;
  threads > 1 ? parallel(step_in_team, step, (unsigned)threads, 0) : step_in_team(step);
  for (long n = 0; n < step->rows; n++) step->count[n]++, step->position[n]++;
}

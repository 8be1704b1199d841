// The two products that decide a CPU's decoding speed, the store that feeds one of them, and a whole decode step of a
// Llama-like model made of these. Plain C ABI, no state.
//
// This file is compiled once for each instruction set (OPENLORA_ISA names it) and once for the choice at run time
// (no OPENLORA_ISA). Everything is written with the compiler's own vector types, so that all of them are one source.
//
// Weights of an adapter lie in chunks of 64 bytes: a matrix [R, N] is stored as [N / C][R][C], C = 16 floats or 32
// bfloat16, N padded with zeros. Both factors are read as one stream, at the adapter's true rank. A chunk of bfloat16
// holds elements i and i + 16 in the two halves of lane i, so that either half becomes floats by one shift or mask.
//
// Keys lie in blocks [block][G][d][16], values in blocks [block][G][16][d]: 16 positions of one dimension side by side,
// so that scores need no sums across a vector.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct Segment { int64_t begin, end, a, b, rank, is_bf16; double weight; };

struct Attention {
  int64_t query, row_stride, head_stride, keys, values, tables, table_stride, row_tables, lengths, sinks, out, out_stride;
  int64_t rows, heads, kv_heads, key_dim, value_dim, window, is_bf16;
  double scale, softcap;
};

struct Store {
  int64_t key, key_row, key_head, value, value_row, value_head, keys, values, slots;
  int64_t rows, kv_heads, key_dim, value_dim, is_bf16;
};

// y = W x + b with W [out, in] as torch has it. `kind`: 0 float, 1 bfloat16, 2 int8 times `scales` [out].
struct Linear { int64_t weight, bias, scales, in, out, kind; };

struct Layer {
  int64_t norm, query_norm, key_norm, mlp_norm, keys, values, window;
  Linear query, key, value, output, gate, up, down;
};
constexpr int SITES = 7;  // linear layers of a layer, in the order above

// `segments` are SITES addresses for each layer, 0 where no adapter of the batch has the site.
struct Step {
  int64_t layers, num_layers, embeddings, norm, frequencies, scratch, hidden, heads, kv_heads, head_dim, inner, is_bf16;
  Linear head;
  double eps, scale, rotation_scale;
  int64_t ids, positions, slots, tables, table_stride, row_tables, lengths, rows, kept, num_kept, segments, num_segments, logits;
};

#define LORA_ARGUMENTS const void *x, int64_t x_stride, void *y, int64_t y_stride, int64_t is_bf16, \
                       const Segment *segments, int64_t num_segments, int64_t in, int64_t out
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#ifdef OPENLORA_ISA

#if defined(__AVX512F__)
#define WIDTH 64
constexpr int RANKS = 8;  // accumulators over rank that fit the registers
#elif defined(__AVX2__)
#define WIDTH 32
constexpr int RANKS = 4;
#else
#define WIDTH 16
constexpr int RANKS = 2;
#endif

struct Half { uint16_t bits; };

namespace {

// Sixteen floats as the processor's own vectors: wider ones than it has would be kept in memory.
constexpr int PARTS = 64 / WIDTH, LANES = WIDTH / 4;
typedef float F __attribute__((vector_size(WIDTH)));
typedef int32_t I __attribute__((vector_size(WIDTH)));
typedef uint32_t U __attribute__((vector_size(WIDTH)));
typedef uint16_t H __attribute__((vector_size(WIDTH / 2)));
struct V { F part[PARTS]; };
#define INLINE inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 16") for (int i = 0; i < PARTS; ++i)

INLINE V zero() { V v; EACH v.part[i] = F{}; return v; }
INLINE V load(const float *p) { V v; EACH memcpy(&v.part[i], p + i * LANES, WIDTH); return v; }
INLINE V load(const Half *p) {
  V v;
  EACH { H h; memcpy(&h, p + i * LANES, WIDTH / 2); U u = __builtin_convertvector(h, U) << 16; v.part[i] = (F)u; }
  return v;
}
INLINE void save(float *p, V v) { EACH memcpy(p + i * LANES, &v.part[i], WIDTH); }
INLINE void save(Half *p, V v) {
  EACH {
    U u = (U)v.part[i];
    U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;  // a NaN must stay one
    U nan = (U)((u & 0x7fffffffu) > 0x7f800000u);
    H h = __builtin_convertvector((nan & quiet) | (~nan & rounded), H);
    memcpy(p + i * LANES, &h, WIDTH / 2);
  }
}
INLINE void add_product(V &sum, float s, const V &w) { EACH sum.part[i] += s * w.part[i]; }
INLINE void add_product(V &sum, const V &x, const V &w) { EACH sum.part[i] += x.part[i] * w.part[i]; }
INLINE void halves(const Half *p, V &low, V &high) {  // of a chunk whose lane i holds elements i and i + 16
  EACH { U u; memcpy(&u, p + 2 * i * LANES, WIDTH); low.part[i] = (F)(u << 16); high.part[i] = (F)(u & 0xffff0000u); }
}
template <class T> INLINE V load_some(const T *p, int64_t n) { T part[16] = {}; memcpy(part, p, n * sizeof(T)); return load(part); }
template <class T> INLINE void save_some(T *p, V v, int64_t n) { T part[16]; save(part, v); memcpy(p, part, n * sizeof(T)); }
inline float scalar(const float *p) { return *p; }
inline float scalar(const Half *p) { uint32_t u = (uint32_t)p->bits << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE float total(V v) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter q[4]; memcpy(q, &v, 64);
  Quarter s = (q[0] + q[1]) + (q[2] + q[3]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// ---- y[begin:end] += (x[begin:end] A) B, each segment under its own adapter ----

// 16 or 32 inputs of one token, and what a chunk of weights adds to the sum over them.
template <class W, class X> struct Chunk;
template <class X> struct Chunk<float, X> {
  static constexpr int SIZE = 16;
  V x;
  void read(const X *p) { x = load(p); }
  void read_some(const X *p, int64_t n) { x = load_some(p, n); }
  void add(V &sum, const float *w) const { add_product(sum, x, load(w)); }
};
template <class X> struct Chunk<Half, X> {
  static constexpr int SIZE = 32;
  V low, high;
  void read(const X *p) { low = load(p); high = load(p + 16); }
  void read_some(const X *p, int64_t n) {
    low = load_some(p, n < 16 ? n : 16);
    high = n > 16 ? load_some(p + 16, n - 16) : zero();
  }
  void add(V &sum, const Half *w) const {
    V a, b; halves(w, a, b);
    add_product(sum, low, a); add_product(sum, high, b);
  }
};
constexpr int AHEAD = 8192;  // bytes: with one row to an adapter nothing is read twice, and memory decides

template <int TOKENS, int N, class W, class X>
inline void shrink_block(const X *x, int64_t x_stride, const W *a, int64_t rank, int64_t in, float *v, int64_t v_stride) {
  constexpr int C = Chunk<W, X>::SIZE;
  V sum[TOKENS][N];
  for (int t = 0; t < TOKENS; ++t) for (int j = 0; j < N; ++j) sum[t][j] = zero();
  int64_t i = 0;
  for (; i + C <= in; i += C) {
    Chunk<W, X> part[TOKENS];
    for (int t = 0; t < TOKENS; ++t) part[t].read(x + t * x_stride + i);
    const W *w = a + i * rank;
    if (TOKENS == 1) for (int j = 0; j < N; ++j) __builtin_prefetch((const char *)(w + j * C) + AHEAD);
    for (int j = 0; j < N; ++j) for (int t = 0; t < TOKENS; ++t) part[t].add(sum[t][j], w + j * C);
  }
  if (i < in) for (int t = 0; t < TOKENS; ++t) {
    Chunk<W, X> part; part.read_some(x + t * x_stride + i, in - i);
    for (int j = 0; j < N; ++j) part.add(sum[t][j], a + i * rank + j * C);
  }
  for (int t = 0; t < TOKENS; ++t) for (int j = 0; j < N; ++j) v[t * v_stride + j] = total(sum[t][j]);
}

template <int TOKENS, class W, class X>
inline void shrink(const X *x, int64_t x_stride, const W *a, int64_t rank, int64_t from, int64_t to, int64_t in, float *v, int64_t v_stride) {
  constexpr int C = Chunk<W, X>::SIZE, N = TOKENS == 4 ? RANKS / 2 : RANKS;
  int64_t j = from;
  if (TOKENS == 1 && RANKS == 8)
    for (; j + 16 <= to; j += 16) shrink_block<TOKENS, TOKENS == 1 && RANKS == 8 ? 16 : 1>(x, x_stride, a + j * C, rank, in, v + j - from, v_stride);
  for (; j + N <= to; j += N) shrink_block<TOKENS, N>(x, x_stride, a + j * C, rank, in, v + j - from, v_stride);
  for (; j < to; ++j) shrink_block<TOKENS, 1>(x, x_stride, a + j * C, rank, in, v + j - from, v_stride);
}

template <class W> struct Widen;  // a chunk of B as one or two vectors
template <> struct Widen<float> {
  static constexpr int VECTORS = 1;
  static void read(const float *w, V *to) { to[0] = load(w); }
};
template <> struct Widen<Half> {
  static constexpr int VECTORS = 2;
  static void read(const Half *w, V *to) { halves(w, to[0], to[1]); }
};

template <int TOKENS, int CHUNKS, class W, class X>
inline void expand_block(const float *v, int64_t v_stride, const W *b, int64_t rank, int64_t from, int64_t to, X *y, int64_t y_stride) {
  constexpr int N = Widen<W>::VECTORS, C = 16 * N;
  V sum[TOKENS][CHUNKS * N];
  for (int t = 0; t < TOKENS; ++t) for (int c = 0; c < CHUNKS * N; ++c) sum[t][c] = load(y + t * y_stride + 16 * c);
  for (int64_t k = from; k < to; ++k) {
    V w[CHUNKS * N];
    if (TOKENS == 1) for (int c = 0; c < CHUNKS; ++c) __builtin_prefetch(b + ((c + CHUNKS) * rank + k) * C);
    for (int c = 0; c < CHUNKS; ++c) Widen<W>::read(b + (c * rank + k) * C, w + c * N);
    for (int t = 0; t < TOKENS; ++t) { float s = v[t * v_stride + k - from]; for (int c = 0; c < CHUNKS * N; ++c) add_product(sum[t][c], s, w[c]); }
  }
  for (int t = 0; t < TOKENS; ++t) for (int c = 0; c < CHUNKS * N; ++c) save(y + t * y_stride + 16 * c, sum[t][c]);
}

template <int TOKENS, class W, class X>
inline void expand(const float *v, int64_t v_stride, const W *b, int64_t rank, int64_t from, int64_t to, int64_t out, X *y, int64_t y_stride) {
  constexpr int C = 16 * Widen<W>::VECTORS, MANY = (RANKS == 8 ? (TOKENS == 1 ? 8 : 4) : (TOKENS == 1 ? 4 : 2)) / Widen<W>::VECTORS;
  int64_t o = 0;
  for (; o + MANY * C <= out; o += MANY * C) expand_block<TOKENS, MANY>(v, v_stride, b + o * rank, rank, from, to, y + o, y_stride);
  for (; o + C <= out; o += C) expand_block<TOKENS, 1>(v, v_stride, b + o * rank, rank, from, to, y + o, y_stride);
  if (o < out) for (int t = 0; t < TOKENS; ++t) {
    X part[C] = {}; memcpy(part, y + t * y_stride + o, (out - o) * sizeof(X));
    expand_block<1, 1>(v + t * v_stride, v_stride, b + o * rank, rank, from, to, part, C);
    memcpy(y + t * y_stride + o, part, (out - o) * sizeof(X));
  }
}

constexpr int64_t SLAB = 128;  // ranks at a time: what a token's intermediate takes of the stack

template <int TOKENS, class W, class X>
inline void tokens(const X *x, int64_t x_stride, X *y, int64_t y_stride, const Segment &s, int64_t in, int64_t out) {
  const W *a = (const W *)s.a, *b = (const W *)s.b;
  float v[TOKENS * SLAB];
  for (int64_t from = 0; from < s.rank; from += SLAB) {
    int64_t to = from + SLAB < s.rank ? from + SLAB : s.rank;
    shrink<TOKENS>(x, x_stride, a, s.rank, from, to, in, v, SLAB);
    if (s.weight != 1) for (int t = 0; t < TOKENS; ++t) for (int64_t j = 0; j < to - from; ++j) v[t * SLAB + j] *= (float)s.weight;
    expand<TOKENS>(v, SLAB, b, s.rank, from, to, out, y, y_stride);
  }
}

template <class W, class X>
void segment(const X *x, int64_t x_stride, X *y, int64_t y_stride, const Segment &s, int64_t in, int64_t out) {
  int64_t t = s.begin;
  for (; t + 4 <= s.end; t += 4) tokens<4, W>(x + t * x_stride, x_stride, y + t * y_stride, y_stride, s, in, out);
  for (; t + 2 <= s.end; t += 2) tokens<2, W>(x + t * x_stride, x_stride, y + t * y_stride, y_stride, s, in, out);
  for (; t < s.end; ++t) tokens<1, W>(x + t * x_stride, x_stride, y + t * y_stride, y_stride, s, in, out);
}

template <class X> void lora(const X *x, int64_t x_stride, X *y, int64_t y_stride, const Segment *segments, int64_t n, int64_t in, int64_t out) {
  for (int64_t i = 0; i < n; ++i) {
    if (!segments[i].rank) continue;
    if (segments[i].is_bf16) segment<Half>(x, x_stride, y, y_stride, segments[i], in, out);
    else segment<float>(x, x_stride, y, y_stride, segments[i], in, out);
  }
}

// ---- softmax(scale q K) V over blocks of 16 positions ----

INLINE F choose(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }

// e to the x, within 2 units in the last place for -87 <= x <= 88 (Cephes' polynomial); smaller and larger are clamped.
INLINE F exponential(F x) {
  x = choose((I)(x < -87.0f), F{} - 87.0f, x);
  x = choose((I)(x > 88.0f), F{} + 88.0f, x);
  F shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds: the sum's last bit is worth one
  F whole = shifted - 12582912.0f;
  F r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f; p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (F)((__builtin_convertvector(whole, I) + 127) << 23);
}
INLINE float exponential(float x) { F e = exponential(F{} + x); return e[0]; }

INLINE F capped(F x, float cap) {  // cap * tanh(x / cap)
  F e = exponential(x * (2.0f / cap));
  return cap * (1.0f - 2.0f / (e + 1.0f));
}

constexpr float HIDDEN = -1e30f;

template <int QUERIES, class T>
inline void scores(const T *q, int64_t head_stride, const T *keys, const int32_t *table, const Attention &a, int64_t kv_head,
                   int64_t first, int64_t length, float *out, int64_t out_stride) {
  constexpr int UNROLL = RANKS / 2 / QUERIES > 0 ? RANKS / 2 / QUERIES : 1;
  for (int64_t p = first / 16; p * 16 < length; ++p) {
    const T *k = keys + ((int64_t)table[p] * a.kv_heads + kv_head) * a.key_dim * 16;
    V sum[UNROLL][QUERIES];
    for (int u = 0; u < UNROLL; ++u) for (int j = 0; j < QUERIES; ++j) sum[u][j] = zero();
    int64_t d = 0;
    for (; d + UNROLL <= a.key_dim; d += UNROLL)
      for (int u = 0; u < UNROLL; ++u) {
        V w = load(k + (d + u) * 16);
        for (int j = 0; j < QUERIES; ++j) add_product(sum[u][j], scalar(q + j * head_stride + d + u), w);
      }
    for (; d < a.key_dim; ++d) { V w = load(k + d * 16); for (int j = 0; j < QUERIES; ++j) add_product(sum[0][j], scalar(q + j * head_stride + d), w); }
    int64_t from = first - p * 16, to = length - p * 16;
    for (int j = 0; j < QUERIES; ++j) {
      V s = sum[0][j];
      for (int u = 1; u < UNROLL; ++u) EACH s.part[i] += sum[u][j].part[i];
      EACH s.part[i] *= (float)a.scale;
      if (a.softcap > 0) EACH s.part[i] = capped(s.part[i], (float)a.softcap);
      float *row = out + j * out_stride + p * 16;
      save(row, s);
      for (int64_t i = 0; i < from; ++i) row[i] = HIDDEN;
      for (int64_t i = to < 0 ? 0 : to; i < 16; ++i) row[i] = HIDDEN;
    }
  }
}

// exp(s - max) in place, and one over their sum; a sink is one more score that no value belongs to.
inline float normalize(float *s, int64_t begin, int64_t end, const float *sink) {
  F most = F{} + HIDDEN, sum = F{};
  end = (end + 15) / 16 * 16;
  for (int64_t i = begin; i < end; i += LANES) { F v; memcpy(&v, s + i, WIDTH); most = choose((I)(v > most), v, most); }
  float top = sink ? *sink : HIDDEN, all = 0;
  for (int i = 0; i < LANES; ++i) top = most[i] > top ? most[i] : top;
  for (int64_t i = begin; i < end; i += LANES) {
    F v; memcpy(&v, s + i, WIDTH);
    F e = choose((I)(v != v), v, choose((I)(v <= HIDDEN), F{}, exponential(v - top)));  // a NaN stays one
    memcpy(s + i, &e, WIDTH); sum += e;
  }
  for (int i = 0; i < LANES; ++i) all += sum[i];
  if (sink) all += exponential(*sink - top);
  return 1.0f / all;
}

template <int QUERIES, int CHUNKS, class T>
inline void values_block(const T *values, const int32_t *table, const Attention &a, int64_t kv_head, int64_t first, int64_t length,
                         int64_t d, int64_t size, const float *weights, int64_t stride, const float *scales, T *out, int64_t out_stride) {
  V sum[QUERIES][CHUNKS];
  for (int j = 0; j < QUERIES; ++j) for (int c = 0; c < CHUNKS; ++c) sum[j][c] = zero();
  for (int64_t p = first / 16; p * 16 < length; ++p) {
    const T *v = values + ((int64_t)table[p] * a.kv_heads + kv_head) * a.value_dim * 16 + d;
    int64_t from = first > p * 16 ? first - p * 16 : 0, to = length - p * 16 < 16 ? length - p * 16 : 16;
    for (int64_t i = from; i < to; ++i) {
      V w[CHUNKS];
      for (int c = 0; c < CHUNKS; ++c) w[c] = size < 16 ? load_some(v + i * a.value_dim, size) : load(v + i * a.value_dim + 16 * c);
      for (int j = 0; j < QUERIES; ++j) { float s = weights[j * stride + p * 16 + i]; for (int c = 0; c < CHUNKS; ++c) add_product(sum[j][c], s, w[c]); }
    }
  }
  for (int j = 0; j < QUERIES; ++j) for (int c = 0; c < CHUNKS; ++c) {
    V v = sum[j][c];
    EACH v.part[i] *= scales[j];
    if (size < 16) save_some(out + j * out_stride + d, v, size); else save(out + j * out_stride + d + 16 * c, v);
  }
}

template <int QUERIES, class T>
inline void attend_heads(const Attention &a, int64_t row, int64_t head, int64_t kv_head, int64_t first, int64_t length,
                         const int32_t *table, float *scratch, int64_t stride) {
  const T *q = (const T *)a.query + row * a.row_stride + head * a.head_stride;
  T *out = (T *)a.out + row * a.out_stride + head * a.value_dim;
  scores<QUERIES>(q, a.head_stride, (const T *)a.keys, table, a, kv_head, first, length, scratch, stride);
  float scales[QUERIES];
  for (int j = 0; j < QUERIES; ++j)
    scales[j] = normalize(scratch + j * stride, first / 16 * 16, length, a.sinks ? (const float *)a.sinks + head + j : nullptr);
  const T *values = (const T *)a.values;
  int64_t d = 0;
  for (; d + 64 <= a.value_dim; d += 64) values_block<QUERIES, 4>(values, table, a, kv_head, first, length, d, 64, scratch, stride, scales, out, a.value_dim);
  for (; d + 16 <= a.value_dim; d += 16) values_block<QUERIES, 1>(values, table, a, kv_head, first, length, d, 16, scratch, stride, scales, out, a.value_dim);
  if (d < a.value_dim) values_block<QUERIES, 1>(values, table, a, kv_head, first, length, d, a.value_dim - d, scratch, stride, scales, out, a.value_dim);
}

template <class T> int attend(const Attention &a) {
  const int32_t *lengths = (const int32_t *)a.lengths, *row_tables = (const int32_t *)a.row_tables;
  int64_t longest = 0, group = a.heads / a.kv_heads;
  for (int64_t row = 0; row < a.rows; ++row) longest = lengths[row] > longest ? lengths[row] : longest;
  int64_t stride = (longest + 15) / 16 * 16;
  float *scratch = (float *)malloc(4 * stride * sizeof(float));
  if (!scratch) return 1;
  for (int64_t row = 0; row < a.rows; ++row) {
    int64_t length = lengths[row], first = a.window > 0 && length > a.window ? length - a.window : 0;
    const int32_t *table = (const int32_t *)a.tables + row_tables[row] * a.table_stride;
    for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
      int64_t head = kv_head * group, end = head + group;
      for (; head + 4 <= end; head += 4) attend_heads<4, T>(a, row, head, kv_head, first, length, table, scratch, stride);
      for (; head + 2 <= end; head += 2) attend_heads<2, T>(a, row, head, kv_head, first, length, table, scratch, stride);
      for (; head < end; ++head) attend_heads<1, T>(a, row, head, kv_head, first, length, table, scratch, stride);
    }
  }
  free(scratch);
  return 0;
}

template <class T> void store(const Store &s) {
  const int64_t *slots = (const int64_t *)s.slots;
  for (int64_t row = 0; row < s.rows; ++row) {
    if (slots[row] < 0) continue;
    int64_t block = slots[row] / 16, offset = slots[row] % 16;
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const T *key = (const T *)s.key + row * s.key_row + head * s.key_head;
      const T *value = (const T *)s.value + row * s.value_row + head * s.value_head;
      T *keys = (T *)s.keys + (block * s.kv_heads + head) * s.key_dim * 16 + offset;
      T *values = (T *)s.values + ((block * s.kv_heads + head) * 16 + offset) * s.value_dim;
      for (int64_t d = 0; d < s.key_dim; ++d) keys[d * 16] = key[d];
      memcpy(values, value, s.value_dim * sizeof(T));
    }
  }
}

// ---- a decode step of a Llama-like model ----

// A row of W in chunks of as many weights as lie together, each in PIECES of 16. Of int8, lane i of a chunk holds the
// elements i, i + 16, i + 32 and i + 48, and a row is filled up with zeros: any 16 come out by shifts.
template <class W> struct Row {
  static constexpr int PIECES = 1;
  static int64_t stride(int64_t in) { return in; }
  static INLINE V piece(const W *w, int) { return load(w); }
  static INLINE V last(const W *w, int, int64_t n) { return load_some(w, n); }
};
template <> struct Row<int8_t> {
  static constexpr int PIECES = 4;
  static int64_t stride(int64_t in) { return (in + 63) / 64 * 64; }
  static INLINE V piece(const int8_t *w, int number) {
    V v;
    EACH { I bytes; memcpy(&bytes, w + i * WIDTH, WIDTH); v.part[i] = __builtin_convertvector((bytes << (24 - 8 * number)) >> 24, F); }
    return v;
  }
  static INLINE V last(const int8_t *w, int number, int64_t) { return piece(w, number); }
};

// Rows of x dotted with rows of W, as many at once as the registers hold: every weight is read once, as it lies.
template <int TOKENS, int N, class W>
inline void product_block(const float *x, const W *w, const Linear &l, int64_t first, float *y, bool add, bool ahead) {
  constexpr int PIECES = Row<W>::PIECES;
  const int64_t in = l.in, stride = Row<W>::stride(in);
  V sum[TOKENS][N];
  for (int t = 0; t < TOKENS; ++t) for (int j = 0; j < N; ++j) sum[t][j] = zero();
  int64_t i = 0;
  for (; i + 16 * PIECES <= in; i += 16 * PIECES) {
    if (ahead) for (int j = 0; j < N; ++j) __builtin_prefetch(w + (j + N) * stride + i, 0, 2);  // memory decides: what comes next
    _Pragma("GCC unroll 4") for (int p = 0; p < PIECES; ++p) {
      V part[TOKENS];
      for (int t = 0; t < TOKENS; ++t) part[t] = load(x + t * in + i + 16 * p);
      for (int j = 0; j < N; ++j) {
        V weights = Row<W>::piece(w + j * stride + i, p);
        for (int t = 0; t < TOKENS; ++t) add_product(sum[t][j], part[t], weights);
      }
    }
  }
  for (int p = 0; i + 16 * p < in; ++p) for (int t = 0; t < TOKENS; ++t) {
    int64_t n = in - i - 16 * p;
    V part = load_some(x + t * in + i + 16 * p, n < 16 ? n : 16);
    for (int j = 0; j < N; ++j) add_product(sum[t][j], part, Row<W>::last(w + j * stride + i, p, n));
  }
  const float *bias = (const float *)l.bias, *scales = (const float *)l.scales;
  for (int t = 0; t < TOKENS; ++t) for (int j = 0; j < N; ++j) {
    float value = total(sum[t][j]) * (scales ? scales[first + j] : 1.0f) + (bias ? bias[first + j] : 0.0f);
    y[t * l.out + j] = add ? y[t * l.out + j] + value : value;
  }
}

constexpr int TALL = RANKS == 8 ? 4 : RANKS == 4 ? 2 : 1, WIDE = RANKS == 8 ? 6 : RANKS == 4 ? 3 : 2;

template <int N, bool AHEAD, class W>
inline void product_rows(const float *x, const W *w, const Linear &l, int64_t o, float *y, int64_t rows, bool add) {
  int64_t t = 0;
  for (; t + TALL <= rows; t += TALL) product_block<TALL, N>(x + t * l.in, w, l, o, y + t * l.out + o, add, AHEAD && t == 0);
  for (; t < rows; ++t) product_block<1, N>(x + t * l.in, w, l, o, y + t * l.out + o, add, AHEAD && t == 0);
}

// N rows of W as floats, and the next N on their way.
template <int N, class W>
inline void widen_rows(const W *w, int64_t in, float *to) {
  constexpr int PIECES = Row<W>::PIECES;
  const int64_t stride = Row<W>::stride(in);
  for (int j = 0; j < N; ++j, w += stride, to += in) {
    int64_t i = 0;
    for (; i + 16 * PIECES <= in; i += 16 * PIECES) {
      __builtin_prefetch(w + N * stride + i, 0, 2);
      _Pragma("GCC unroll 4") for (int p = 0; p < PIECES; ++p) save(to + i + 16 * p, Row<W>::piece(w + i, p));
    }
    for (int p = 0; i + 16 * p < in; ++p) {
      int64_t n = in - i - 16 * p;
      save_some(to + i + 16 * p, Row<W>::last(w + i, p, n), n < 16 ? n : 16);
    }
  }
}

// `wide` has room for WIDE rows of floats: where rows of x are many times those that fit the registers, narrow weights
// become floats once, not once for each few of them. To write and read them again costs as much as twice, of int8 once.
template <class W> void product(const float *x, const Linear &l, float *y, int64_t rows, bool add, float *wide) {
  const W *w = (const W *)l.weight;
  const int64_t stride = Row<W>::stride(l.in);
  int64_t o = 0;
  if (rows == 1) for (; o + RANKS <= l.out; o += RANKS) product_rows<RANKS, true>(x, w + o * stride, l, o, y, rows, add);
  if (sizeof(W) < sizeof(float) && rows > TALL * (int64_t)sizeof(W)) for (; o + WIDE <= l.out; o += WIDE) {
    widen_rows<WIDE>(w + o * stride, l.in, wide);
    product_rows<WIDE, false>(x, (const float *)wide, l, o, y, rows, add);
  }
  for (; o + WIDE <= l.out; o += WIDE) product_rows<WIDE, true>(x, w + o * stride, l, o, y, rows, add);
  for (; o < l.out; ++o) product_rows<1, true>(x, w + o * stride, l, o, y, rows, add);
}

inline void product(const float *x, const Linear &l, float *y, int64_t rows, bool add, float *wide) {
  if (l.kind == 2) product<int8_t>(x, l, y, rows, add, wide);
  else if (l.kind == 1) product<Half>(x, l, y, rows, add, wide);
  else product<float>(x, l, y, rows, add, wide);
}

// y = w x / sqrt(mean x^2 + eps) for each of `rows`; y may be x.
inline void normalize_rows(const float *x, int64_t weight, int64_t rows, int64_t size, float eps, float *y) {
  const float *w = (const float *)weight;
  for (int64_t row = 0; row < rows; ++row, x += size, y += size) {
    V sum = zero();
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) { V v = load(x + i); add_product(sum, v, v); }
    if (i < size) { V v = load_some(x + i, size - i); add_product(sum, v, v); }
    float factor = 1.0f / sqrtf(total(sum) / (float)size + eps);
    for (int64_t j = 0; j < size; ++j) y[j] = w[j] * (x[j] * factor);
  }
}

// The two halves of each head turned by the row's angles (Su et al., 2021, in the order that transformers has).
inline void rotate(float *x, const float *cosines, const float *sines, int64_t rows, int64_t heads, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t row = 0; row < rows; ++row, cosines += half, sines += half)
    for (int64_t head = 0; head < heads; ++head, x += dim)
      for (int64_t j = 0; j < half; ++j) {
        float a = x[j], b = x[j + half];
        x[j] = a * cosines[j] - b * sines[j]; x[j + half] = b * cosines[j] + a * sines[j];
      }
}

inline void gated(float *gate, const float *up, int64_t size) {  // silu(gate) * up
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    F g, u; memcpy(&g, gate + i, WIDTH); memcpy(&u, up + i, WIDTH);
    g = g / (1.0f + exponential(-g)) * u;
    memcpy(gate + i, &g, WIDTH);
  }
  for (; i < size; ++i) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

inline void round_to(Half *to, const float *from, int64_t size) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) save(to + i, load(from + i));
  if (i < size) save_some(to + i, load_some(from + i, size - i), size - i);
}
inline void widen(float *to, const Half *from, int64_t size) { for (int64_t i = 0; i < size; ++i) to[i] = scalar(from + i); }

struct Scratch {  // what a step needs beside the model, side by side in memory
  float *x, *normed, *query, *key, *value, *out, *gate, *up, *cosines, *sines, *wide;
  Half *rounded;
  Scratch(const Step &s) {
    float *at = (float *)s.scratch;
    auto take = [&](int64_t size) { float *begin = at; at += s.rows * size; return begin; };
    x = take(s.hidden); normed = take(s.hidden);
    query = take(s.heads * s.head_dim); out = take(s.heads * s.head_dim);
    key = take(s.kv_heads * s.head_dim); value = take(s.kv_heads * s.head_dim);
    gate = take(s.inner); up = take(s.inner);
    cosines = take(s.head_dim / 2); sines = take(s.head_dim / 2);
    rounded = (Half *)take((s.heads + s.kv_heads) * s.head_dim);
    wide = at;
  }
};

inline void linear(const Step &s, const Linear &l, const int64_t *segments, const float *x, float *y, float *wide, bool add = false) {
  product(x, l, y, s.rows, add, wide);
  if (*segments) lora(x, l.in, y, l.out, (const Segment *)*segments, s.num_segments, l.in, l.out);
}

template <class T> int look(const Step &s, const Layer &l, const T *query, const T *key, const T *value, T *out) {
  const int64_t d = s.head_dim, kv = s.kv_heads * d;
  store<T>({(int64_t)key, kv, d, (int64_t)value, kv, d, l.keys, l.values, s.slots, s.rows, s.kv_heads, d, d, s.is_bf16});
  return attend<T>({(int64_t)query, s.heads * d, d, l.keys, l.values, s.tables, s.table_stride, s.row_tables, s.lengths, 0, (int64_t)out,
                    s.heads * d, s.rows, s.heads, s.kv_heads, d, d, l.window, s.is_bf16, s.scale, 0.0});
}

inline int attention(const Step &s, const Layer &l, const Scratch &b) {
  if (!s.is_bf16) return look<float>(s, l, b.query, b.key, b.value, b.out);
  const int64_t size = s.rows * s.heads * s.head_dim, kv_size = s.rows * s.kv_heads * s.head_dim;
  Half *query = b.rounded, *key = query + size, *value = key + kv_size, *out = value + kv_size;
  round_to(query, b.query, size); round_to(key, b.key, kv_size); round_to(value, b.value, kv_size);
  int failed = look<Half>(s, l, query, key, value, out);
  widen(b.out, out, size);
  return failed;
}

inline void angles(const Step &s, const Scratch &b) {
  const float *frequencies = (const float *)s.frequencies;
  const int64_t *positions = (const int64_t *)s.positions, half = s.head_dim / 2;
  for (int64_t row = 0; row < s.rows; ++row) for (int64_t j = 0; j < half; ++j) {
    float angle = (float)positions[row] * frequencies[j];
    b.cosines[row * half + j] = cosf(angle) * (float)s.rotation_scale;
    b.sines[row * half + j] = sinf(angle) * (float)s.rotation_scale;
  }
}

inline void embed(const Step &s, float *x) {
  const int64_t *ids = (const int64_t *)s.ids;
  for (int64_t row = 0; row < s.rows; ++row, x += s.hidden) {
    if (s.is_bf16) widen(x, (const Half *)s.embeddings + ids[row] * s.hidden, s.hidden);
    else memcpy(x, (const float *)s.embeddings + ids[row] * s.hidden, s.hidden * sizeof(float));
  }
}

int step(const Step &s) {
  const Scratch b(s);
  const float eps = (float)s.eps;
  const int64_t *segments = (const int64_t *)s.segments, *kept = (const int64_t *)s.kept;
  embed(s, b.x);
  angles(s, b);
  for (const Layer *l = (const Layer *)s.layers, *end = l + s.num_layers; l < end; ++l, segments += SITES) {
    normalize_rows(b.x, l->norm, s.rows, s.hidden, eps, b.normed);
    linear(s, l->query, segments, b.normed, b.query, b.wide);
    linear(s, l->key, segments + 1, b.normed, b.key, b.wide);
    linear(s, l->value, segments + 2, b.normed, b.value, b.wide);
    if (l->query_norm) normalize_rows(b.query, l->query_norm, s.rows * s.heads, s.head_dim, eps, b.query);
    if (l->key_norm) normalize_rows(b.key, l->key_norm, s.rows * s.kv_heads, s.head_dim, eps, b.key);
    rotate(b.query, b.cosines, b.sines, s.rows, s.heads, s.head_dim);
    rotate(b.key, b.cosines, b.sines, s.rows, s.kv_heads, s.head_dim);
    if (attention(s, *l, b)) return 1;
    linear(s, l->output, segments + 3, b.out, b.x, b.wide, true);
    normalize_rows(b.x, l->mlp_norm, s.rows, s.hidden, eps, b.normed);
    linear(s, l->gate, segments + 4, b.normed, b.gate, b.wide);
    linear(s, l->up, segments + 5, b.normed, b.up, b.wide);
    gated(b.gate, b.up, s.rows * s.inner);
    linear(s, l->down, segments + 6, b.gate, b.x, b.wide, true);
  }
  for (int64_t i = 0; i < s.num_kept; ++i) normalize_rows(b.x + kept[i] * s.hidden, s.norm, 1, s.hidden, eps, b.normed + i * s.hidden);
  product(b.normed, s.head, (float *)s.logits, s.num_kept, false, b.wide);
  return 0;
}

}  // namespace

extern "C" void JOIN(lora_, OPENLORA_ISA)(LORA_ARGUMENTS) {
  if (is_bf16) lora((const Half *)x, x_stride, (Half *)y, y_stride, segments, num_segments, in, out);
  else lora((const float *)x, x_stride, (float *)y, y_stride, segments, num_segments, in, out);
}
extern "C" int JOIN(attend_, OPENLORA_ISA)(const Attention *a) { return a->is_bf16 ? attend<Half>(*a) : attend<float>(*a); }
extern "C" void JOIN(store_, OPENLORA_ISA)(const Store *s) { if (s->is_bf16) store<Half>(*s); else store<float>(*s); }
extern "C" int JOIN(step_, OPENLORA_ISA)(const Step *s) { return step(*s); }

#else  // the choice

#define DECLARE(isa) extern "C" { void lora_##isa(LORA_ARGUMENTS); int attend_##isa(const Attention *); void store_##isa(const Store *); int step_##isa(const Step *); }
#define ENTRY(isa) {#isa, lora_##isa, attend_##isa, store_##isa, step_##isa}
struct Entry { const char *name; void (*lora)(LORA_ARGUMENTS); int (*attend)(const Attention *); void (*store)(const Store *); int (*step)(const Step *); };

#ifdef OPENLORA_WITH_baseline
DECLARE(baseline)
#endif
#ifdef OPENLORA_WITH_avx2
DECLARE(avx2)
#endif
#ifdef OPENLORA_WITH_avx512
DECLARE(avx512)
#endif
static const Entry entries[] = {
#ifdef OPENLORA_WITH_baseline
  ENTRY(baseline),
#endif
#ifdef OPENLORA_WITH_avx2
  ENTRY(avx2),
#endif
#ifdef OPENLORA_WITH_avx512
  ENTRY(avx512),
#endif
};
static bool runs(const char *isa) {
#ifdef __x86_64__
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avx512")) return avx512;
#endif
  return !strcmp(isa, "baseline");
}
// A factor `from` of fp32 (kind 0), bfloat16 (1) or fp16 (2), element (r, e) at r * row + e * column, times `scale`, in the
// layout that the products read: [size / C][rank][C] in chunks of 64 bytes, the last filled up with zeros. Of bfloat16,
// lane i of a chunk holds the elements i and i + 16.
struct Factor { int64_t from, kind, row, column, rank, size, to, is_bf16; double scale; };

static uint16_t rounded(float value) {
  uint32_t u; memcpy(&u, &value, 4);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static float from_bits(uint32_t u) { float value; memcpy(&value, &u, 4); return value; }
template <int KIND> static float element(int64_t from, int64_t at) {
  if (KIND == 0) return ((const float *)from)[at];
  const uint32_t half = ((const uint16_t *)from)[at];
  if (KIND == 1) return from_bits(half << 16);
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
  if (!exponent) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
  return from_bits(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
}
template <int KIND> static void pack(const Factor &f) {
  const float scale = (float)f.scale;
  float *to = (float *)f.to;
  uint16_t *half_to = (uint16_t *)f.to;
  const int64_t chunk = f.is_bf16 ? 32 : 16;
  for (int64_t begin = 0; begin < f.size; begin += chunk) for (int64_t r = 0; r < f.rank; ++r) for (int64_t i = 0; i < chunk; ++i) {
    const int64_t e = begin + (f.is_bf16 ? i % 2 * 16 + i / 2 : i);
    const float value = e < f.size ? element<KIND>(f.from, r * f.row + e * f.column) * scale : 0.0f;
    if (f.is_bf16) *half_to++ = rounded(value); else *to++ = value;
  }
}

static const int COUNT = sizeof(entries) / sizeof(entries[0]);

#define API extern "C" __attribute__((visibility("default")))
API int openlora_abi(void) { return 5; }
// The name of entry `isa`, empty where this processor can't run it, null past the last; the later the better.
API const char *openlora_isa(int isa) {
  if (isa < 0 || isa >= COUNT) return nullptr;
  return runs(entries[isa].name) ? entries[isa].name : "";
}
API void openlora_lora(int isa, LORA_ARGUMENTS) { entries[isa].lora(x, x_stride, y, y_stride, is_bf16, segments, num_segments, in, out); }
API int openlora_attend(int isa, const Attention *a) { return entries[isa].attend(a); }
API void openlora_store(int isa, const Store *s) { entries[isa].store(s); }
API int openlora_step(int isa, const Step *s) { return entries[isa].step(s); }
API void openlora_pack(const Factor *f, int64_t n) {
  for (; n > 0; ++f, --n) f->kind == 0 ? pack<0>(*f) : f->kind == 1 ? pack<1>(*f) : pack<2>(*f);
}

#endif

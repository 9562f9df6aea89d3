// Moving columns: a row as `s` phases of every s-th column, and back. A window of stride s reads phases, not columns.
#pragma once
#include "plan.hpp"
#include "simd.hpp"

namespace anypool {
namespace {

// De-interleave: element i of src goes to phase i % s, place i / s; phases lie `phase_pitch` elements apart.
template <class T>
void split_in_two(T* even, T* odd, const T* in, i64 n) {
  constexpr int L = kLanes<T>;
  i64 i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    auto a = load<Vec<T, L>>(in + i), b = load<Vec<T, L>>(in + i + L);
    store(even + i / 2, Unzip<T, L>::even(a, b));
    store(odd + i / 2, Unzip<T, L>::odd(a, b));
  }
  for (; i + 1 < n; i += 2) even[i / 2] = in[i], odd[i / 2] = in[i + 1];
  if (i < n) even[i / 2] = in[i];
}
// Every second element. The one behind the last that is wanted may not exist.
template <class T>
void take_every_second(char* dst, const char* src, i64 n) {
  constexpr int L = kLanes<T>;
  T* out = reinterpret_cast<T*>(dst);
  const T* in = reinterpret_cast<const T*>(src);
  i64 i = 0;
  for (; i + L < n; i += L)
    store(out + i, Unzip<T, L>::even(load<Vec<T, L>>(in + 2 * i), load<Vec<T, L>>(in + 2 * i + L)));
  for (; i < n; ++i) out[i] = in[2 * i];
}
template <class T>
void split_phases(T* out, i64 phase_pitch, const T* in, i64 n, i64 s, T* spare) {
  if (s == 2) return split_in_two(out, out + phase_pitch, in, n);
  if (s % 2 == 0) {  // halves first: each is half as long, and a shuffle moves a whole vector
    const i64 half = n / 2 + 1;
    split_in_two(spare, spare + half, in, n);
    split_phases(out, 2 * phase_pitch, spare, (n + 1) / 2, s / 2, spare + 2 * half);
    split_phases(out + phase_pitch, 2 * phase_pitch, spare + half, n / 2, s / 2, spare + 2 * half);
    return;
  }
  for (i64 phase = 0; phase < s; ++phase)
    for (i64 place = 0, j = phase; j < n; ++place, j += s) out[phase * phase_pitch + place] = in[j];
}
template <class T>
void split_phases(char* dst, i64 phase_pitch, const char* src, i64 n, i64 s, char* spare) {
  split_phases(reinterpret_cast<T*>(dst), phase_pitch, reinterpret_cast<const T*>(src), n, s,
               reinterpret_cast<T*>(spare));
}
// `spare` has room for 2 n + 64 elements.
inline void split_phases(i64 bytes, char* dst, i64 phase_pitch, const char* src, i64 n, i64 s, char* spare) {
  switch (bytes) {
    case 1: return split_phases<uint8_t>(dst, phase_pitch, src, n, s, spare);
    case 2: return split_phases<uint16_t>(dst, phase_pitch, src, n, s, spare);
    case 4: return split_phases<uint32_t>(dst, phase_pitch, src, n, s, spare);
    default: return split_phases<uint64_t>(dst, phase_pitch, src, n, s, spare);
  }
}
// Interleave: place i of phase r becomes column i * s + r, for columns [from, from + n).
template <class T>
void join_phases(char* dst, const char* src, i64 phase_pitch, i64 from, i64 n, i64 s) {
  constexpr int L = kLanes<T>;
  T* out = reinterpret_cast<T*>(dst);
  const T* in = reinterpret_cast<const T*>(src);
  i64 j = 0;
  if (s == 2 && n > 0) {
    if (from % 2) out[j++] = in[phase_pitch + from / 2];
    const T *even = in + (from + j) / 2, *odd = even + phase_pitch;
    for (; j + 2 * L <= n; j += 2 * L, even += L, odd += L) {
      auto a = load<Vec<T, L>>(even), b = load<Vec<T, L>>(odd);
      store(out + j, Zip<T, L>::low(a, b));
      store(out + j + L, Zip<T, L>::high(a, b));
    }
  }
  i64 phase = (from + j) % s, place = (from + j) / s;
  for (; j < n; ++j) {
    out[j] = in[phase * phase_pitch + place];
    if (++phase == s) phase = 0, ++place;
  }
}
inline void join_phases(i64 bytes, char* dst, const char* src, i64 phase_pitch, i64 from, i64 n, i64 s) {
  bytes == 4 ? join_phases<uint32_t>(dst, src, phase_pitch, from, n, s)
             : join_phases<uint64_t>(dst, src, phase_pitch, from, n, s);
}

// Each element s times: element i becomes columns i * s … of which [from, from + n) are wanted.
template <class T, int S>
void repeat_whole(T* out, const T* in, i64 n) {  // n elements, all of their columns
  for (i64 i = 0; i < n; ++i) store(out + i * S, splat<Vec<T, S>>(in[i]));
}
template <class T>
void repeat_columns(T* out, const T* in, i64 from, i64 n, i64 s) {
  in += from / s;
  if (const i64 skip = from % s) {
    const i64 first = s - skip < n ? s - skip : n;
    for (i64 r = 0; r < first; ++r) *out++ = *in;
    ++in, n -= first;
  }
  switch (const i64 whole = n / s; s) {
    case 4: repeat_whole<T, 4>(out, in, whole); break;
    case 8: repeat_whole<T, 8>(out, in, whole); break;
    default:
      for (i64 i = 0; i < whole; ++i)
        for (i64 r = 0; r < s; ++r) out[i * s + r] = in[i];
  }
  for (i64 j = n / s * s; j < n; ++j) out[j] = in[j / s];
}
inline void repeat_columns(i64 bytes, char* dst, const char* src, i64 from, i64 n, i64 s) {
  if (s == 2) return join_phases(bytes, dst, src, 0, from, n, s);  // both phases are the same row
  bytes == 4 ? repeat_columns(reinterpret_cast<uint32_t*>(dst), reinterpret_cast<const uint32_t*>(src), from, n, s)
             : repeat_columns(reinterpret_cast<uint64_t*>(dst), reinterpret_cast<const uint64_t*>(src), from, n, s);
}

}  // namespace
}  // namespace anypool

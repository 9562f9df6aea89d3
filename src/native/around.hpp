// Rows that are written around the caches: a plain store reads the memory first, which costs as much as writing it. Only for
// results so large that their beginning has left the caches before anybody reads it.
#pragma once
#include "scratch.hpp"

namespace anypool {
namespace {

constexpr i64 kLine = 64;  // bytes that memory is written in; a part of them costs more than all

// Whole lines from `from`, which need not be aligned, to `to`, which is.
ANYPOOL_INLINE void stream_lines(char* to, const char* from, i64 bytes) {
#if defined(__AVX512F__)
  for (i64 i = 0; i < bytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#elif defined(__AVX2__)
  for (i64 i = 0; i < bytes; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#elif defined(__x86_64__)
  for (i64 i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  __builtin_memcpy(to, from, size_t(bytes));
#endif
}

// From anywhere to anywhere, all but what is left of the last line; returns how many bytes that were.
ANYPOOL_INLINE i64 stream(char* to, const char* from, i64 bytes) {
  const i64 head = lower(-reinterpret_cast<i64>(to) & (kLine - 1), bytes), whole = (bytes - head) / kLine * kLine;
  __builtin_memcpy(to, from, size_t(head));
  stream_lines(to + head, from + head, whole);
  return head + whole;
}

// What was streamed is there for other threads, who may be told of it.
ANYPOOL_INLINE void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Collects rows: those that follow one another in memory share the lines between them.
class AroundCaches {
  bool wanted_ = false;  // the buffer does not tell while scratch memory is measured
  char* buffer_ = nullptr;
  char* to_ = nullptr;  // where what the buffer holds belongs
  i64 held_ = 0;

 public:
  AroundCaches() = default;
  // For rows of at most so many bytes.
  AroundCaches(bool wanted, i64 row, Arena& arena) : wanted_(wanted) {
    if (wanted) buffer_ = arena.take(row + kTogether + kLine);
  }
  // Whether a result is so large, whose sizes are those of the axes that belong to y.
  static bool gain(const Plan& p, i64 Axis::* size) { return elements_of(p, size) * size_of(p.out) > (i64(32) << 20); }
  explicit operator bool() const { return wanted_; }
  // Where to write a row that belongs at `to`.
  char* room(char* to) {
    if (!buffer_) return to;
    if (to != to_ + held_) {
      rest();
      to_ = to;
    }
    return buffer_ + held_;
  }
  // That row has been written, and is as long.
  void wrote(i64 bytes) {
    if (!buffer_) return;
    held_ += bytes;
    if (held_ >= kTogether) lines();
  }
  // Nothing follows.
  void finish() {
    if (!buffer_) return;
    rest();
    to_ = nullptr;
    streamed();
  }

 private:
  static constexpr i64 kTogether = 2048;  // bytes written at once: a row may be less than a line

  void lines() {
    const i64 done = stream(to_, buffer_, held_);
    held_ -= done, to_ += done;
    __builtin_memmove(buffer_, buffer_ + done, size_t(held_));
  }
  void rest() {
    if (!held_) return;
    lines();
    __builtin_memcpy(to_, buffer_, size_t(held_));
    held_ = 0;
  }
};

}  // namespace
}  // namespace anypool

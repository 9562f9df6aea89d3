// Bindings of token pooling, and nothing else: plans from plain numbers and addresses. Python has validated them and keeps
// the arrays alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "bindings.hpp"
#include "tokens.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace anypool;
using Numbers = std::vector<i64>;

namespace {

template <class T>
T* pointer(i64 address) {
  return reinterpret_cast<T*>(address);
}
void expect(const Numbers& v, size_t n) {
  if (v.size() != n) throw nb::value_error("not a plan");
}
template <class T>
T* elements(nb::handle array) {
  return static_cast<T*>(data_of(array));
}
// outputs, then bounds, part, start, count: ndarrays of int64 without gaps.
using RunsGiven = std::tuple<i64, nb::handle, nb::handle, nb::handle, nb::handle>;
PartRuns read_runs(const RunsGiven& v) {
  return {std::get<0>(v), elements<const i64>(std::get<1>(v)), elements<const i64>(std::get<2>(v)),
          elements<const i64>(std::get<3>(v)), elements<const i64>(std::get<4>(v))};
}
// How many parts, then base and first: likewise.
using PartsGiven = std::tuple<i64, nb::handle, nb::handle>;
Parts read_parts(const PartsGiven& v) {
  const auto read = [&](nb::handle array) {
    const i64* p = elements<const i64>(array);
    return std::vector<i64>(p, p + std::get<0>(v));
  };
  return {read(std::get<1>(v)), read(std::get<2>(v))};
}
DType dtype(i64 number) { return static_cast<DType>(number); }

// keep, p, eps, winners
using Term = std::tuple<int, double, double, i64>;
// finish, term, column
using Result = std::tuple<int, int, i64>;
// give, p, eps, a, b, a_row, b_row, by, winners
using Gift = std::tuple<int, double, double, i64, i64, i64, i64, i64, i64>;

void make_recipe(TokenRecipe* self, const Numbers& shape, const PartsGiven& parts, double empty,
                 const std::vector<Term>& terms, const std::vector<Result>& results) {
  expect(shape, 6);
  if (terms.size() > kMaxTerms || results.size() > kMaxTerms) throw nb::value_error("not a plan");
  TokenPlan p{};
  p.in = dtype(shape[0]), p.out = dtype(shape[1]);
  p.dim = shape[2], p.row = shape[3], p.col = shape[4], p.y_row = shape[5];
  p.empty = empty;
  for (const auto& [keep, power, eps, winners] : terms)
    p.term[p.n_terms++] = {static_cast<Keep>(keep), power, eps, pointer<int32_t>(winners)};
  for (const auto& [finish, term, column] : results)
    p.result[p.n_results++] = {static_cast<TokenFinish>(finish), term, column};
  new (self) TokenRecipe{p, read_parts(parts)};
}
void run_recipe(const TokenRecipe& self, nb::handle x, nb::handle y, const RunsGiven& given, nb::handle weights,
                nb::handle skipped) {
  const PartRuns runs = read_runs(given);
  const void* tokens = data_of(x);
  void* result = data_of(y);
  const double* by = elements<const double>(weights);
  const i64* before = elements<const i64>(skipped);
  nb::gil_scoped_release release;
  self.run(tokens, result, runs, by, before);
}

void attention(const Numbers& shape, const PartsGiven& parts, const PartsGiven& value_parts, const RunsGiven& given,
               const Numbers& arrays, double empty) {
  expect(shape, 9), expect(arrays, 7);
  AttentionPlan p{};
  p.in = dtype(shape[0]), p.out = dtype(shape[1]);
  p.dim = shape[2], p.row = shape[3], p.col = shape[4];
  p.value_dim = shape[5], p.value_row = shape[6], p.value_col = shape[7], p.heads = shape[8];
  const PartRuns runs = read_runs(given);
  const RowRuns rows(runs, read_parts(parts), p.row), values(runs, read_parts(value_parts), p.value_row);
  p.runs = rows.get(runs), p.value_offset = values.offset();
  p.x = pointer<void>(arrays[0]), p.values = pointer<void>(arrays[1]);
  p.query = pointer<void>(arrays[2]), p.y = pointer<void>(arrays[3]), p.logsumexp = pointer<double>(arrays[4]);
  p.grad = pointer<void>(arrays[5]), p.known = pointer<const double>(arrays[6]);
  p.empty = empty;
  nb::gil_scoped_release release;
  run_attention(p);
}

void gradient(const Numbers& shape, const Numbers& runs, const Numbers& arrays, bool around_cache,
              const std::vector<Gift>& terms, const Numbers& attention) {
  expect(shape, 5), expect(runs, 10), expect(arrays, 3);
  if (terms.size() > kMaxTerms) throw nb::value_error("not a plan");
  GradientPlan p{};
  p.in = dtype(shape[0]), p.dim = shape[1], p.row = shape[2], p.col = shape[3], p.rows = shape[4];
  p.n_runs = runs[0];
  const i64** const fields[] = {&p.offset, &p.count,       &p.flat,   &p.output, &p.ordinal,
                                &p.list,   &p.list_bounds, &p.tokens, &p.skipped};
  for (int i = 0; i < 9; ++i) *fields[i] = pointer<const i64>(runs[size_t(i) + 1]);
  p.x = pointer<void>(arrays[0]), p.weights = pointer<const double>(arrays[1]), p.grad = pointer<void>(arrays[2]);
  p.around_cache = around_cache;
  for (const auto& [give, power, eps, a, b, a_row, b_row, by, winners] : terms)
    p.term[p.n_terms++] = {static_cast<Give>(give),
                           power,
                           eps,
                           pointer<void>(a),
                           pointer<void>(b),
                           a_row,
                           b_row,
                           pointer<const double>(by),
                           pointer<const int32_t>(winners)};
  if (!attention.empty()) {
    expect(attention, 10);
    p.heads = attention[0], p.value_dim = attention[1], p.value_row = attention[2], p.value_col = attention[3];
    p.value_offset = pointer<const i64>(attention[4]);
    p.values = pointer<void>(attention[5]), p.query = pointer<void>(attention[6]);
    p.grad_y = pointer<void>(attention[7]), p.known = pointer<const double>(attention[8]);
    p.grad_values = pointer<void>(attention[9]);
  }
  nb::gil_scoped_release release;
  run_token_gradient(p);
}

void dots(const Numbers& shape, const PartsGiven& parts, const RunsGiven& given, const Numbers& arrays) {
  expect(shape, 4), expect(arrays, 5);
  DotPlan p{};
  p.in = dtype(shape[0]), p.dim = shape[1], p.row = shape[2], p.col = shape[3];
  const PartRuns runs = read_runs(given);
  const RowRuns rows(runs, read_parts(parts), p.row);
  p.runs = rows.get(runs);
  p.x = pointer<void>(arrays[0]), p.a = pointer<void>(arrays[1]), p.b = pointer<void>(arrays[2]);
  p.m = pointer<void>(arrays[3]), p.y = pointer<double>(arrays[4]);
  nb::gil_scoped_release release;
  run_token_dots(p);
}

}  // namespace

void bind_tokens(nb::module_& m) {
  nb::class_<TokenRecipe>(m, "TokenRecipe")
      .def("__init__", &make_recipe, "shape"_a, "parts"_a, "empty"_a, "terms"_a, "results"_a)
      .def("run", &run_recipe, "x"_a, "y"_a, "runs"_a, "weights"_a = nb::none(), "skipped"_a = nb::none(),
           "Run on ndarrays, or the addresses of elements, that lie as those the recipe was made for.");
  m.def("token_attention", &attention, "shape"_a, "parts"_a, "value_parts"_a, "runs"_a, "arrays"_a, "empty"_a);
  m.def("token_gradient", &gradient, "shape"_a, "runs"_a, "arrays"_a, "around_cache"_a, "terms"_a, "attention"_a);
  m.def("token_dots", &dots, "shape"_a, "parts"_a, "runs"_a, "arrays"_a);
}

"""Deliberate mistakes, and the tests that must notice each.

`old` must occur exactly once in `file` (below src/); keep it a fragment of one line, so that
reformatting does not break it. A native mutant is compiled, the others are not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """Replace `old` by `new` in `file`; `tests` (arguments of pytest) must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def native(self) -> bool:
        return self.file.startswith("native/")


WINDOWS = "anypool/windows.py"
REDUCTIONS = "anypool/reductions.py"
OPERATION = "anypool/operation.py"
FUNCTIONS = "anypool/window_functions.py"
GATHERED = "anypool/backends/gathered.py"
SPEC = "anypool/tensors/spec.py"
CODES = "anypool/tensors/codes.py"
COUNTED = "anypool/tensors/counted.py"
IN_TORCH = "anypool/backends/torch.py"
RUNS = "anypool/runs.py"
TOKEN_NATIVE = "native/token_tree.hpp"

NAMED = ("tests/test_against_oracle.py::test_named_functions",)
ADAPTIVE = ("tests/test_against_oracle.py::test_adaptive",)
LAWS = ("tests/test_properties.py",)
EMPTY = ("tests/test_against_oracle.py::test_windows[reference-max-1-channels_first]",)
REGRESSIONS = ("tests/test_regressions.py",)
ARGUMENTS = ("tests/test_arguments.py::test_bad_argument",)
HALVES = ("tests/test_against_oracle.py::test_dtypes[native-mean-2-channels_first]",)
DTYPES = ("tests/test_against_oracle.py::test_dtypes[native-sum-1-channels_first]",)
WINNERS = ("tests/test_torch_tensors.py::test_indices_like_pytorch",)
TORCH_AGREES = ("tests/test_torch_tensors.py::test_torch_backend_agrees",)
TRANSFORMS = ("tests/test_torch_operators.py::test_transforms[max]",)
LP_AT_ZERO = ("tests/test_torch_operators.py::test_gradients_where_lp_is_zero",)
GRADIENTS = tuple(
    f"tests/test_against_oracle.py::test_gradients[{backend}-{reduction}-2-channels_first]"
    for backend in ("reference", "native")
    for reduction in ("mean", "lp")
)

TOKENS = ("tests/test_tokens.py",)
TIED_MEDIAN = ("tests/test_window_reductions.py::test_gradients_of_ties",)
MASKED = ("tests/test_masked_kernels.py",)
KNOWN = ("tests/test_known_calls.py",)
DENSE = ("tests/test_kernels.py::test_dense_rows_of_every_length",)
KERNELS = ("tests/test_kernels.py",)
KEPT = ("tests/test_gradient_kernels.py::test_gradients_of_windows_that_keep_sizes",)
PUT = ("tests/test_gradient_kernels.py::test_gradients_put_where_the_winners_are",)
BY_ROWS = ("tests/test_gradient_kernels.py::test_gradients_of_maxima_in_rows_of_every_length",)
RESULTS_AROUND = ("tests/test_around_caches.py::test_results_written_around_the_caches",)
AROUND = ("tests/test_around_caches.py::test_gradients_written_around_the_caches",)
COMPILED = ("tests/test_torch_counted.py",)
MODES = ("tests/test_window_reductions.py::test_like_numpy",)
MOMENTS = ("tests/test_window_reductions.py::test_windows[std-2-channels_first]",)
PIECES = ("tests/test_window_reductions.py::test_pieces_do_not_matter[std]",)
MUTATIONS = (
    Mutation("the largest adaptive bin too small", SPEC, "1 if out % rest == 0 else 2", "1 if rest else 2", WINNERS),
    Mutation("winners forget dilation", CODES, "* i], spec.dilation[i]", "* i], 1", WINNERS),
    Mutation("vmap pools the wrong axes", SPEC, "tuple(a + 1 for a in self.axes)", "self.axes", TRANSFORMS),
    Mutation("lp steep at 0", IN_TORCH, "torch.where(usual, torch.where(usual, x, 1.0) ** p, y)", "x**p", LP_AT_ZERO),
    Mutation("the first NaN wins", IN_TORCH, "!= values, codes, -1).amax", "!= values, codes, -1).amin", TORCH_AGREES),
    Mutation("padding wins", IN_TORCH, "(values == values.amax(-1, keepdim=True)) & inside",
             "values == values.amax(-1, keepdim=True)", TORCH_AGREES),
    Mutation("padding on the other side", RUNS, 'if side == "right" else length', 'if side == "left" else length',
             TOKENS),
    Mutation("a mask's last run is cut short", RUNS, "changes[1::2]", "changes[1::2] - 1", TOKENS),
    Mutation("a prefix counts a token too many", RUNS, "np.clip(flat[self.output] - self.ordinal, 0",
             "np.clip(flat[self.output] - self.ordinal + 1, 0", TOKENS),
    Mutation("offsets may end before the rows do", RUNS, "if given[-1] != rows:", "if given[-1] > rows:",
             ("tests/test_token_arguments.py",)),
    Mutation("positions forget the prefix", "anypool/token_gradients.py", "n * (n + 1) / 2 + before * n",
             "n * (n + 1) / 2", TOKENS),
    Mutation("a row cut among threads is merged out of order", TOKEN_NATIVE, "merge(level_[k], last);",
             "merge(level_[k], last), k = 62;", ("tests/test_token_sizes.py",)),
    Mutation(
        "wrong divisor: low padding instead of high", WINDOWS,
        "(self.n_in + self.pad_hi - 1 - start)", "(self.n_in + self.pad - 1 - start)",
        ("tests/test_against_oracle.py::test_windows[reference-mean-1-channels_first]",),
    ),
    Mutation("swapped padding sides", WINDOWS, "pads.append((lo, hi))", "pads.append((hi, lo))", NAMED),
    Mutation("swapped same and same_lower", WINDOWS, 'if padding == "same" else', 'if padding != "same" else', NAMED),
    Mutation("causal forgets dilation", WINDOWS, "((k - 1) * d, 0)", "(k - 1, 0)", NAMED),
    Mutation("ceil_mode keeps a window that starts in the padding", WINDOWS,
             ">= n + pads[0]", ">= n + sum(pads)", NAMED),
    Mutation("ceil_mode rounds up too far", WINDOWS,
             "(stride - 1 if ceil_mode else 0)", "(stride if ceil_mode else 0)", NAMED),
    Mutation("adaptive bins rounded down", WINDOWS, "-(-(o + 1) * n // out)", "(o + 1) * n // out", ADAPTIVE),
    Mutation("empty windows accepted", WINDOWS, "outputs[lo >= hi]", "outputs[lo > hi]", EMPTY),
    Mutation("True is a size", WINDOWS, "not isinstance(value, (bool, np.bool_))", "True", ARGUMENTS),
    Mutation("windows behind the data may be empty", WINDOWS, "before = max(1, min(", "before = max(0, min(",
             REGRESSIONS),
    Mutation("offsets may wrap around", RUNS, "given[1:] < given[:-1])  # compared", "np.diff(given) < 0)  # compared",
             REGRESSIONS),
    Mutation("indices take no memory", OPERATION, "each = codes + (", "each = (", ("tests/test_limits.py",)),
    Mutation("a mask is ignored", "anypool/arguments.py", "isinstance(value, np.ma.MaskedArray)", "False",
             ("tests/test_hostile.py",)),
    Mutation("transposed windows shifted", WINDOWS,
             "* self.step - self.pad\n", "* self.step - self.pad_hi\n", GRADIENTS),
    Mutation("the last of equals wins", REDUCTIONS, "right > left if larger", "right >= left if larger", LAWS),
    Mutation("NaN does not propagate", REDUCTIONS, "return wins | (right != right)", "return wins", LAWS),
    Mutation("integer sums keep their dtype", REDUCTIONS, '"sum", integers="sum")', '"sum")', DTYPES),
    Mutation("count_include_pad reversed", OPERATION,
             '"window" if include else "valid"', '"valid" if include else "window"', NAMED),
    Mutation("lp_pool loses signs", OPERATION, "what.signed and p % 2 == 1", "False", NAMED),
    Mutation("channels_last pools the channels", OPERATION, "range(ndim - what.rank - last, ndim - last)",
             "range(ndim - what.rank, ndim)", NAMED),
    Mutation("native: the last of equals wins", "native/reductions.hpp",
             "auto right = better | ((r.a == l.a) & (r.b < l.b));", "auto right = better;", LAWS),
    Mutation("native: bfloat16 rounds down", "native/elements.hpp",
             "+ 0x7fffu + ((u >> 16) & 1)) >> 16", ") >> 16", HALVES),
    Mutation("native: windows reach past the end", "native/geometry.hpp",
             "n_in - start : (n_in - 1 - start) / step + 1", "n_in - start : (n_in - 1 - start) / step", LAWS),
    Mutation("native: the last bytes of a mask do not count", "native/counted.hpp",
             "c = cols_ - Bytes;", "c = cols_;", MASKED),
    Mutation("native: a plane has the mask of another one", "native/whole_planes.hpp",
             "Masked ? begin_of(mask_, block) : Begin{}", "Masked ? begin_of(x_, block) : Begin{}", MASKED),
    Mutation("native: the last rows of planes are read as if they were longer", "native/whole_planes.hpp",
             "whole = n - !rows.hold((N - 1) * cols_ + n * L);", "whole = n;", ("tests/test_bounds.py",)),
    Mutation("native: short planes are, too", "native/whole_planes.hpp",
             "!rows_of(block + n - 1).hold((rows_ - 1) * cols_ + L)", "false", ("tests/test_bounds.py",)),
    Mutation("native: a mean of nothing is what was computed", "native/counted.hpp",
             "n != V{} ? sums : splat<V>(empty_)", "n == n ? sums : splat<V>(empty_)", MASKED),
    Mutation("native: a window of ties is not looked into", "native/masked.cpp",
             "if (!any_counts(buffers, u, m, at[1] + i))", "if (false)", MASKED),
    Mutation("native: the last of the turned rows stays behind", "native/turned_rows.hpp",
             "turn(rows_, outputs_, results_, kRows, outputs_, n_);",
             "turn(rows_, outputs_, results_, kRows, outputs_, n_ - 1);", KERNELS),
    Mutation("native: NaNs in the first rows of planes are lost", "native/fused.hpp",
             "if (job.planes > 1) see_first_rows<T, A, KD, KH, S>(job, plane, f.nan_);", ";", KERNELS),
    Mutation("native: NaNs in the first rows of planes win nothing", "native/fused_codes.hpp",
             "if (job.planes > 1) see_first_rows<T, float, KD, KH, S>(job, plane, f.nan_);", "", KERNELS),
    Mutation("native: what lies beside a row wins", "native/fused_codes.hpp",
             "return end->at[W / S].kept[W % S].choose(v, none());", "return v;",
             ("tests/test_kernels.py::test_winners_of_rows_of_every_length",)),
    Mutation("native: what lies beside a row is pooled with it", "native/fused.hpp",
             "p.v[s] = end.kept[s].choose(p.v[s], none());", ";", DENSE),
    Mutation("native: a row is stored over what lies behind the last one", "native/fused.hpp",
             "job.count - ceil_div(higher(0, beyond - job.y_behind / bytes), job.n)", "job.count", DENSE),
    Mutation("native: rows are read beyond the array", "native/fused.hpp",
             "return begin_ + at >= reinterpret_cast<i64>(job_.x_begin) &&", "return", ("tests/test_bounds.py",)),
    Mutation("native: flat planes see the planes beside them", "native/flat_planes.hpp",
             "Mask::of(Part(inside<L>(i + shift(m) * cols_, plane_)))", "Mask::all()", KERNELS),
    Mutation("native: windows over planes in lanes lose the end of the block before", "native/lane_planes.hpp",
             "if (s == b || b == 0)", "if (s != first)", KERNELS),
    Mutation("native: wide windows forget where they began", "native/wide_rows.hpp",
             "at == kh_ - 1 ? none_ : slot + pitch_", "none_", KERNELS),
    Mutation("native: a part of a job begins too late", "native/threads.cpp",
             "job.work(job.context, job.n * part / job.parts,",
             "job.work(job.context, job.n * part / job.parts + (part > 2),",
             ("tests/test_determinism.py",)),
    Mutation("the median's gradient goes to the first of equals", FUNCTIONS,
             "== (place - before + 1)", "== (0 * place + 1)", TIED_MEDIAN),
    Mutation("a mode takes the largest of several", FUNCTIONS, "np.argmax(lengths, axis=1)",
             "lengths.shape[1] - 1 - np.argmax(lengths[:, ::-1], axis=1)", MODES),
    Mutation("padding counts in a std", FUNCTIONS, "first[..., None], 0.0)", "first[..., None], -first[..., None])",
             MOMENTS),
    Mutation("a gradient's pieces forget what they share", GATHERED, "if known > seen.start:", "if False:", PIECES),
    Mutation("native: 1 and True are one argument of a known call", "native/known_calls.hpp",
             "if (Py_TYPE(a) != Py_TYPE(b)) return false;", "", KNOWN),
    Mutation("native: negated memory is taken as it is", "native/tensors.hpp",
             "PyObject_CallMethodObjArgs(x.ptr(), negated_.ptr(), nullptr)", "PyLong_FromLong(0)", KNOWN),
    Mutation("native: offsets may end early", "native/token_layouts.cpp",
             "before == length();", "before <= length();", KNOWN),
    Mutation("a traced window in the padding has no value", COUNTED,
             "may_be_empty=self.empty is not None", "may_be_empty=False", COMPILED),
    Mutation("a trace keeps what it saw", "anypool/tensors/plain.py",
             " or torch._C._get_tracing_state() is not None", "", COMPILED),
    Mutation("weights in a compiled graph have no gradient", COUNTED,
             "of_weights if ctx.needs_input_grad[2] else None", "None", COMPILED),
    Mutation("native: the last of a large gradient is lost", "native/around.hpp",
             "__builtin_memcpy(to_, buffer_, size_t(held_));", "", AROUND),
    Mutation("native: a repeated gradient row lies where the one before does", "native/output_row.hpp",
             "around_ ? pass_on(next)", "around_ ? pass_on(oh)", AROUND),
    Mutation("native: rows with a NaN are written first, what was held after them", "native/fused_rows.hpp",
             "finish();  // before", ";  // before", RESULTS_AROUND),
    Mutation("native: planes with a NaN are written first, what was held after them", "native/wide_rows.hpp",
             "finish();  // before", ";  // before", RESULTS_AROUND),
    Mutation("native: pixels take the first column alone", "native/pixel_sums.hpp",
             "for (i64 i = 1; i < n; ++i)", "for (i64 i = n; i < n; ++i)",
             ("tests/test_gradient_kernels.py::test_gradients_of_sums_over_pixels",)),
    Mutation("native: large quotients of bytes reach their neighbours", "native/fused.hpp",
             "((kLittle ? even : odd) & low)", "(kLittle ? even : odd)",
             ("tests/test_kernels.py::test_bytes_are_divided_exactly",)),
    Mutation("native: the gradient of a plane forgets its divisor", "native/filled_planes.hpp",
             "by *= double(divisor_of(a, 0, p.divisor));", "by = double(divisor_of(a, 0, p.divisor));",
             ("tests/test_gradient_kernels.py::test_gradients_of_whole_planes",)),
    Mutation("native: a flat gradient adds its outputs in another order", "native/flat_gradient.hpp",
             "seen_[taps_ - 1 - code] =", "seen_[code] =", KEPT),
    Mutation("native: flat planes of a gradient have one divisor", "native/flat_planes.hpp",
             "lifted_ + i, v / load<V>(divisor_ + each * i)", "lifted_ + i, v / load<V>(divisor_)", KEPT),
    Mutation("native: gradients of powers in halves are rounded twice", "native/doubles.hpp",
             "u += inexact & ~(grows + grows);", "",
             ("tests/test_gradient_kernels.py::test_gradients_of_small_powers_are_rounded_once",)),
    Mutation("native: blocks of a gradient hear of windows that begin in them alone", "native/select_backward.hpp",
             "candidates(h, begin, oh0, unused);", "oh0 = ceil_div(begin, higher(h.stride, 1));", PUT),
    Mutation("native: a gradient in two depths hears of one", "native/select_backward.hpp",
             "const i64* const places = place_ + td * 256;", "const i64* const places = place_;", PUT),
    Mutation("native: the last vector of a gradient's row begins before it", "native/select_rows.hpp",
             "(rest == 0 || (S * rest >= w.pad && rest >= (KW - 1) / S))", "true", BY_ROWS),
    Mutation("native: rows of a gradient were seen by outputs side by side", "native/select_backward.hpp",
             "apart = outputs_apart(h), y_row", "apart = 1, y_row", BY_ROWS),
    Mutation("native: half a pair of columns gets nothing", "native/spread_rows.hpp",
             "if (2 * whole - from < n) y[n - 1]", "if (false) y[n - 1]",
             ("tests/test_gradient_kernels.py::test_gradients_of_sums_two_apart",)),
    Mutation("native: columns of wide tokens stay as they were", "native/token_reduce.hpp",
             "columns_ = {c, lower(c + step, n_)};", "columns_ = {c, lower(c + step / 2, n_)};",
             ("tests/test_token_sizes.py",)),
    Mutation("gradient of max|x| loses signs", OPERATION, "grad_x *= signs", "pass", GRADIENTS),
)  # fmt: skip

#pragma once
#include <nanobind/nanobind.h>

void bind_tokens(nanobind::module_& m);

// The name of the instruction-set level that a translation unit is compiled for: in a symbol, and as text.
#pragma once

#ifndef ANYPOOL_LEVEL
#error "ANYPOOL_LEVEL names the instruction-set level, e.g. x86_64_v3"
#endif
#define ANYPOOL_PASTE(a, b) a##b
#define ANYPOOL_NAME(prefix, level) ANYPOOL_PASTE(prefix, level)
#define ANYPOOL_TEXT_(x) #x
#define ANYPOOL_TEXT(x) ANYPOOL_TEXT_(x)

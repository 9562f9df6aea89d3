// Three mistakes, built as the package is: run.py makes each of them, and the sanitizer must report it. A check that
// nothing can fail is none.
#include <cstdlib>
#include <thread>

extern "C" {

// Reads the element behind an array.
int out_of_bounds(int n) {
  int* array = static_cast<int*>(std::calloc(static_cast<size_t>(n), sizeof(int)));
  const int found = array[n];
  std::free(array);
  return found;
}

// Adds past what an int holds.
int overflow(int n) { return n + 2147483647; }

// Two threads write without agreeing on who is first.
int race(int n) {
  int shared = 0;
  std::thread other([&] { shared += n; });
  shared += 1;
  other.join();
  return shared;
}
}

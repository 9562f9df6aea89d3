#include "threads.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <link.h>
#include <sched.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace anypool {
namespace {

// PyTorch exports a C interface to its pool (torch/csrc/stable/c/shim.h). Looking it up in the loaded library links to
// nothing, obeys torch.set_num_threads and never starts a second OpenMP runtime beside PyTorch's.
using TorchBody = void (*)(int64_t, int64_t, void*);
using TorchParallelFor = int32_t (*)(int64_t, int64_t, int64_t, TorchBody, void*);
using TorchThreads = int32_t (*)(uint32_t*);

struct Torch {
  TorchParallelFor parallel_for = nullptr;
  TorchThreads threads = nullptr;
};

Torch find_torch() {
  Torch found;
#if defined(__APPLE__)
  const char* name = "libtorch_cpu.dylib";
#else
  const char* name = "libtorch_cpu.so";
#endif
  if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL)) {
    found.parallel_for = reinterpret_cast<TorchParallelFor>(dlsym(library, "torch_parallel_for"));
    found.threads = reinterpret_cast<TorchThreads>(dlsym(library, "torch_get_num_threads"));
    if (!found.parallel_for || !found.threads) found = {};
  }
  return found;
}

// How many libraries this process has loaded so far: unless that has grown, PyTorch is still not among them.
uint64_t libraries_loaded() {
#if defined(__linux__)
  uint64_t loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uint64_t*>(out) = info->dlpi_adds;
        return 1;  // the first one tells
      },
      &loaded);
  return loaded;
#elif defined(__APPLE__)
  return _dyld_image_count();
#else
  static std::atomic<uint64_t> always_another{1};
  return always_another.fetch_add(1);
#endif
}

// A forked child has none of its parent's threads, and their locks may be held. PyTorch's pool is OpenMP's, which waits for
// those threads for ever: a child works with a pool of its own, also where PyTorch has threads and we never ran before.
std::atomic<bool> forked{false};

const Torch& torch() {
  static const Torch none;
  static std::atomic<const Torch*> known{nullptr};  // once found, kept: a loaded PyTorch is never unloaded
  static std::atomic<uint64_t> searched{0};
  if (const Torch* t = known.load(std::memory_order_acquire)) return *t;
  const uint64_t loaded = libraries_loaded();
  if (searched.load() == loaded) return none;  // a search takes 20 us, as long as a small pooling
  const Torch now = find_torch();
  if (!now.parallel_for) {
    searched.store(loaded);
    return none;
  }
  const Torch *fresh = new Torch(now), *before = nullptr;
  if (!known.compare_exchange_strong(before, fresh)) delete fresh;
  return *known.load();
}

int cgroup_limit() {
  FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (!f) return 1 << 20;
  long long quota = 0, period = 0;
  const int read = std::fscanf(f, "%lld %lld", &quota, &period);
  std::fclose(f);
  if (read != 2 || quota <= 0 || period <= 0) return 1 << 20;
  return static_cast<int>(std::max<long long>(1, (quota + period - 1) / period));
}

int wanted_thread_count() {  // 0: not said
  const char* text = std::getenv("ANYPOOL_NUM_THREADS");
  const int n = text ? std::atoi(text) : 0;
  return n > 0 ? std::min(n, 1024) : 0;
}

int available_thread_count() {
  static const int quota = cgroup_limit();
  int n = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
  return std::max(1, std::min(n, quota));
}

struct Job {
  int64_t n;
  int parts, threads;
  Work work;
  void* context;
  int joined = 0;  // workers that took part; the pool's mutex guards it
  std::atomic<int> next{0};
  std::atomic<int> running{0};
  std::atomic<bool> failed{false};
};

// Work throws only for want of memory. That must reach the caller, and neither end a thread nor cross a C interface.
void run_part(Job& job, int part) noexcept {
  try {
    job.work(job.context, job.n * part / job.parts, job.n * (part + 1) / job.parts, part);
  } catch (...) {
    job.failed = true;
  }
}
void run_parts(Job& job) {
  for (int part; (part = job.next.fetch_add(1)) < job.parts;) run_part(job, part);
}

// Waking a sleeping thread takes 50 us and more on a virtual machine, as long as a whole pooling: who waits looks around
// for a while before it sleeps. Returns whether `done` came true.
template <class Done>
bool spin(Done&& done) {
  constexpr auto kPatience = std::chrono::microseconds(200);
  for (const auto start = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - start < kPatience;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }
  return false;
}

// Threads start with the first large call and wait for the next one. One job at a time: a caller that finds the pool
// busy does its work alone, which is right when many threads call at once.
class Pool {
 public:
  void run(Job& job) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return run_parts(job);
    grow(job.threads - 1);
    bool asleep;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      round_.fetch_add(1);
      asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
    run_parts(job);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;  // from here on nobody joins
    }
    const auto done = [&] { return job.running.load() == 0; };
    if (spin(done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, done);
  }

 private:
  void grow(int wanted) {
    while (count_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (...) {
        return;  // the system gives no more threads: those there are do the work
      }
      ++count_;
    }
  }
  void serve() {
    uint64_t seen = 0;
    for (;;) {
      const auto called = [&] { return round_.load() != seen; };
      spin(called);
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleeping_;
      wake_.wait(lock, called);
      --sleeping_;
      seen = round_.load();
      Job* job = job_;
      if (!job || job->joined >= job->threads - 1) continue;
      ++job->joined;
      ++job->running;
      lock.unlock();
      run_parts(*job);
      lock.lock();
      if (--job->running == 0) done_.notify_all();  // the job is gone by now if its caller was looking
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  std::atomic<uint64_t> round_{0};
  int sleeping_ = 0, count_ = 0;
};

std::atomic<Pool*> pool{nullptr};

void start_over() {
  pool.store(nullptr);
  forked.store(true);
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, start_over);

Pool& own_pool() {
  Pool* p = pool.load();
  if (p) return *p;
  Pool* fresh = new Pool;  // never destroyed: its threads may outlive main
  if (pool.compare_exchange_strong(p, fresh)) return *fresh;
  delete fresh;
  return *p;
}

bool runs_on_torch() { return torch().parallel_for && !forked.load(); }

}  // namespace

int thread_count() {
  if (const int n = wanted_thread_count()) return n;
  const Torch& t = torch();
  uint32_t n = 0;
  if (t.parallel_for && t.threads(&n) == 0 && n > 0) return static_cast<int>(n);
  return available_thread_count();
}

const char* thread_pool_name() { return runs_on_torch() ? "pytorch" : "anypool"; }

void parallel_ranges(int64_t n, int threads, Work work, void* context) {
  threads = static_cast<int>(std::min<int64_t>(threads, n));
  if (threads <= 1) return work(context, 0, n, 0);
  Job job;
  job.n = n, job.threads = threads, job.work = work, job.context = context;
  const auto body = [](int64_t begin, int64_t end, void* p) {
    for (int64_t part = begin; part < end; ++part) run_part(*static_cast<Job*>(p), static_cast<int>(part));
  };
  job.parts = threads;
  if (!runs_on_torch() || torch().parallel_for(0, threads, 1, body, &job) != 0) {
    // More parts than threads: a thread that wakes late, or is held up, leaves its share to the others.
    constexpr int kPartsPerThread = 4;
    job.parts = static_cast<int>(std::min<int64_t>(n, int64_t(threads) * kPartsPerThread));
    own_pool().run(job);
  }
  if (job.failed) throw std::bad_alloc();
}

}  // namespace anypool

// What the machine can do at most: fused multiply-adds in registers, and copying memory. Prints
// one JSON object. Compiled on the spot for the processor at hand; nothing of it is shipped.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Two multiply-adds a cycle of latency 4 or 5 need 10 chains; half of 16 or 32 registers hold them.
constexpr int kChains = kVectorBytes == 64 ? 20 : 10;

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename T>
double MultiplyAdds(long steps) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  Vector sum[kChains], factor, term;
  for (int lane = 0; lane < static_cast<int>(kVectorBytes / sizeof(T)); ++lane) {
    factor[lane] = T(0.5);
    term[lane] = T(1);
    for (int i = 0; i < kChains; ++i) sum[i][lane] = T(i);
  }
  // The compiler must believe that these may be anything, or it computes the sum itself.
  asm volatile("" : "+m"(factor), "+m"(term));
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + term;
  }
  asm volatile("" : : "m"(sum) : "memory");
  return 2.0 * steps * kChains * (kVectorBytes / sizeof(T));
}

// The sum of the rates of threads that work at the same time. `work` does some and returns how
// much; each thread's clock runs from when all have started until its own time is over.
double Rate(int threads, double seconds, const std::function<double(int)>& work) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      work(t);  // memory is mapped, the clock frequency is up
      for (--waiting; waiting > 0;) {
      }
      double done = 0;
      const auto start = Clock::now();
      do {
        done += work(t);
      } while (Since(start) < seconds);
      rates[t] = done / Since(start);
    });
  }
  for (auto& thread : pool) thread.join();
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

double Best(const std::function<double()>& measure) {
  double best = 0;
  for (int i = 0; i < 5; ++i) best = std::max(best, measure());
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.2;
  const double float32 =
      Best([&] { return Rate(threads, seconds, [](int) { return MultiplyAdds<float>(100000); }); });
  const double float64 = Best(
      [&] { return Rate(threads, seconds, [](int) { return MultiplyAdds<double>(100000); }); });
  // Together beyond the caches, which many threads share.
  const size_t bytes = std::max((size_t{256} << 20) / threads, size_t{32} << 20);
  std::vector<std::vector<char>> from(threads), to(threads);
  for (int t = 0; t < threads; ++t) {
    from[t].assign(bytes, 1);
    to[t].assign(bytes, 2);
  }
  const double copied = Best([&] {
    return Rate(threads, seconds, [&](int t) {
      std::memcpy(to[t].data(), from[t].data(), bytes);
      asm volatile("" : : "r"(to[t].data()) : "memory");
      return 2.0 * bytes;  // read and written
    });
  });
  std::printf("{\"float32\": %.6g, \"float64\": %.6g, \"copy\": %.6g}\n", float32, float64, copied);
}

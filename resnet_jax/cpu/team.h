// The one team of OpenMP threads. XLA calls from many threads of its own, and OpenMP would give each
// of them a team: all of these would wait for work on the same few cores.
#pragma once
#include <omp.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "xla/ffi/api/ffi.h"

class Team {
 public:
  static void SetSize(int threads) { size_ = threads; }

  // Returns when the team has done the work; throws what that threw.
  static void Run(std::function<void()> work) {
    Job job(std::move(work));
    std::future<void> done = job.get_future();
    Get()->Add(std::move(job));
    done.get();
  }

 private:
  using Job = std::packaged_task<void()>;

  // It is never destroyed: its thread sleeps until the process ends.
  static Team* Get() {
    static Team* const team = [] {
      auto made = std::make_unique<Team>();
      std::thread([it = made.get()] { it->Work(); }).detach();
      return made.release();
    }();
    return team;
  }

  void Add(Job job) {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
    wanted_.notify_one();
  }

  void Work() {
    omp_set_num_threads(size_);
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      wanted_.wait(lock, [this] { return !jobs_.empty(); });
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
  }

  inline static std::atomic<int> size_{1};
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<Job> jobs_;
};

// Does what an FFI call is to do; XLA catches nothing, so that whatever is thrown becomes an error.
template <typename F>
xla::ffi::Error Guarded(F work) {
  using xla::ffi::Error;
  try {
    work();
    return Error::Success();
  } catch (const std::bad_alloc&) {
    return Error(xla::ffi::ErrorCode::kResourceExhausted,
                 "there is no memory for a call of oneDNN or a norm");
  } catch (const std::exception& error) {
    return Error::Internal(error.what());
  }
}

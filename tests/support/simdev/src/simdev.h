// The parts of the simulated accelerator that know each other: settings, counters, streams, clocks, memory.
// See ../README.md for what is real here and what is not.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace simdev {

// ---- settings: written by sim_set, read everywhere, may change while a process runs
struct Settings {
  std::atomic<int> devices{1};
  std::atomic<long long> bytes_per_s{0};  // of asynchronous copies; 0 = as fast as memcpy
  std::atomic<long long> peer_bytes_per_s{0};  // of copies between devices; 0 = as fast as memcpy
  std::atomic<bool> peers{true};          // whether devices can reach each other; if not, copies go through the host
  std::atomic<bool> poison{true};         // fill fresh and freed memory with a pattern that reads as NaN
  std::atomic<bool> race_check{false};
  std::atomic<long long> pin_bytes_per_s{5'000'000'000};   // of page-locking; 0 = it costs nothing
  std::atomic<long long> fault_bytes_per_s{2'500'000'000}; // of faulting in what was never touched, on top of that
  std::atomic<long long> pin_limit{-1};                    // page-locked bytes beyond which is refused; -1 = none
  std::atomic<bool> spin{true};                            // a host that waits keeps its core busy, as CUDA has it
  std::atomic<bool> async_allocator{false};                // as torch's backend cudaMallocAsync behaves
};
extern Settings settings;

// ---- counters: what tests assert on; the order is the order of `sim_stat` (see control.cpp)
struct Counters {
  std::atomic<long long> h2d_bytes{0}, d2h_bytes{0}, d2d_bytes{0}, peer_bytes{0};
  std::atomic<long long> async_copies{0}, blocking_copies{0};
  std::atomic<long long> kernels{0};
  std::atomic<long long> stream_syncs{0}, event_syncs{0}, device_syncs{0}, item_syncs{0};
  std::atomic<long long> event_records{0}, event_waits{0};
  std::atomic<long long> races{0};
  std::atomic<long long> registrations{0}, registered_bytes{0}, faulted_bytes{0};  // page-locks in place
  void reset();
};
extern Counters counters;

// ---- devices: this many can be had (settings.devices says how many there are); each has a link, a pool and streams of its own
constexpr int kMaxDevices = 4;

// ---- streams (streams_events.cpp). A stream is a worker thread with a queue; id N is the default stream of device N.
using StreamId = int64_t;
StreamId current_stream();               // of the thread's current device
StreamId current_stream_of(int device);
void enqueue(StreamId stream, std::function<void()> work);
void enqueue_holding(StreamId stream, std::function<void()> work);  // of work that holds tensors: see release_finished
bool interpreter_ends();                  // or has ended: no Python code runs any more, and torch may be half gone
void stream_waits(StreamId waiter, StreamId awaited);  // for all that is queued there now; counts nothing
void release_finished();                  // lets go of what finished work held; on a thread that may run Python code
void drain(StreamId stream);  // blocks the calling thread; says nothing to the race check and counts nothing
void drain_all();                         // the streams of every device
int current_device();
void set_current_device(int device);

// Makes a device the current one of this thread for a block, as torch's guards do around an operator.
struct DeviceScope {
  explicit DeviceScope(int device) : previous(current_device()) {
    if (device >= 0) set_current_device(device);
  }
  ~DeviceScope() { set_current_device(previous); }
  const int previous;
};

// ---- vector clocks and the race check (race_check.cpp)
using Clock = std::map<StreamId, long long>;
namespace race {
Clock snapshot(StreamId stream);                           // what an event carries away
void stream_joins(StreamId stream, const Clock& clock);    // later work of `stream` is ordered after `clock`
void host_joins(const Clock& clock);                       // the host has seen `clock`: later work of every stream is
void touch(const void* storage, size_t begin, size_t end, bool write, const std::string& what);
void forget(const void* storage);                          // the memory went back to the system
void host_side(const void* pointer, size_t bytes);         // a copy that was just queued reads or writes host memory
void unlocked(const void* pointer, size_t bytes);          // which is unregistered: no such copy may be under way
std::string last_message();
void reset();
}  // namespace race

// ---- memory (memory.cpp)
struct PoolStats {
  size_t used = 0, peak = 0, reserved = 0, reserved_peak = 0, limit = (size_t)8 << 30;
  long long allocs = 0, frees = 0;
};
PoolStats pool_stats(int device);
void pool_reset_peak();                                      // of every device, as are the limit and the trim
void pool_set_limit(size_t bytes);
void pool_trim();                                            // gives cached blocks back, as empty_cache() does
void pool_record_stream(void* block, StreamId stream);
void pool_read_later(void* block, StreamId stream);          // by a copy between devices that was just queued there
struct MemoryEvent {
  enum Kind : long long { kAllocated, kFreed, kRefused } kind;
  long long serial, bytes, stream;  // no serial where the memory could not be had
};
void pool_follow(bool on);                                   // whether the calling thread keeps a diary from now on
std::vector<MemoryEvent> pool_diary();                       // of the calling thread, since it was last asked
bool pool_holds(long long serial);                           // whether that allocation has not been freed, by any thread
void* device_allocator();                                    // c10::Allocator*, untyped to keep torch out of this header
bool is_pinned(const void* pointer);
bool within_one_pin(const void* pointer, size_t bytes);      // or touching none: what a copy may read or write
bool pin_range(void* pointer, size_t bytes);                 // refuses an overlapping range; costs nothing
size_t unpin_range(void* pointer);
int host_register(void* pointer, size_t bytes);              // cudaHostRegister: costs time, may be refused
int host_unregister(void* pointer);                          // cudaHostUnregister
void raise_left_error();                                     // what cudaGetLastError tells, as a launch does
size_t pinned_bytes();
void register_hooks();

}  // namespace simdev

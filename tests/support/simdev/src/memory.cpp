// Device memory, pinned host memory, and the hooks through which torch asks for both.
//
// The pool is a caching allocator with a byte limit and torch.OutOfMemoryError beyond it. As in CUDA's, a cached block
// goes back only to the stream that it was allocated on, unless record_stream says that others use it as well. Memory is
// taken from the device in segments (`taken`). It does not model splitting and fragmentation: a block is reused for
// exactly its own size, or given back to the system.
#include "simdev.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>
#include <c10/util/Exception.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace simdev {
namespace {

constexpr auto kSim = c10::DeviceType::PrivateUse1;
constexpr size_t kAlign = 512;
constexpr size_t kShared = 1 << 20;   // blocks up to here share segments, which are not modelled: they take their own bytes
constexpr size_t kSegment = 2 << 20;  // above, the device's memory is taken in multiples of this
constexpr int kPoisonByte = 0xFF;  // NaN in fp64, fp32, fp16, bf16 and the fp8 formats

struct Block {
  long long serial;             // of the allocation, never used twice
  size_t bytes;
  StreamId stream;              // the stream that was current at allocation
  std::set<StreamId> users;     // others, as told by record_stream; its own, where a copy to another device reads it
};

std::atomic<long long> last_serial{0};

// The diary of a thread: what it allocated, freed and could not get, in order, while it is followed.
thread_local bool followed = false;
thread_local std::vector<MemoryEvent> diary;

void note(MemoryEvent::Kind kind, long long serial, size_t bytes, StreamId stream) {
  if (followed) diary.push_back({kind, serial, (long long)bytes, (long long)stream});
}

size_t taken(size_t bytes) { return bytes <= kShared ? bytes : (bytes + kSegment - 1) / kSegment * kSegment; }

class Pool {
 public:
  void* get(size_t wanted) {
    const size_t bytes = (wanted + kAlign - 1) / kAlign * kAlign;
    std::lock_guard<std::mutex> lock(mutex_);
    const StreamId stream = current_stream();
    auto& cached = cache_[{stream, bytes}];
    void* block = nullptr;
    if (!cached.empty()) {
      block = cached.back();
      cached.pop_back();
    } else {
      const size_t segment = taken(bytes);
      if (stats_.reserved + segment > stats_.limit) release_cache();
      const bool fits = stats_.reserved + segment <= stats_.limit;
      if (!fits) note(MemoryEvent::kRefused, 0, wanted, stream);
      TORCH_CHECK_WITH(OutOfMemoryError, fits, "simdev out of memory. Tried to allocate ", segment, " bytes; ", stats_.used,
                       " bytes in use and ", stats_.reserved, " taken of ", stats_.limit);
      block = std::aligned_alloc(kAlign, bytes);
      TORCH_CHECK(block, "simdev: the host has no memory left to play device memory (", bytes, " bytes)");
      stats_.reserved += segment;
      stats_.reserved_peak = std::max(stats_.reserved_peak, stats_.reserved);
    }
    const long long serial = ++last_serial;
    live_[block] = {serial, bytes, stream, {}};
    note(MemoryEvent::kAllocated, serial, wanted, stream);
    stats_.used += bytes;
    stats_.peak = std::max(stats_.peak, stats_.used);
    stats_.allocs++;
    if (settings.poison) std::memset(block, kPoisonByte, bytes);
    return block;
  }

  bool put(void* pointer) {  // false: it is not from here
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(pointer);
    if (found == live_.end()) return false;
    Block block = std::move(found->second);
    live_.erase(found);
    // CUDA would keep the block back until these have passed, or, on its own stream, have it reused after them. We wait.
    for (StreamId user : block.users) {
      drain(user);
      race::stream_joins(block.stream, race::snapshot(user));
    }
    note(MemoryEvent::kFreed, block.serial, block.bytes, block.stream);
    stats_.used -= block.bytes;
    stats_.frees++;
    if (settings.poison) std::memset(pointer, kPoisonByte, block.bytes);
    cache_[{block.stream, block.bytes}].push_back(pointer);
    return true;
  }

  void record_stream(void* pointer, StreamId stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(pointer);
    if (found != live_.end() && found->second.stream != stream) found->second.users.insert(stream);
  }
  // On any other stream than its own nothing keeps the block for the copy.
  void read_later(void* pointer, StreamId stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(pointer);
    if (found != live_.end() && found->second.stream == stream) found->second.users.insert(stream);
  }
  bool holds(long long serial) {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::any_of(live_.begin(), live_.end(), [&](const auto& entry) { return entry.second.serial == serial; });
  }
  void trim() {
    std::lock_guard<std::mutex> lock(mutex_);
    release_cache();
  }
  void set_limit(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    release_cache();
    stats_.limit = bytes;
  }
  void reset_peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.peak = stats_.used;
    stats_.reserved_peak = stats_.reserved;
    stats_.allocs = stats_.frees = 0;
  }
  PoolStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

 private:
  void release_cache() {
    drain_all();  // as cudaFree does: nothing may still be copying into a block that goes back to the system
    for (auto& [key, blocks] : cache_) {
      for (void* block : blocks) {
        race::forget(block);
        std::free(block);
        stats_.reserved -= taken(key.second);
      }
      blocks.clear();
    }
  }
  std::mutex mutex_;
  std::map<std::pair<StreamId, size_t>, std::vector<void*>> cache_;
  std::unordered_map<void*, Block> live_;
  PoolStats stats_;
};

Pool& pool(int device) {
  static auto* pools = new Pool[kMaxDevices];  // leaked: tensors may be freed while the process exits
  return pools[device];
}

struct DeviceAllocator final : c10::Allocator {
  static void release(void* pointer) {
    for (int device = 0; pointer && device < kMaxDevices; device++)
      if (pool(device).put(pointer)) return;
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes && settings.async_allocator) raise_left_error();  // it asks cudaGetLastError before it allocates
    void* block = bytes ? pool(current_device()).get(bytes) : nullptr;
    return {block, block, &release, c10::Device(kSim, (c10::DeviceIndex)current_device())};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
DeviceAllocator device_allocator_instance;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &device_allocator_instance)

// ---- pinned host memory: a set of address ranges; pinning changes nothing but what `is_pinned` answers
std::mutex pins_mutex;
std::map<uintptr_t, size_t> pins;

// A runtime call that fails leaves its error behind in the calling thread; the next one to ask gets it, and clears it.
thread_local int left_error = 0;
constexpr int kInvalidValue = 1, kMemoryAllocation = 2, kAlreadyRegistered = 712, kNotRegistered = 713;

int fails(int code) { return left_error = code; }

// Faults the pages of a range in, as locking does. Bytes of pages that were not touched yet.
size_t fault_in(void* pointer, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const auto begin = (uintptr_t)pointer / page * page, end = (uintptr_t)pointer + bytes;
  std::vector<unsigned char> resident((end - begin + page - 1) / page);
  if (mincore((void*)begin, end - begin, resident.data()) != 0) return 0;  // not a mapping that the system knows
  size_t faulted = 0;
  for (size_t i = 0; i < resident.size(); i++) {
    if (resident[i] & 1) continue;
    auto* byte = (volatile char*)std::max(begin + i * page, (uintptr_t)pointer);
    *byte = *byte;
    faulted += page;
  }
  return faulted;
}

void spend(double bytes, double bytes_per_s) {
  if (bytes_per_s > 0) std::this_thread::sleep_for(std::chrono::nanoseconds((long long)(1e9 * bytes / bytes_per_s)));
}

struct PinnedAllocator final : c10::Allocator {
  static void release(void* pointer) {
    if (!pointer) return;
    unpin_range(pointer);
    std::free(pointer);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (block) pin_range(block, bytes);
    return {block, block, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
PinnedAllocator pinned_allocator_instance;

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return (c10::DeviceIndex)settings.devices.load(); }
  c10::DeviceIndex getCurrentDevice() const override { return (c10::DeviceIndex)current_device(); }
  void setCurrentDevice(c10::DeviceIndex d) const override { set_current_device(d); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex d) const override {
    auto old = (c10::DeviceIndex)current_device();
    set_current_device(d);
    return old;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex d) const override { return exchangeDevice(d); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator_instance; }
  at::Device getDeviceFromPtr(void*) const override { return {kSim, (c10::DeviceIndex)current_device()}; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    DeviceScope scope(storage.device().index());
    auto block = device_allocator_instance.allocate(bytes);
    if (storage.nbytes()) std::memcpy(block.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(block));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

}  // namespace

PoolStats pool_stats(int device) { return pool(device).stats(); }
void pool_reset_peak() {
  for (int device = 0; device < kMaxDevices; device++) pool(device).reset_peak();
}
void pool_set_limit(size_t bytes) {
  for (int device = 0; device < kMaxDevices; device++) pool(device).set_limit(bytes);
}
void pool_trim() {
  for (int device = 0; device < kMaxDevices; device++) pool(device).trim();
}
void pool_record_stream(void* block, StreamId stream) {
  for (int device = 0; device < kMaxDevices; device++) pool(device).record_stream(block, stream);
}
void pool_read_later(void* block, StreamId stream) {
  for (int device = 0; device < kMaxDevices; device++) pool(device).read_later(block, stream);
}
void pool_follow(bool on) {
  followed = on;
  diary.clear();
}
std::vector<MemoryEvent> pool_diary() { return std::exchange(diary, {}); }
bool pool_holds(long long serial) {
  for (int device = 0; device < kMaxDevices; device++)
    if (pool(device).holds(serial)) return true;
  return false;
}
void* device_allocator() { return static_cast<c10::Allocator*>(&device_allocator_instance); }
void register_hooks() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }

bool is_pinned(const void* pointer) {
  std::lock_guard<std::mutex> lock(pins_mutex);
  auto after = pins.upper_bound((uintptr_t)pointer);
  if (after == pins.begin()) return false;
  const auto& [start, bytes] = *std::prev(after);
  return (uintptr_t)pointer < start + bytes;
}

bool pin_range(void* pointer, size_t bytes) {
  const auto start = (uintptr_t)pointer;
  std::lock_guard<std::mutex> lock(pins_mutex);
  auto after = pins.lower_bound(start + bytes);
  if (after != pins.begin()) {
    const auto& [other, length] = *std::prev(after);
    if (other + length > start) return false;
  }
  pins[start] = bytes;
  return true;
}

// The length of the range that begins there; 0: there is none.
size_t unpin_range(void* pointer) {
  std::lock_guard<std::mutex> lock(pins_mutex);
  auto found = pins.find((uintptr_t)pointer);
  if (found == pins.end()) return 0;
  const size_t bytes = found->second;
  pins.erase(found);
  return bytes;
}

bool within_one_pin(const void* pointer, size_t bytes) {
  const auto begin = (uintptr_t)pointer, end = begin + bytes;
  std::lock_guard<std::mutex> lock(pins_mutex);
  auto after = pins.lower_bound(end);
  if (after == pins.begin()) return true;
  const auto& [start, length] = *std::prev(after);  // the last one that begins before the end
  return start + length <= begin || (start <= begin && end <= start + length);
}

int host_register(void* pointer, size_t bytes) {
  static std::mutex driver;  // one at a time, in the whole process
  std::lock_guard<std::mutex> lock(driver);
  if ((long long)bytes <= 0) return fails(kInvalidValue);
  if (settings.pin_limit >= 0 && (long long)(pinned_bytes() + bytes) > settings.pin_limit) return fails(kMemoryAllocation);
  if (!pin_range(pointer, bytes)) return fails(kAlreadyRegistered);
  const size_t faulted = fault_in(pointer, bytes);
  counters.registrations++;
  counters.registered_bytes += (long long)bytes;
  counters.faulted_bytes += (long long)faulted;
  spend((double)bytes, (double)settings.pin_bytes_per_s);
  spend((double)faulted, (double)settings.fault_bytes_per_s);
  return 0;
}

int host_unregister(void* pointer) {
  const size_t bytes = unpin_range(pointer);
  if (!bytes) return fails(kNotRegistered);
  race::unlocked(pointer, bytes);
  return 0;
}

void raise_left_error() {
  const int code = std::exchange(left_error, 0);
  const char* what = code == kInvalidValue        ? "invalid argument"
                     : code == kMemoryAllocation  ? "out of memory"
                     : code == kAlreadyRegistered ? "part or all of the requested memory range is already mapped"
                                                  : "pointer does not correspond to a registered memory region";
  TORCH_CHECK(code == 0, "CUDA error: ", what, " (", code, ", left behind by an earlier call of the runtime)");
}

size_t pinned_bytes() {
  std::lock_guard<std::mutex> lock(pins_mutex);
  size_t total = 0;
  for (const auto& entry : pins) total += entry.second;
  return total;
}

}  // namespace simdev

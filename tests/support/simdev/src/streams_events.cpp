// Streams and events: what torch.Stream and torch.Event stand on.
//
// A stream is a worker thread with a queue. Only copies (ops.cpp), event records and event waits are queued; kernels run
// on the calling thread after their stream has been drained, so they are never late themselves. Every wait of the host
// is counted here, by kind, because an engine that claims "no host synchronisation" must be held to it.
#include "simdev.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace simdev {

Settings settings;
Counters counters;
static_assert(kMaxDevices == 4, "the tables of default streams below have one entry per device");

void Counters::reset() {
  for (auto* counter : {&h2d_bytes, &d2h_bytes, &d2d_bytes, &peer_bytes, &async_copies, &blocking_copies, &kernels,
                        &stream_syncs, &event_syncs, &device_syncs, &item_syncs, &event_records, &event_waits, &races,
                        &registrations, &registered_bytes, &faulted_bytes})
    *counter = 0;
}

namespace {

constexpr auto kSim = c10::DeviceType::PrivateUse1;
thread_local int device_of_thread = 0;
thread_local StreamId stream_of_thread[kMaxDevices] = {0, 1, 2, 3};  // per device; at first its default stream
std::mutex streams_mutex;
std::vector<int> device_of_stream = {0, 1, 2, 3};

constexpr size_t kStreamsInPool = 32;  // of a device, as torch has for CUDA: who asks for more is given old ones again
std::vector<StreamId> pool_of_device[kMaxDevices];
size_t streams_given[kMaxDevices] = {};

StreamId new_stream(int device) {
  std::lock_guard<std::mutex> lock(streams_mutex);
  auto& pool = pool_of_device[device];
  if (pool.size() < kStreamsInPool) {
    device_of_stream.push_back(device);
    pool.push_back((StreamId)device_of_stream.size() - 1);
  }
  return pool[streams_given[device]++ % kStreamsInPool];
}

std::vector<StreamId> streams_of(int device) {  // -1: of all devices
  std::lock_guard<std::mutex> lock(streams_mutex);
  std::vector<StreamId> found;
  for (StreamId id = 0; id < (StreamId)device_of_stream.size(); id++)
    if (device < 0 || device_of_stream[id] == device) found.push_back(id);
  return found;
}

// What queued work held goes on a thread that calls into the device, never on a stream's own. The last reference to a
// tensor may run Python code, for which a thread waits until it has the interpreter's lock. A stream's thread would make
// a host wait that holds the lock and waits for the stream; and once the interpreter ends, whatever thread asks for the
// lock is ended, which takes the process down in the middle of a destructor. What is finished by then is left alone.
class Finished {
 public:
  void add(std::function<void()> work) {
    std::lock_guard<std::mutex> lock(mutex_);
    held_.push_back(std::move(work));
    any_ = true;
  }
  void release() {
    if (!any_ || interpreter_ends()) return;
    std::vector<std::function<void()>> held;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      held.swap(held_);
      any_ = false;
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> held_;
  std::atomic<bool> any_{false};
};

Finished& finished() {
  static auto* all = new Finished();  // leaked: streams' threads outlive static destructors
  return *all;
}

class Worker {
 public:
  Worker() {
    std::thread([this] { run(); }).detach();  // workers live as long as the process
  }
  void push(std::function<void()> work, bool holds) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back({std::move(work), holds});
    }
    wake_.notify_one();
  }
  // Work that takes no time is done at once where nothing is before it: waking a thread for it would cost the caller
  // what no device's driver costs him.
  template <typename Work>
  void push_moment(Work work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (queue_.empty() && !busy_) {
        work();
        return;
      }
      queue_.push_back({std::move(work), false});
    }
    wake_.notify_one();
  }
  bool idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return queue_.empty() && !busy_;
  }
  void drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
  }

 private:
  struct Item {
    std::function<void()> work;
    bool holds = false;  // tensors, which are not to be let go of here
  };
  void run() {
    for (;;) {
      Item item;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        item = std::move(queue_.front());
        queue_.pop_front();
        busy_ = true;
      }
      item.work();
      if (item.holds) finished().add(std::move(item.work));  // before the stream counts as idle: who waited can let go
      item.work = nullptr;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        busy_ = false;
      }
      idle_.notify_all();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<Item> queue_;
  bool busy_ = false;
};

Worker& worker(StreamId id) {
  static auto* mutex = new std::mutex();
  static auto* workers = new std::vector<std::unique_ptr<Worker>>();  // leaked: threads may outlive static destructors
  std::lock_guard<std::mutex> lock(*mutex);
  while ((StreamId)workers->size() <= id) workers->push_back(std::make_unique<Worker>());
  return *(*workers)[id];
}

// One recording of an event. Re-recording makes a new one; waits that were issued earlier keep the old.
struct Recording {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  Clock clock;
  std::chrono::steady_clock::time_point when;
  void finish() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      done = true;
      when = std::chrono::steady_clock::now();
    }
    changed.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [this] { return done; });
  }
  bool reached() {
    std::lock_guard<std::mutex> lock(mutex);
    return done;
  }
};
using Handle = std::shared_ptr<Recording>;
Handle& handle(void* event) { return *static_cast<Handle*>(event); }

Handle record_on(StreamId id) {
  auto recording = std::make_shared<Recording>();
  recording->clock = race::snapshot(id);
  worker(id).push_moment([recording] { recording->finish(); });
  return recording;
}

void wait_on(StreamId id, Handle recording) {  // by value: the event may be recorded anew meanwhile
  race::stream_joins(id, recording->clock);
  if (!recording->reached()) enqueue(id, [recording] { recording->wait(); });
}

// A host that waits for a stream or an event spins, as CUDA has it unless a device is told otherwise.
void host_waits_for(StreamId id) {
  while (settings.spin && !worker(id).idle()) std::this_thread::yield();
  drain(id);
  race::host_joins(race::snapshot(id));
  release_finished();
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static int index_of(c10::Device d) { return d.index() < 0 ? device_of_thread : d.index(); }
  static c10::Device device(c10::DeviceIndex index) {
    return {kSim, index < 0 ? (c10::DeviceIndex)device_of_thread : index};
  }
  static c10::Stream stream(c10::Device d, StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, device(d.index()), id);
  }
  c10::DeviceType type() const override { return kSim; }
  c10::DeviceIndex deviceCount() const noexcept override { return (c10::DeviceIndex)settings.devices.load(); }
  c10::Device getDevice() const override { return device((c10::DeviceIndex)device_of_thread); }
  void setDevice(c10::Device d) const override { uncheckedSetDevice(d); }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.index() >= 0) device_of_thread = d.index();
  }
  c10::Device exchangeDevice(c10::Device d) const override {
    c10::Device old = getDevice();
    if (d.index() >= 0) device_of_thread = d.index();
    return old;
  }
  c10::Stream getStream(c10::Device d) const override { return stream(d, stream_of_thread[index_of(d)]); }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(d, index_of(d)); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override { return stream(d, new_stream(index_of(d))); }
  c10::Stream getNewStream(c10::Device d, int) const override { return stream(d, new_stream(index_of(d))); }
  c10::Stream exchangeStream(c10::Stream s) const override {  // of the stream's device, whichever is current
    auto old = getStream(s.device());
    stream_of_thread[index_of(s.device())] = s.id();
    return old;
  }
  bool queryStream(const c10::Stream& s) const override {
    const bool idle = worker(s.id()).idle();
    if (idle) race::host_joins(race::snapshot(s.id()));  // an answer "done" orders as a wait does
    release_finished();
    return idle;
  }
  void synchronizeStream(const c10::Stream& s) const override {
    counters.stream_syncs++;
    host_waits_for(s.id());
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    counters.device_syncs++;
    for (StreamId id : streams_of(index < 0 ? device_of_thread : index)) host_waits_for(id);
  }

  void record(void** event, const c10::Stream& s, const c10::DeviceIndex, const c10::EventFlag) const override {
    counters.event_records++;
    if (!*event) *event = new Handle();
    handle(*event) = record_on(s.id());
  }
  void block(void* event, const c10::Stream& s) const override {
    if (!event) return;
    counters.event_waits++;
    wait_on(s.id(), handle(event));
  }
  bool queryEvent(void* event) const override {
    if (!event) return true;
    release_finished();
    auto recording = handle(event);
    std::lock_guard<std::mutex> lock(recording->mutex);
    if (recording->done) race::host_joins(recording->clock);  // a query that says "done" orders as a wait does
    return recording->done;
  }
  void synchronizeEvent(void* event) const override {
    counters.event_syncs++;
    if (!event) return;
    auto recording = handle(event);
    while (settings.spin && !recording->reached()) std::this_thread::yield();
    recording->wait();
    race::host_joins(recording->clock);
    release_finished();
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    auto a = handle(first), b = handle(second);
    a->wait();
    b->wait();
    return std::chrono::duration<double, std::milli>(b->when - a->when).count();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Handle*>(event); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

}  // namespace

StreamId current_stream() { return stream_of_thread[device_of_thread]; }
StreamId current_stream_of(int device) { return stream_of_thread[device]; }
int current_device() { return device_of_thread; }
void set_current_device(int device) { device_of_thread = device; }
void enqueue(StreamId id, std::function<void()> work) { worker(id).push(std::move(work), false); }
void enqueue_holding(StreamId id, std::function<void()> work) { worker(id).push(std::move(work), true); }
void stream_waits(StreamId waiter, StreamId awaited) { wait_on(waiter, record_on(awaited)); }
bool interpreter_ends() {
  static const auto ask = [](const char* name) { return (int (*)())dlsym(RTLD_DEFAULT, name); };
  static const auto exists = ask("Py_IsInitialized");
  static const auto ends = ask("Py_IsFinalizing") ? ask("Py_IsFinalizing") : ask("_Py_IsFinalizing");
  return (exists && !exists()) || (ends && ends());
}
void release_finished() { finished().release(); }
void drain(StreamId id) { worker(id).drain(); }
void drain_all() {
  for (StreamId id : streams_of(-1)) drain(id);
}

}  // namespace simdev

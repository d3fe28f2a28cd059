// The C interface that torch_npu (Python, ctypes) drives: set-up, settings, counters.
#include "simdev.h"

#include <algorithm>

namespace {
thread_local std::string text;  // keeps what a `const char*` answer points to alive
}

extern "C" {

void sim_init(int devices) {
  simdev::settings.devices = devices;
  static const bool once = (simdev::register_hooks(), true);
  (void)once;
}

// A negative value leaves that setting as it is.
void sim_set(long long limit_bytes, long long bytes_per_s, int poison, int race_check) {
  if (limit_bytes >= 0) simdev::pool_set_limit((size_t)limit_bytes);
  if (bytes_per_s >= 0) simdev::settings.bytes_per_s = bytes_per_s;
  if (poison >= 0) simdev::settings.poison = poison != 0;
  if (race_check >= 0) simdev::settings.race_check = race_check != 0;
}

// The same for copies between devices.
void sim_set_peers(long long bytes_per_s, int reachable) {
  if (bytes_per_s >= 0) simdev::settings.peer_bytes_per_s = bytes_per_s;
  if (reachable >= 0) simdev::settings.peers = reachable != 0;
}
int sim_can_access_peer(int device, int peer) { return device != peer && simdev::settings.peers; }

// The same for page-locking; a negative limit takes it away.
void sim_set_pins(long long bytes_per_s, long long fault_bytes_per_s) {
  if (bytes_per_s >= 0) simdev::settings.pin_bytes_per_s = bytes_per_s;
  if (fault_bytes_per_s >= 0) simdev::settings.fault_bytes_per_s = fault_bytes_per_s;
}
void sim_set_pin_limit(long long bytes) { simdev::settings.pin_limit = bytes; }
void sim_set_spin(int on) { simdev::settings.spin = on != 0; }
void sim_set_async_allocator(int on) { simdev::settings.async_allocator = on != 0; }

// The names are in torch_npu/library.py, in this order.
int sim_stats(long long* out, int capacity) {
  simdev::PoolStats pool;  // of all devices together, but the limit, which is that of each
  pool.limit = simdev::pool_stats(0).limit;
  for (int device = 0; device < simdev::settings.devices; device++) {
    const auto one = simdev::pool_stats(device);
    pool.used += one.used, pool.peak += one.peak, pool.allocs += one.allocs, pool.frees += one.frees;
    pool.reserved += one.reserved, pool.reserved_peak += one.reserved_peak;
  }
  auto& c = simdev::counters;
  const long long values[] = {
      (long long)pool.used, (long long)pool.peak, (long long)pool.reserved, (long long)pool.reserved_peak,
      (long long)pool.limit, pool.allocs, pool.frees, (long long)simdev::pinned_bytes(),
      c.h2d_bytes, c.d2h_bytes, c.d2d_bytes, c.peer_bytes, c.async_copies, c.blocking_copies, c.kernels,
      c.stream_syncs, c.event_syncs, c.device_syncs, c.item_syncs, c.event_records, c.event_waits, c.races,
      c.registrations, c.registered_bytes, c.faulted_bytes,
      simdev::settings.bytes_per_s, simdev::settings.poison, simdev::settings.race_check};
  const int count = (int)(sizeof(values) / sizeof(values[0]));
  for (int i = 0; i < count && i < capacity; i++) out[i] = values[i];
  return count;
}

// used, peak, reserved, reserved_peak and limit of one device.
void sim_memory(int device, long long* out) {
  const auto pool = simdev::pool_stats(device < 0 ? simdev::current_device() : device);
  const size_t values[] = {pool.used, pool.peak, pool.reserved, pool.reserved_peak, pool.limit};
  for (int i = 0; i < 5; i++) out[i] = (long long)values[i];
}

int sim_max_devices() { return simdev::kMaxDevices; }

void sim_follow(int on) { simdev::pool_follow(on != 0); }

// The calling thread's diary as rows of kind, serial, bytes, stream; what does not fit is kept for the next call.
int sim_diary(long long* out, int capacity) {
  thread_local std::vector<simdev::MemoryEvent> left;
  const auto fresh = simdev::pool_diary();
  left.insert(left.end(), fresh.begin(), fresh.end());
  const int count = (int)std::min(left.size(), (size_t)capacity);
  for (int i = 0; i < count; i++, out += 4)
    out[0] = left[i].kind, out[1] = left[i].serial, out[2] = left[i].bytes, out[3] = left[i].stream;
  left.erase(left.begin(), left.begin() + count);
  return count;
}
int sim_holds(long long serial) { return simdev::pool_holds(serial); }

const char* sim_race_message() {
  text = simdev::race::last_message();
  return text.c_str();
}

void sim_reset() {
  simdev::pool_reset_peak();
  simdev::counters.reset();
  simdev::race::reset();
}

void sim_trim() { simdev::pool_trim(); }
void sim_set_device(int device) { simdev::set_current_device(device); }
int sim_current_device() { return simdev::current_device(); }
int sim_host_register(void* pointer, long long bytes) { return simdev::host_register(pointer, (size_t)bytes); }
int sim_host_unregister(void* pointer) { return simdev::host_unregister(pointer); }

}  // extern "C"

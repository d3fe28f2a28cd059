// The race check: vector clocks over byte ranges. Knows nothing about torch.
//
// Every kernel and copy reports the bytes that it reads and writes ("touches") at the moment it is *issued*, on the
// stream it is issued to. Two touches of overlapping bytes, at least one a write, on different streams must be ordered:
// by an event that was recorded after the first and waited for before the second, or by the host waiting in between.
// Whether the two really overlapped in time does not matter, so the verdict does not depend on luck.
//
// Touches are kept per storage, because one arena may hold many layers. They survive a free into the allocator's cache:
// a block that is reused while another stream may still read it is a race as well.
#include "simdev.h"

#include <algorithm>
#include <mutex>
#include <sstream>
#include <unordered_map>
#include <vector>

namespace simdev::race {
namespace {

struct Touch {
  size_t begin, end;
  StreamId stream;
  long long time;
  bool write;
  bool overlaps(size_t other_begin, size_t other_end) const { return begin < other_end && other_begin < end; }
  bool inside(size_t other_begin, size_t other_end) const { return other_begin <= begin && end <= other_end; }
};

std::mutex mutex;
std::unordered_map<StreamId, Clock> clocks;
std::unordered_map<const void*, std::vector<Touch>> touches;
std::vector<Touch> host_sides;  // by address; of copies that the host has not seen the end of
Clock host_clock;  // a stream that is used for the first time starts from what the host has already seen
std::string message;

void join(Clock& into, const Clock& other) {
  for (const auto& [stream, time] : other) {
    auto& own = into[stream];
    own = std::max(own, time);
  }
}

Clock& clock_of(StreamId stream) {
  auto [found, fresh] = clocks.try_emplace(stream);
  if (fresh) found->second = host_clock;
  return found->second;
}

bool ordered_after(const Clock& clock, const Touch& touch) {
  auto found = clock.find(touch.stream);
  return found != clock.end() && found->second >= touch.time;
}

std::string describe(const Touch& earlier, size_t begin, size_t end, bool write, StreamId stream, const std::string& what) {
  std::ostringstream text;
  text << (write ? "write" : "read") << " after unsynchronised " << (earlier.write ? "write" : "read") << " in " << what
       << ": bytes " << begin << "-" << end << " on stream " << stream << " against bytes " << earlier.begin << "-"
       << earlier.end << " on stream " << earlier.stream;
  return text.str();
}

}  // namespace

Clock snapshot(StreamId stream) {
  if (!settings.race_check) return {};
  std::lock_guard<std::mutex> lock(mutex);
  return clock_of(stream);
}

void stream_joins(StreamId stream, const Clock& clock) {
  if (clock.empty()) return;
  std::lock_guard<std::mutex> lock(mutex);
  join(clock_of(stream), clock);
}

void host_joins(const Clock& clock) {
  if (clock.empty()) return;
  std::lock_guard<std::mutex> lock(mutex);
  join(host_clock, clock);
  for (auto& entry : clocks) join(entry.second, clock);
}

void touch(const void* storage, size_t begin, size_t end, bool write, const std::string& what) {
  if (!settings.race_check || !storage || begin >= end) return;
  const StreamId stream = current_stream();
  std::lock_guard<std::mutex> lock(mutex);
  Clock& clock = clock_of(stream);
  const long long now = ++clock[stream];
  auto& log = touches[storage];
  for (const Touch& earlier : log) {
    if (earlier.stream == stream || !(write || earlier.write) || !earlier.overlaps(begin, end)) continue;
    if (ordered_after(clock, earlier)) continue;
    counters.races++;
    message = describe(earlier, begin, end, write, stream, what);
  }
  // A write replaces everything inside it (later accesses that are ordered after the write are ordered after those
  // too, or the race was reported just now); a read replaces only its own stream's reads.
  auto superseded = [&](const Touch& t) { return t.inside(begin, end) && (write || (!t.write && t.stream == stream)); };
  log.erase(std::remove_if(log.begin(), log.end(), superseded), log.end());
  log.push_back({begin, end, stream, now, write});
}

void host_side(const void* pointer, size_t bytes) {
  if (!settings.race_check || !bytes) return;
  const StreamId stream = current_stream();
  const auto begin = (size_t)pointer;
  std::lock_guard<std::mutex> lock(mutex);
  auto seen = [](const Touch& t) { return ordered_after(host_clock, t); };
  host_sides.erase(std::remove_if(host_sides.begin(), host_sides.end(), seen), host_sides.end());
  host_sides.push_back({begin, begin + bytes, stream, ++clock_of(stream)[stream], false});
}

// CUDA lets a range be unregistered while a copy engine still works on it: what is copied then is not defined. Memory
// that torch has page-locked by itself is kept for its copies; a registration is ours to keep.
void unlocked(const void* pointer, size_t bytes) {
  if (!settings.race_check) return;
  const auto begin = (size_t)pointer;
  std::lock_guard<std::mutex> lock(mutex);
  for (const Touch& copy : host_sides) {
    if (!copy.overlaps(begin, begin + bytes) || ordered_after(host_clock, copy)) continue;
    counters.races++;
    std::ostringstream text;
    text << "page-locked memory of " << bytes << " bytes unregistered before the host knew that a copy of "
         << copy.end - copy.begin << " bytes on stream " << copy.stream << " had ended";
    message = text.str();
  }
}

void forget(const void* storage) {
  std::lock_guard<std::mutex> lock(mutex);
  touches.erase(storage);
}

std::string last_message() {
  std::lock_guard<std::mutex> lock(mutex);
  return message;
}

void reset() {
  std::lock_guard<std::mutex> lock(mutex);
  message.clear();
}

}  // namespace simdev::race

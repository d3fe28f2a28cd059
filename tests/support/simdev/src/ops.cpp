// The operators: allocation, views, copies; everything else runs on the host through torch's boxed CPU fallback.
//
// Copies between pinned host memory and the device with non_blocking=True are queued on the current stream and run later,
// at the set bandwidth, one at a time per direction (a device has one copy engine each way). Copies of the same layout
// between two devices are queued as well, blocking or not (a device has one copy engine for what it sends to others). All
// other copies between host and device block the host, as they do on a GPU. Kernels drain their stream and run at once.
#include "simdev.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>

namespace simdev {
namespace {

constexpr auto kSim = c10::DeviceType::PrivateUse1;
c10::Allocator* allocator() { return static_cast<c10::Allocator*>(device_allocator()); }
bool on_device(const at::Tensor& t) { return t.device().type() == kSim; }
int index_of(const at::Tensor& t) { return t.device().index(); }

// The same bytes seen as a CPU tensor; does not own them.
at::Tensor host_view(const at::Tensor& t) {
  if (t.device().is_cpu()) return t;
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(),
                       at::TensorOptions().dtype(t.dtype()).device(at::kCPU));
}

void touch(const at::Tensor& t, bool write, const std::string& what) {
  if (!settings.race_check || !t.defined() || !on_device(t) || !t.has_storage() || t.numel() == 0) return;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); d++) last += (t.size(d) - 1) * t.stride(d);
  const size_t begin = (size_t)t.storage_offset() * t.itemsize();
  race::touch(t.storage().data(), begin, begin + (size_t)(last + 1) * t.itemsize(), write, what);
}

// While a kernel runs, torch's CPU fallback copies its operands to the host and its results back through the same
// operators. Those copies are how we play a kernel; they are not traffic, no host wait, and not a touch of their own.
thread_local bool inside_kernel = false;
struct KernelScope {
  KernelScope() {
    if (!inside_kernel) raise_left_error();
    counters.kernels++;
    drain(current_stream());
    release_finished();
    inside_kernel = true;
  }
  ~KernelScope() { inside_kernel = false; }
};

// The host waits for the current stream as part of a blocking copy or an item().
void host_waits_here() {
  drain(current_stream());
  race::host_joins(race::snapshot(current_stream()));
  release_finished();
}

// ---- allocation and views
at::Tensor empty_memory_format(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                               std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  DeviceScope scope(device ? device->index() : -1);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  DeviceScope scope(device ? device->index() : -1);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  int64_t count = 1;
  for (auto extent : sizes) count *= extent;
  const size_t needed = (size_t)(count + self.storage_offset()) * self.itemsize();
  if (needed > self.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), needed);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor& set_storage_at(at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                           c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  if (stride.empty() && !size.empty())
    impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  else
    impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const int64_t count = (int64_t)(storage.nbytes() / self.itemsize());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(0);
  impl->set_sizes_contiguous({count});
  return self;
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}
at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}
at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
void record_stream(at::Tensor& self, at::Stream stream) {
  if (self.has_storage()) pool_record_stream(self.storage().mutable_data(), stream.id());
}

// ---- copies

// A copy engine takes one copy at a time, in the order in which they became the first of their stream.
class Engine {
 public:
  void lock() {
    std::unique_lock<std::mutex> lock(mutex_);
    const long long mine = next_++;
    turn_.wait(lock, [&] { return mine == serving_; });
  }
  void unlock() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      serving_++;
    }
    turn_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  long long next_ = 0, serving_ = 0;
};

// CUDA refuses a copy whose host side lies in more than one registration, or partly in one.
void check_host_side(const at::Tensor& host) {
  if (host.numel() == 0) return;
  int64_t last = 0;
  for (int64_t d = 0; d < host.dim(); d++) last += (host.size(d) - 1) * host.stride(d);
  const size_t bytes = (size_t)(last + 1) * host.itemsize();
  TORCH_CHECK(within_one_pin(host.const_data_ptr(), bytes), "CUDA error: invalid argument (a copy of ", bytes,
              " bytes whose host side spans the end of a page-locked registration)");
}

// Has the engine and the link to itself, for as long as the bytes take.
struct Transfer {
  Transfer(Engine& engine, size_t bytes, long long bytes_per_s) : lock(engine) {
    const auto rate = (double)bytes_per_s;
    if (rate > 0) std::this_thread::sleep_for(std::chrono::nanoseconds((long long)(1e9 * (double)bytes / rate)));
  }
  std::lock_guard<Engine> lock;
};

// Whether a copy of the bytes as they lie is the copy.
bool same_layout(const at::Tensor& from, const at::Tensor& to) {
  return from.scalar_type() == to.scalar_type() && from.sizes() == to.sizes() && from.is_contiguous() &&
         to.is_contiguous() && from.is_conj() == to.is_conj() && from.is_neg() == to.is_neg();
}

void copy_later(const at::Tensor& from, const at::Tensor& to) {
  static auto* to_device_engine = new Engine[kMaxDevices];  // leaked: streams' threads outlive static destructors
  static auto* to_host_engine = new Engine[kMaxDevices];
  counters.async_copies++;
  // Host memory is kept alive by the queued copy. Device memory is not: it may be freed and reused before the copy runs,
  // as on a GPU, and then the race check and the poison tell.
  release_finished();
  c10::Storage kept = (on_device(from) ? to : from).storage();
  Engine* engine = on_device(to) ? &to_device_engine[index_of(to)] : &to_host_engine[index_of(from)];
  const size_t bytes = to.nbytes();
  if (on_device(from) != on_device(to)) race::host_side((on_device(from) ? to : from).const_data_ptr(), bytes);
  if (same_layout(from, to)) {
    enqueue_holding(current_stream(), [source = from.const_data_ptr(), target = to.mutable_data_ptr(), kept, engine, bytes] {
      Transfer transfer(*engine, bytes, settings.bytes_per_s);
      std::memcpy(target, source, bytes);
    });
    return;
  }
  enqueue_holding(current_stream(), [source = host_view(from), target = host_view(to), kept, engine, bytes]() mutable {
    Transfer transfer(*engine, bytes, settings.bytes_per_s);
    try {
      c10::InferenceMode inference(true);  // a thread-local of the caller, so it must be set again on this thread
      target.copy_(source);
    } catch (const std::exception& error) {
      // A process that ends takes torch's operations away under the copies that are still queued.
      if (!interpreter_ends()) std::fprintf(stderr, "simdev: an asynchronous copy failed: %.300s\n", error.what());
    }
  });
}

// Between two devices, as torch has it for CUDA: the copy is queued on the current stream of the source's device. That
// stream waits for the current one of the destination's device before, and is waited for by it after. Another layout is
// not queued: then the host has waited for both streams, the answer is false, and the copy is to be made now.
bool copy_across(const at::Tensor& from, const at::Tensor& to) {
  static auto* engines = new Engine[kMaxDevices];  // by source; leaked: streams' threads outlive static destructors
  const size_t bytes = to.nbytes();
  const bool queued = same_layout(from, to);
  const StreamId source = current_stream_of(index_of(from)), target = current_stream_of(index_of(to));
  counters.peer_bytes += (long long)bytes;
  stream_waits(source, target);
  {
    DeviceScope scope(index_of(from));
    touch(from, false, "copy between devices");
    touch(to, true, "copy between devices");
  }
  if (queued) {
    pool_read_later(from.storage().mutable_data(), source);
    Engine* engine = &engines[index_of(from)];
    enqueue(source, [data = from.const_data_ptr(), place = to.mutable_data_ptr(), engine, bytes] {
      Transfer transfer(*engine, bytes, settings.peers ? settings.peer_bytes_per_s : settings.bytes_per_s);
      std::memcpy(place, data, bytes);
    });
  }
  stream_waits(target, source);
  if (!queued) {
    drain(source);
    drain(target);
  }
  return queued;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool from_device = on_device(from), to_device = on_device(to);
  DeviceScope scope(index_of(to_device ? to : from));
  if (inside_kernel) {
    at::NoGradGuard no_grad;
    host_view(to).copy_(host_view(from));
    return to;
  }
  (from_device ? (to_device ? counters.d2d_bytes : counters.d2h_bytes) : counters.h2d_bytes) += (long long)to.nbytes();
  const bool across = from_device && to_device && from.device() != to.device();
  if (!across) {
    touch(from, false, "copy");
    touch(to, true, "copy");
  }
  if (across) {
    if (copy_across(from, to)) return to;
  } else if (from_device && to_device) {
    counters.kernels++;  // a kernel like any other
    drain(current_stream());
  } else {
    const auto& host = from_device ? to : from;
    check_host_side(host);
    if (non_blocking && is_pinned(host.const_data_ptr())) {
      copy_later(from, to);
      return to;
    }
    counters.blocking_copies++;
    host_waits_here();
  }
  at::NoGradGuard no_grad;
  host_view(to).copy_(host_view(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  const_cast<at::Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  if (!inside_kernel) {
    DeviceScope scope(index_of(self));
    counters.item_syncs++;
    touch(self, false, "item");
    host_waits_here();
  }
  return at::_local_scalar_dense(host_view(self));
}

// ---- kernels
const char* kMixedDevices = "Expected all tensors to be on the same device, but found at least two devices, ";

// 16-bit convolutions and matrix products accumulate in 32 bits and are rounded once, as on a GPU. Torch's own on a CPU
// without 16-bit instructions (AVX-512 BF16, AMX) take 70 and 8 times as long as those in 32 bits.
bool is_16_bit(const at::Tensor& t) { return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16; }
at::Tensor widened(const at::Tensor& t) { return is_16_bit(t) ? t.to(at::kFloat) : t; }

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  DeviceScope device(index_of(x));
  KernelScope scope;
  TORCH_CHECK(x.device() == weight.device(), kMixedDevices, x.device(), " and ", weight.device(), " (convolution)");
  touch(x, false, "convolution");
  touch(weight, false, "convolution");
  std::optional<at::Tensor> host_bias;
  if (bias && bias->defined()) {
    touch(*bias, false, "convolution");
    TORCH_CHECK(x.scalar_type() == bias->scalar_type(), "Input type (", x.scalar_type(), ") and bias type (",
                bias->scalar_type(), ") should be the same (convolution)");
    host_bias = widened(host_view(*bias));
  }
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "Input type (", x.scalar_type(), ") and weight type (",
              weight.scalar_type(), ") should be the same (convolution)");
  at::Tensor out = at::convolution(widened(host_view(x)), widened(host_view(weight)), host_bias,
                                   C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
                                   C10_AS_INTARRAYREF_SLOW(dilation), transposed, C10_AS_INTARRAYREF_SLOW(output_padding),
                                   groups.guard_int(__FILE__, __LINE__));
  if (is_16_bit(x)) out = out.to(x.scalar_type());
  at::Tensor result = at::empty_strided(out.sizes(), out.strides(), out.options().device(x.device()));
  host_view(result).copy_(out);
  return result;
}

// The device that an operator runs on: that of its first operand on one of ours.
int device_of(const torch::jit::Stack& stack, size_t count) {
  for (size_t i = stack.size() - count; i < stack.size(); i++) {
    const auto& value = stack[i];
    if (value.isTensor() && value.toTensor().defined() && on_device(value.toTensor())) return index_of(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& t : value.toTensorVector())
        if (t.defined() && on_device(t)) return index_of(t);
    if (value.isDevice() && value.toDevice().type() == kSim) return value.toDevice().index();
  }
  return -1;
}

// A GPU refuses CPU operands other than 0-dim ones, except where an operator takes indices or copies; so do we.
bool may_be_on_host(const at::Tensor& t, const std::string& op) {
  return on_device(t) || t.dim() == 0 || op.find("index") != std::string::npos || op.find("_copy") != std::string::npos;
}

// Whether it is a matrix product of tensors that all have the same 16-bit type. Mixed types are left to torch, which
// refuses them.
bool is_16_bit_product(const c10::OperatorName& op, const torch::jit::Stack& stack, size_t first) {
  static const std::set<std::string> products = {"aten::mm",    "aten::bmm",   "aten::mv",    "aten::dot",
                                                 "aten::addmm", "aten::addmv", "aten::addbmm", "aten::baddbmm"};
  if (!op.overload_name.empty() || !products.count(op.name)) return false;
  std::optional<at::ScalarType> type;
  for (size_t i = first; i < stack.size(); i++) {
    if (!stack[i].isTensor()) continue;
    const at::Tensor& t = stack[i].toTensor();
    if (!is_16_bit(t) || (type && *type != t.scalar_type())) return false;
    type = t.scalar_type();
  }
  return type.has_value();
}

// Runs it on the host in 32 bits, and puts the rounded result on the stack.
void multiply_widened(const c10::OperatorHandle& op, torch::jit::Stack* stack, size_t first) {
  std::optional<at::TensorOptions> options;
  for (size_t i = first; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (!value.isTensor()) continue;
    const at::Tensor t = value.toTensor();
    if (on_device(t)) options = t.options();
    value = widened(host_view(t));
  }
  op.callBoxed(stack);
  const at::Tensor out = stack->back().toTensor();
  const at::Tensor result = at::empty_strided(out.sizes(), out.strides(), *options);
  host_view(result).copy_(out);
  stack->back() = result;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  DeviceScope device(device_of(*stack, arguments.size()));
  KernelScope scope;
  const std::string& name = op.operator_name().name;
  const size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = (*stack)[first + i];
    const auto* alias = arguments[i].alias_info();
    const bool write = alias && alias->isWrite();
    if (value.isTensor() && value.toTensor().defined()) {
      const auto& t = value.toTensor();
      TORCH_CHECK(may_be_on_host(t, name), kMixedDevices, t.device(), " and the simulated one (", name, ")");
      TORCH_CHECK(!on_device(t) || index_of(t) == current_device(), kMixedDevices, t.device(), " and npu:", current_device(),
                  " (", name, ")");
      touch(t, write, name);
    } else if (value.isTensorList()) {
      for (const at::Tensor& t : value.toTensorVector()) touch(t, write, name);
    }
  }
  if (is_16_bit_product(op.operator_name(), *stack, first))
    multiply_widened(op, stack, first);
  else
    at::native::cpu_fallback(op, stack, false);
}

}  // namespace
}  // namespace simdev

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&simdev::fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &simdev::empty_memory_format);
  m.impl("empty_strided", &simdev::empty_strided);
  m.impl("resize_", &simdev::resize);
  m.impl("set_.source_Storage", &simdev::set_storage);
  m.impl("set_.source_Storage_storage_offset", &simdev::set_storage_at);
  m.impl("view", &simdev::view);
  m.impl("as_strided", &simdev::as_strided);
  m.impl("_reshape_alias", &simdev::reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("record_stream", &simdev::record_stream);
  m.impl("_copy_from", &simdev::copy_from);
  m.impl("_copy_from_and_resize", &simdev::copy_from_and_resize);
  m.impl("_local_scalar_dense", &simdev::local_scalar_dense);
  m.impl("convolution_overrideable", &simdev::convolution);
}

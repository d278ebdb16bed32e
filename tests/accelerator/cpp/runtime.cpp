// What torch asks every backend for: memory, guards, streams, events, generators.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "devices.h"

namespace rehearsal {
namespace {

constexpr size_t kAlignment = 64;  // as of torch's CPU allocator: kernels that look at it choose the same path

void* allocate_host(size_t bytes) {
  return bytes ? std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment) : nullptr;
}

std::string as_size(int64_t bytes) {  // as CUDA's allocator writes it
  char text[32];
  if (bytes <= 1024) {
    std::snprintf(text, sizeof text, "%d bytes", int(bytes));
  } else if (bytes <= 1048576) {
    std::snprintf(text, sizeof text, "%.2f KiB", bytes / 1024.0);
  } else if (bytes <= 1073741824) {
    std::snprintf(text, sizeof text, "%.2f MiB", bytes / 1048576.0);
  } else {
    std::snprintf(text, sizeof text, "%.2f GiB", bytes / 1073741824.0);
  }
  return text;
}

struct Block {
  Device* on;
  size_t bytes;
  void* address;

  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    {
      std::lock_guard<std::mutex> lock(block->on->memory);
      block->on->allocated -= int64_t(block->bytes);
    }
    std::free(block->address);
    delete block;
  }
};

struct DeviceMemory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto index = current_device();
    check_alive(index);
    auto& on = device(index);
    reserve(on, index, int64_t(bytes));
    auto* block = new Block{&on, bytes, allocate_host(bytes)};
    return {block->address, block, &Block::release, c10::Device(kDevice, index)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    for (c10::DeviceIndex index = 0; index < device_count(); ++index) empty_cache(index);
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    auto& on = device(index);
    std::lock_guard<std::mutex> lock(on.memory);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* statistic : {&stats.allocated_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*statistic)[0].current = on.allocated;
      (*statistic)[0].peak = on.peak_allocated;
    }
    stats.reserved_bytes[0].current = on.reserved;
    stats.reserved_bytes[0].peak = on.peak_reserved;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex index) override {
    auto& on = device(index);
    std::lock_guard<std::mutex> lock(on.memory);
    on.peak_allocated = on.allocated;
    on.peak_reserved = on.reserved;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    check_alive(index);
    auto& on = device(index);
    std::lock_guard<std::mutex> lock(on.memory);
    return {std::max<int64_t>(0, on.limit - on.reserved), on.limit};
  }

 private:
  static void reserve(Device& on, c10::DeviceIndex index, int64_t bytes) {
    std::lock_guard<std::mutex> lock(on.memory);
    ++on.allocations;
    auto is_refused = on.allocations_to_refusal >= 0 && on.allocations_to_refusal-- == 0;
    if (is_refused || on.allocated + bytes > on.limit) {
      auto cached = on.reserved - on.allocated;
      TORCH_CHECK_WITH(
          OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", as_size(bytes), ". GPU ", int(index),
          " has a total capacity of ", as_size(on.limit), " of which ",
          as_size(std::max<int64_t>(0, on.limit - on.reserved)),
          " is free. Including non-PyTorch memory, this process has ", as_size(on.reserved),
          " memory in use. Of the allocated memory ", as_size(on.allocated), " is allocated by PyTorch, and ",
          as_size(cached),
          " is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
          "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
          "Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-"
          "cuda-alloc-conf)");
    }
    on.allocated += bytes;
    on.reserved = std::max(on.reserved, on.allocated);
    on.peak_allocated = std::max(on.peak_allocated, on.allocated);
    on.peak_reserved = std::max(on.peak_reserved, on.reserved);
  }
};

DeviceMemory device_memory;

// Host memory that copies may use without waiting. Its blocks are known by their addresses, for is_pinned().
struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* address = allocate_host(std::max<size_t>(bytes, 1));
    std::lock_guard<std::mutex> lock(mutex);
    blocks[static_cast<char*>(address)] = bytes;
    return {address, address, &PinnedMemory::release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &PinnedMemory::release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  static bool holds(const void* pointer) {
    auto* address = const_cast<char*>(static_cast<const char*>(pointer));
    std::lock_guard<std::mutex> lock(mutex);
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return address < block->first + std::max<size_t>(block->second, 1);
  }

 private:
  static void release(void* address) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      blocks.erase(static_cast<char*>(address));
    }
    std::free(address);
  }
  static inline std::mutex mutex;
  static inline std::map<char*, size_t> blocks;
};

PinnedMemory pinned_memory;

thread_local c10::StreamId current_stream[kMostDevices] = {};
std::atomic<c10::StreamId> newest_stream{0};

struct Event {
  c10::DeviceIndex index;
  double milliseconds;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device to) const override {
    c10::Device before(kDevice, current_device());
    setDevice(to);
    return before;
  }
  c10::Device getDevice() const override { return {kDevice, current_device()}; }
  void setDevice(c10::Device to) const override { set_current_device(to.index()); }
  void uncheckedSetDevice(c10::Device to) const noexcept override {
    if (to.index() < device_count()) set_current_device(to.index());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

  // Everything runs at once, so that streams are only names.
  c10::Stream getStream(c10::Device on) const override { return stream(on, current_stream[index_of(on)]); }
  c10::Stream getDefaultStream(c10::Device on) const override { return stream(on, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device on, bool) const override { return getNewStream(on, 0); }
  c10::Stream getNewStream(c10::Device on, int) const override { return stream(on, ++newest_stream); }
  c10::Stream exchangeStream(c10::Stream to) const override {
    auto before = getStream(to.device());
    current_stream[index_of(to.device())] = to.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& on) const override { synchronize(on.device_index()); }
  void synchronizeDevice(c10::DeviceIndex index) const override { synchronize(index); }

  void record(void** event, const c10::Stream& on, c10::DeviceIndex, c10::EventFlag) const override {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    if (!*event) *event = new Event;
    *static_cast<Event*>(*event) = {on.device_index(), std::chrono::duration<double, std::milli>(now).count()};
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void* event) const override { synchronize(static_cast<Event*>(event)->index); }
  double elapsedTime(void* from, void* to, c10::DeviceIndex) const override {
    return static_cast<Event*>(to)->milliseconds - static_cast<Event*>(from)->milliseconds;
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }

 private:
  static c10::DeviceIndex index_of(c10::Device on) { return on.has_index() ? on.index() : current_device(); }
  static c10::Stream stream(c10::Device on, c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kDevice, index_of(on)), id);
  }
};

// The CPU's generator: what a device draws from a seed, the host would draw.
struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(c10::DeviceIndex index) : at::CPUGeneratorImpl(c10::default_rng_seed_val + index) {
    device_ = c10::Device(kDevice, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void setCurrentDevice(c10::DeviceIndex to) const override { set_current_device(to); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex to) const override {
    auto before = current_device();
    set_current_device(to);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex to) const override { return exchangeDevice(to); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? current_device() : index);
  }
  at::Device getDeviceFromPtr(void*) const override { return {kDevice, current_device()}; }
  bool isPinnedPtr(const void* pointer) const override { return PinnedMemory::holds(pointer); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto larger = device_memory.allocate(bytes);
    if (storage.data()) std::memcpy(larger.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr(std::move(larger));
    storage.set_nbytes(bytes);
  }
};

const bool is_registered = [] {
  c10::SetAllocator(kDevice, &device_memory, 1);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

}  // namespace

c10::Allocator* allocator() { return &device_memory; }

void empty_cache(c10::DeviceIndex index) {
  check_alive(index);
  auto& on = device(index);
  std::lock_guard<std::mutex> lock(on.memory);
  on.reserved = on.allocated;
}

const at::Generator& generator(c10::DeviceIndex index) {
  static const auto all = [] {
    std::vector<at::Generator> made;
    for (c10::DeviceIndex each = 0; each < kMostDevices; ++each) made.push_back(at::make_generator<Generator>(each));
    return made;
  }();
  return all[index < 0 ? current_device() : index];
}

}  // namespace rehearsal

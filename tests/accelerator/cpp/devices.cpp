#include "devices.h"

#include <c10/util/Exception.h>

#include <map>
#include <tuple>
#include <vector>

namespace rehearsal {
namespace {

constexpr int32_t kAssertFailed = 710;  // cudaErrorAssert
constexpr auto kAssertText =
    "CUDA error: device-side assert triggered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n";

using FaultKey = std::tuple<c10::DeviceIndex, std::string, c10::ScalarType>;

Device devices[kMostDevices];
std::atomic<c10::DeviceIndex> count{2};
thread_local c10::DeviceIndex current = 0;

std::mutex settings;  // of everything below
std::map<FaultKey, std::shared_ptr<const Fault>> faults;
std::atomic<bool> has_faults{false};
std::string text_of_loss = kAssertText;
std::vector<std::function<void()>> late_copies[kMostDevices];

}  // namespace

Device& device(c10::DeviceIndex index) { return devices[index < 0 ? current : index]; }
c10::DeviceIndex device_count() { return count; }
c10::DeviceIndex current_device() { return current; }

void set_device_count(c10::DeviceIndex new_count) {
  TORCH_CHECK(new_count >= 0 && new_count <= kMostDevices, "at most ", int(kMostDevices), " devices can be rehearsed");
  count = new_count;
  current = 0;
}

void set_current_device(c10::DeviceIndex index) {
  TORCH_CHECK(index < count, "CUDA error: invalid device ordinal");
  if (index >= 0) current = index;
}

void start_kernel(c10::DeviceIndex index) {
  auto& on = device(index);
  check_alive(index);
  ++on.kernels;
  if (on.kernels_to_live >= 0 && on.kernels_to_live-- == 0) lose(index);
}

void check_alive(c10::DeviceIndex index) {
  if (device(index).is_lost) lose(index);
}

void lose(c10::DeviceIndex index) {
  device(index).is_lost = true;
  ++device(index).refusals;
  std::lock_guard<std::mutex> lock(settings);
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, kAssertFailed, text_of_loss);
}

void set_text_of_loss(const std::string& text) {
  std::lock_guard<std::mutex> lock(settings);
  text_of_loss = text;
}

void synchronize(c10::DeviceIndex index) {
  check_alive(index);
  auto& on = device(index);
  ++on.syncs;
  std::vector<std::function<void()>> arriving;
  {
    std::lock_guard<std::mutex> lock(settings);
    arriving.swap(late_copies[&on - devices]);
  }
  for (const auto& copy : arriving) copy();
}

void copy_later(c10::DeviceIndex index, std::function<void()> copy) {
  std::lock_guard<std::mutex> lock(settings);
  late_copies[&device(index) - devices].push_back(std::move(copy));
}

void set_fault(c10::DeviceIndex index, const std::string& op, c10::ScalarType dtype, const Fault& fault) {
  std::lock_guard<std::mutex> lock(settings);
  faults[{index, op, dtype}] = std::make_shared<const Fault>(fault);
  has_faults = true;
}

std::shared_ptr<const Fault> fault_of(c10::DeviceIndex index, const std::string& op, c10::ScalarType dtype) {
  if (!has_faults) return nullptr;
  std::lock_guard<std::mutex> lock(settings);
  auto place = faults.find({index, op, dtype});
  return place == faults.end() ? nullptr : place->second;
}

void reset() {
  for (auto& on : devices) {
    {
      std::lock_guard<std::mutex> lock(on.memory);
      on.limit = int64_t(16) << 30;
      on.reserved = on.peak_allocated = on.peak_reserved = on.allocated;
      on.allocations = 0;
      on.allocations_to_refusal = -1;
    }
    on.kernels = on.syncs = on.uploads = on.refusals = 0;
    on.kernels_to_live = -1;
    on.is_lost = false;
  }
  for (c10::DeviceIndex index = 0; index < kMostDevices; ++index) {
    auto own = generator(index);
    std::lock_guard<std::mutex> lock(own.mutex());
    own.set_current_seed(c10::default_rng_seed_val + index);
  }
  std::lock_guard<std::mutex> lock(settings);
  for (auto& copies : late_copies) copies.clear();
  faults.clear();
  has_faults = false;
  text_of_loss = kAssertText;
  current = 0;
}

}  // namespace rehearsal

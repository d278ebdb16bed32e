// The devices of the rehearsal: what they have, what they count, and how they refuse. All of it lies in host memory.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace rehearsal {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kMostDevices = 8;

struct Device {
  // Bytes. As under CUDA's caching allocator, what is freed stays reserved until the cache is emptied or memory is short.
  std::mutex memory;
  int64_t limit = int64_t(16) << 30;
  int64_t allocated = 0, reserved = 0, peak_allocated = 0, peak_reserved = 0;
  int64_t allocations = 0;              // that were asked for
  int64_t allocations_to_refusal = -1;  // negative: none is refused that has room

  std::atomic<int64_t> kernels{0};  // operations and copies that were started
  std::atomic<int64_t> syncs{0};    // times that the host waited for the device
  std::atomic<int64_t> uploads{0};  // copies from the host that did not say non_blocking: CUDA waits for these too

  std::atomic<int64_t> kernels_to_live{-1};  // negative: it is not going to be lost
  std::atomic<bool> is_lost{false};
  std::atomic<int64_t> refusals{0};  // times that it was asked for something while it was lost, the loss included
};

// How one operation behaves on one device where a tensor of a certain dtype comes in.
struct Fault {
  std::string error;               // it raises this, unless it is empty
  double factor = 1;               // its floating results are wrong by this
  double seconds = 0;              // it takes so much longer a call
  double seconds_per_product = 0;  // and so much longer for each multiplication of a product
};

Device& device(c10::DeviceIndex index);  // a negative index means the current one
c10::DeviceIndex device_count();
c10::DeviceIndex current_device();
void set_device_count(c10::DeviceIndex count);
void set_current_device(c10::DeviceIndex index);

c10::Allocator* allocator();
void empty_cache(c10::DeviceIndex index);

const at::Generator& generator(c10::DeviceIndex index);

// Count a kernel; raise where the device is lost, or is lost by this one.
void start_kernel(c10::DeviceIndex index);
// Raise if the device is lost.
void check_alive(c10::DeviceIndex index);
// The host waits for the device: counted, and copies that did not wait arrive.
void synchronize(c10::DeviceIndex index);
// As an assertion in a kernel: the device is lost, and this raises.
[[noreturn]] void lose(c10::DeviceIndex index);
void set_text_of_loss(const std::string& text);

void set_fault(c10::DeviceIndex index, const std::string& op, c10::ScalarType dtype, const Fault& fault);
// The fault of an operation ("mm") for tensors of this dtype. Null where there is none.
std::shared_ptr<const Fault> fault_of(c10::DeviceIndex index, const std::string& op, c10::ScalarType dtype);

// Copies from the device into pinned memory that nobody has waited for.
void copy_later(c10::DeviceIndex index, std::function<void()> copy);

// Everything as at the beginning, except for what is allocated.
void reset();

}  // namespace rehearsal

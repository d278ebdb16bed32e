// Every operation runs on the CPU's kernel, over the device's own memory: results are the CPU's, bit for bit.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "devices.h"

namespace rehearsal {
namespace {

// Operations whose result's shape or answer the host has to read: CUDA waits for the device in them.
const std::set<std::string> kReadByTheHost = {
    "_unique", "_unique2", "bincount", "equal", "histc", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
};
// Failures of a CPU kernel that are an assertion in CUDA's.
const std::vector<std::string> kAsserted = {
    "index out of range", "out of bounds", "probability tensor contains", "invalid multinomial distribution",
};

bool is_here(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

// The same memory as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  const auto& own = tensor.storage();
  c10::DataPtr data(const_cast<void*>(own.data()), c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), own.nbytes(), std::move(data));
  auto alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  alias._set_conj(tensor.is_conj());
  alias._set_neg(tensor.is_neg());
  return alias;
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> on, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(on);
  return at::detail::empty_strided_generic(size, stride, allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> on, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(on);
  return at::detail::empty_generic(size, allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

// A result of the CPU's kernel, in the device's memory.
at::Tensor on_device(const at::Tensor& result, c10::Device on) {
  if (!result.defined()) return result;
  auto dense = result.is_non_overlapping_and_dense() ? result : result.contiguous();
  auto own = empty_strided(dense.sizes(), dense.strides(), dense.scalar_type(), {}, on, {});
  on_host(own).copy_(dense);
  return own;
}

// One kernel on one device: counted at its start, and with the faults that are set for its operation.
class Kernel {
 public:
  Kernel(std::string op, c10::DeviceIndex index) : op_(std::move(op)), index_(index) {
    start_kernel(index);
    if (kReadByTheHost.count(op_)) synchronize(index);
  }

  void take(at::ScalarType dtype) {
    auto fault = fault_of(index_, op_, dtype);
    if (!fault) return;
    TORCH_CHECK(fault->error.empty(), fault->error);
    seconds_ += fault->seconds;
    seconds_per_product_ = std::max(seconds_per_product_, fault->seconds_per_product);
    if (fault->factor != 1) factor_ = fault->factor;
  }

  // Where it is a product: so many multiplications make one element of its result.
  void sums(int64_t products) { products_ = double(products); }

  // `result`: of the CPU's kernel.
  void give(const at::Tensor& result) {
    if (!result.defined()) return;
    seconds_ += seconds_per_product_ * products_ * double(result.numel());
    if (factor_ != 1 && (result.is_floating_point() || result.is_complex())) result.mul_(factor_);
  }

  void end() const {
    if (seconds_ > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds_));
  }

 private:
  std::string op_;
  c10::DeviceIndex index_;
  double seconds_ = 0, seconds_per_product_ = 0, products_ = 1, factor_ = 1;
};

// A call of any operation, with its arguments and results on torch's stack.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), first_(stack->size() - schema_.arguments().size()) {}

  void run() {
    for (size_t i = 0; i < count(); ++i) look_at(i);  // before anything is written
    if (!on_) on_ = c10::Device(kDevice, current_device());
    Kernel kernel(schema_.name().substr(schema_.name().find("::") + 2), on_->index());
    for (auto dtype : dtypes_) kernel.take(dtype);
    kernel.sums(products());
    for (size_t i = 0; i < count(); ++i) to_host(i);
    run_on_host();
    if (lent_) own_.set_state(lent_->get_state());
    auto first_result = stack_->size() - schema_.returns().size();
    for (size_t i = 0; i < schema_.returns().size(); ++i) to_device(i, (*stack_)[first_result + i], kernel);
    kernel.end();
  }

 private:
  size_t count() const { return schema_.arguments().size(); }
  const c10::Argument& parameter(size_t i) const { return schema_.arguments()[i]; }

  // Of one element, if this is a matrix product: its last tensor is the right side, a matrix, matrices or a vector.
  int64_t products() const {
    auto right = std::find_if(given_.rbegin(), given_.rend(), [](const at::Tensor& t) { return t.defined(); });
    if (right == given_.rend() || right->dim() == 0) return 1;
    return right->dim() == 1 ? right->size(0) : right->size(-2);
  }

  // Tensor?[] by its kind: TorchScript makes its lists of another object for the same type, which isOptionalTensorList denies.
  static bool are_indices(const c10::IValue& value) {
    if (!value.isList()) return false;
    auto optional = value.toList().elementType()->cast<c10::OptionalType>();
    return optional && optional->getElementType()->kind() == c10::TypeKind::TensorType;
  }

  void look_at(size_t i) {
    const auto& value = (*stack_)[first_ + i];
    if (value.isTensor()) {
      given_[i] = value.toTensor();
      look_at(given_[i], i);
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorList()) look_at(tensor, i);
    } else if (are_indices(value)) {  // CUDA takes them from the host, too
      for (const c10::IValue& index : value.toListRef()) {
        if (!index.isTensor()) continue;
        const auto& tensor = index.toTensor();
        if (is_here(tensor)) look_at(tensor, i);
        if (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte) has_mask_ = true;
      }
    } else if (value.isDevice() && value.toDevice().type() == kDevice) {
      on_ = value.toDevice();
    }
  }

  void look_at(const at::Tensor& tensor, size_t i) {
    if (!tensor.defined() || (!is_here(tensor) && tensor.dim() == 0)) return;  // a number of the host goes anywhere
    c10::impl::check_and_update_common_device(on_, tensor, schema_.name().c_str(), parameter(i).name().c_str());
    dtypes_.insert(tensor.scalar_type());
  }

  void to_host(size_t i) {
    auto& value = (*stack_)[first_ + i];
    if (value.isTensor()) {
      const auto& tensor = given_[i];
      // An empty out= is resized by the kernel, which it cannot be in another's memory.
      bool is_resized = is_written(i) && is_here(tensor) && tensor.numel() == 0;
      value = is_resized ? at::empty_like(tensor, tensor.options().device(c10::kCPU)) : on_host(tensor);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> host;
      for (const at::Tensor& tensor : value.toTensorList()) host.push_back(on_host(tensor));
      value = host;
    } else if (are_indices(value)) {
      c10::List<std::optional<at::Tensor>> host;
      for (const c10::IValue& index : value.toListRef())
        host.push_back(index.isTensor() ? std::make_optional(on_host(index.toTensor())) : std::nullopt);
      value = host;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator() || (value.isNone() && takes_generator(i))) {
      lend(value);
    }
  }

  bool is_written(size_t i) const {
    const auto* alias = parameter(i).alias_info();
    return alias && alias->isWrite();
  }

  bool takes_generator(size_t i) const {
    auto optional = parameter(i).type()->cast<c10::OptionalType>();
    return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
  }

  // The CPU's kernels take generators of the CPU alone: one is lent, and its state is taken back after the call.
  void lend(c10::IValue& value) {
    own_ = value.isNone() ? generator(on_->index()) : value.toGenerator();
    TORCH_CHECK(own_.device() == *on_, "Expected a '", *on_, "' device type for generator but found '", own_.device(), "'");
    lent_ = at::detail::createCPUGenerator();
    lent_->set_state(own_.get_state());
    value = *lent_;
  }

  void run_on_host() {
    // A mask is read by the host, which of all operations index alone does in one of its own: nonzero.
    if (has_mask_ && schema_.name() != "aten::index") synchronize(on_->index());
    try {
      op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    } catch (const c10::Error& error) {
      for (const auto& text : kAsserted)
        if (std::string(error.what_without_backtrace()).find(text) != std::string::npos) lose(on_->index());
      throw;
    }
  }

  void to_device(size_t r, c10::IValue& value, Kernel& kernel) {
    if (value.isTensorList()) {
      c10::List<at::Tensor> results;
      for (const at::Tensor& result : value.toTensorList()) {
        kernel.give(result);
        results.push_back(on_device(result, *on_));
      }
      value = results;
    } else if (value.isTensor()) {
      auto result = value.toTensor();
      kernel.give(result);
      const auto* alias = schema_.returns()[r].alias_info();
      value = alias && alias->isWrite() ? written(result, *alias) : on_device(result, *on_);
    }
  }

  // The argument that the kernel has written its result into.
  at::Tensor written(const at::Tensor& result, const c10::AliasInfo& alias) {
    for (size_t i = 0; i < count(); ++i) {
      if (!is_written(i) || parameter(i).alias_info()->beforeSets() != alias.beforeSets()) continue;
      if (given_[i].sizes() != result.sizes()) {
        given_[i].resize_(result.sizes());
        on_host(given_[i]).copy_(result);
      }
      return given_[i];
    }
    TORCH_INTERNAL_ASSERT(false, schema_.name(), " has written into none of its arguments");
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;  // of the arguments on the stack
  std::optional<c10::Device> on_;
  std::set<at::ScalarType> dtypes_;
  bool has_mask_ = false;
  std::vector<at::Tensor> given_ = std::vector<at::Tensor>(count());
  at::Generator own_;
  std::optional<at::Generator> lent_;
};

void any_operation(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack).run(); }

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  auto index = (is_here(from) ? from : to).device().index();
  Kernel kernel("copy_", index);
  kernel.take(from.scalar_type());
  kernel.take(to.scalar_type());
  if (is_here(from) && is_here(to)) {
    if (from.device() != to.device()) check_alive(to.device().index());
    on_host(to).copy_(on_host(from));
    kernel.give(on_host(to));
  } else if (is_here(to)) {
    if (!non_blocking) ++device(index).uploads;
    on_host(to).copy_(from);
  } else if (non_blocking && to.is_pinned()) {  // it arrives when somebody waits
    copy_later(index, [values = on_host(from).clone(), to] { at::Tensor(to).copy_(values); });
  } else {
    synchronize(index);
    at::Tensor(to).copy_(on_host(from));
  }
  kernel.end();
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  synchronize(tensor.device().index());
  return at::_local_scalar_dense(on_host(tensor));
}

const at::Tensor& resize_(const at::Tensor& tensor, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(tensor.device());
  return at::native::resize_(tensor, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor& set_part(at::Tensor& tensor, at::Storage source, int64_t offset, at::IntArrayRef size,
                     at::IntArrayRef stride) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage source) {
  auto length = int64_t(source.nbytes() / tensor.itemsize());
  return set_part(tensor, std::move(source), 0, {length}, {1});
}

at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set_part(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_nothing(at::Tensor& tensor) {
  c10::DeviceGuard guard(tensor.device());
  c10::Storage nothing(c10::Storage::use_byte_size_t(), 0, allocator()->allocate(0), allocator(), true);
  return set_part(tensor, std::move(nothing), 0, {0}, {1});
}

// CUDA counts integers too, which the CPU's kernel refuses.
at::Tensor histc(const at::Tensor& values, int64_t bins, const at::Scalar& least, const at::Scalar& most) {
  Kernel kernel("histc", values.device().index());
  kernel.take(values.scalar_type());
  auto host = on_host(values);
  bool is_integral = at::isIntegralType(values.scalar_type(), /*includeBool=*/false);
  auto counts = at::histc(is_integral ? host.to(at::kDouble) : host, bins, least, most).to(values.scalar_type());
  kernel.end();
  return on_device(counts, values.device());
}

// Convolution and attention are composed by torch of what a backend brings for them: the fallback is never asked.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  Kernel kernel("convolution", input.device().index());
  kernel.take(input.scalar_type());
  kernel.sums(weight.numel() / std::max<int64_t>(1, weight.size(0)));
  auto result = at::convolution(on_host(input), on_host(weight), bias ? std::make_optional(on_host(*bias)) : bias,
                                stride, padding, dilation, transposed, output_padding, groups);
  kernel.give(result);
  kernel.end();
  return on_device(result, input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  Kernel kernel("convolution_backward", input.device().index());
  kernel.take(input.scalar_type());
  auto outputs = weight.size(transposed ? 1 : 0) * (transposed ? groups : 1);
  auto [of_input, of_weight, of_bias] =
      at::convolution_backward(on_host(grad), on_host(input), on_host(weight), at::IntArrayRef{outputs}, stride,
                               padding, dilation, transposed, output_padding, groups, wanted);
  for (const auto& result : {of_input, of_weight, of_bias}) kernel.give(result);
  kernel.end();
  auto on = input.device();
  return {on_device(of_input, on), on_device(of_weight, on), on_device(of_bias, on)};
}

// Fused attention where the CPU would use its own.
int64_t choose_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                         std::optional<double> scale, bool enable_gqa) {
  auto host_mask = mask ? std::make_optional(on_host(*mask)) : mask;
  auto choice = static_cast<sdp::SDPBackend>(at::_fused_sdp_choice(
      on_host(query), on_host(key), on_host(value), host_mask, dropout, is_causal, scale, enable_gqa));
  bool is_fused = choice == sdp::SDPBackend::flash_attention && !(mask && mask->requires_grad());
  return static_cast<int64_t>(is_fused ? sdp::SDPBackend::overrideable : sdp::SDPBackend::math);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt, at::Tensor, at::Tensor, at::Tensor>
attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
          const std::optional<at::Tensor>& mask, double dropout, bool is_causal, bool, std::optional<double> scale) {
  std::optional<c10::Device> on;
  for (const auto& tensor : {query, key, value, mask.value_or(at::Tensor())})
    c10::impl::check_and_update_common_device(on, tensor, "scaled_dot_product_attention", "query, key, value or mask");
  Kernel kernel("scaled_dot_product_attention", on->index());
  kernel.take(query.scalar_type());
  kernel.sums(2 * key.size(-2));
  auto host_mask = mask ? std::make_optional(on_host(*mask)) : mask;
  auto [output, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
      on_host(query), on_host(key), on_host(value), dropout, is_causal, host_mask, scale);
  kernel.give(output);
  kernel.end();
  return {on_device(output, *on), on_device(logsumexp, *on), {}, {}, query.sym_size(2), key.sym_size(2), {}, {}, {}};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& mask, std::array<bool, 4>, const at::Tensor& output, const at::Tensor& logsumexp,
    const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt, double dropout, bool is_causal, const at::Tensor&,
    const at::Tensor&, std::optional<double> scale) {
  auto on = query.device();
  Kernel kernel("scaled_dot_product_attention_backward", on.index());
  kernel.take(query.scalar_type());
  auto host_mask = mask.defined() ? std::make_optional(on_host(mask)) : std::nullopt;
  auto [of_query, of_key, of_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      on_host(grad), on_host(query), on_host(key), on_host(value), on_host(output), on_host(logsumexp), dropout,
      is_causal, host_mask, scale);
  for (const auto& result : {of_query, of_key, of_value}) kernel.give(result);
  kernel.end();
  return {on_device(of_query, on), on_device(of_key, on), on_device(of_value, on), {}};
}

}  // namespace
}  // namespace rehearsal

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &rehearsal::choose_attention)
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&rehearsal::any_operation>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  using namespace rehearsal;
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_", set_nothing);
  m.impl("histc", histc);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("_scaled_dot_product_fused_attention_overrideable", attention);
  m.impl("_scaled_dot_product_fused_attention_overrideable_backward", attention_backward);
  // These have a formula for backends without a kernel, which rounds in another way than the CPU's kernel.
  for (const auto* name : {"native_layer_norm", "native_group_norm", "addr", "linalg__powsum"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&any_operation>());
}

// A copy resolves the bits itself, as copy_ of torch.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // the usual ones of CUDA's lists
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(layer_norm, fp32)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
}

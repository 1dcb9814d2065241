// oneDNN's convolutions as calls that XLA's CPU backend can make.
//
// Images are NHWC and kernels HWIO, float32 or bfloat16. The images of a call share a dtype; a kernel
// or its gradient may be float32 beside bfloat16 images. oneDNN reads images where they lie and wants
// kernels in blocks that suit the processor, into which they are copied here.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;

enum Kind { kForward, kInputGradient, kKernelGradient };

const dnnl::engine& Cpu() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// What a convolution is compiled for. Dims are oneDNN's: images NCHW, kernels OIHW.
struct Problem {
  Kind kind;
  memory::data_type image_type, kernel_type;
  Dims input, kernel, output, strides, before, after;

  Dims Key() const {
    Dims key = {kind, int64_t(image_type), int64_t(kernel_type)};
    for (const Dims* dims : {&input, &kernel, &output, &strides, &before, &after})
      key.insert(key.end(), dims->begin(), dims->end());
    return key;
  }
};

// A compiled convolution. It is never changed, so any thread may run it.
class Convolution {
 public:
  explicit Convolution(const Problem& p) : kind_(p.kind) {
    using tag = memory::format_tag;
    constexpr auto algorithm = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    input_ = {p.input, p.image_type, tag::nhwc};
    output_ = {p.output, p.image_type, tag::nhwc};
    kernel_ = {p.kernel, p.kernel_type, tag::hwio};
    const memory::desc packed(p.kernel, p.image_type, tag::any);
    const memory::desc gradient(p.kernel, p.kernel_type, tag::any);
    dnnl::convolution_forward::primitive_desc forward(
        Cpu(), dnnl::prop_kind::forward_training, algorithm, input_, packed, output_, p.strides,
        p.before, p.after, attributes);
    if (kind_ == kForward) {
      Compile<dnnl::convolution_forward>(forward, forward.weights_desc());
    } else if (kind_ == kInputGradient) {
      dnnl::convolution_backward_data::primitive_desc backward(
          Cpu(), algorithm, input_, packed, output_, p.strides, p.before, p.after, forward,
          attributes);
      Compile<dnnl::convolution_backward_data>(backward, backward.weights_desc());
    } else {
      dnnl::convolution_backward_weights::primitive_desc backward(
          Cpu(), algorithm, input_, gradient, output_, p.strides, p.before, p.after, forward,
          attributes);
      Compile<dnnl::convolution_backward_weights>(backward, backward.diff_weights_desc());
    }
    if (packed_ != kernel_)
      copy_ = kind_ == kKernelGradient ? dnnl::reorder({Cpu(), packed_, Cpu(), kernel_})
                                       : dnnl::reorder({Cpu(), kernel_, Cpu(), packed_});
  }

  // To be called on the team's thread only.
  void Run(void* input, void* kernel, void* output) const {
    static auto* packing = new std::vector<char>;
    static auto* scratch = new std::vector<char>;
    dnnl::stream stream(Cpu());
    memory given(kernel_, Cpu(), kernel);
    memory packed = copy_ ? Block(packed_, packing) : given;
    if (copy_ && kind_ != kKernelGradient) copy_.execute(stream, given, packed);
    constexpr int inputs[] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_SRC, DNNL_ARG_SRC};
    constexpr int kernels[] = {DNNL_ARG_WEIGHTS, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_WEIGHTS};
    constexpr int outputs[] = {DNNL_ARG_DST, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_DST};
    compute_.execute(stream, {{inputs[kind_], memory(input_, Cpu(), input)},
                              {kernels[kind_], packed},
                              {outputs[kind_], memory(output_, Cpu(), output)},
                              {DNNL_ARG_SCRATCHPAD, Block(scratch_, scratch)}});
    if (copy_ && kind_ == kKernelGradient) copy_.execute(stream, packed, given);
    stream.wait();
  }

 private:
  template <typename Primitive>
  void Compile(const typename Primitive::primitive_desc& desc, const memory::desc& packed) {
    compute_ = Primitive(desc);
    packed_ = packed;
    scratch_ = desc.scratchpad_desc();
  }

  // Memory that is kept from call to call.
  static memory Block(const memory::desc& desc, std::vector<char>* bytes) {
    constexpr size_t kAlignment = 64;
    if (bytes->size() < desc.get_size() + kAlignment) {
      std::vector<char>().swap(*bytes);  // before there are two
      bytes->resize(desc.get_size() + kAlignment);
    }
    const auto start = reinterpret_cast<uintptr_t>(bytes->data());
    const auto aligned = (start + kAlignment - 1) / kAlignment * kAlignment;
    return memory(desc, Cpu(), reinterpret_cast<void*>(aligned));
  }

  Kind kind_;
  memory::desc input_, kernel_, output_, packed_, scratch_;
  dnnl::primitive compute_;
  dnnl::reorder copy_;
};

// Returns a problem's convolution, compiled once; throws where oneDNN has none.
std::shared_ptr<const Convolution> Find(const Problem& problem) {
  constexpr size_t kMost = 1024;
  static auto* mutex = new std::mutex;
  static auto* compiled = new std::map<Dims, std::shared_ptr<const Convolution>>;
  std::lock_guard<std::mutex> lock(*mutex);
  if (compiled->size() >= kMost) compiled->clear();  // one that runs lives until it is done
  auto& there = (*compiled)[problem.Key()];
  // oneDNN compiles for as many threads as the thread that it is called from has in its team.
  if (!there) Team::Run([&] { there = std::make_shared<const Convolution>(problem); });
  return there;
}

memory::data_type Type(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16
                                                      : memory::data_type::f32;
}

// input and output are NHWC, kernel is HWIO, geometry: two strides, then the padding before and after
// the rows, before and after the columns.
Problem MakeProblem(Kind kind, memory::data_type image, memory::data_type kernel_type,
                    const int64_t* input, const int64_t* kernel, const int64_t* output,
                    const int64_t* geometry) {
  const int64_t *x = input, *k = kernel, *y = output, *g = geometry;
  return {kind,
          image,
          kernel_type,
          {x[0], x[3], x[1], x[2]},
          {k[3], k[2], k[0], k[1]},
          {y[0], y[3], y[1], y[2]},
          {g[0], g[1]},
          {g[2], g[4]},
          {g[3], g[5]}};
}

using Any = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Geometry = ffi::Span<const int64_t>;

ffi::Error Convolve(Kind kind, Any input, Any kernel, Any output, Geometry geometry) {
  return Guarded([&] {
    const auto convolution = Find(MakeProblem(
        kind, Type(input), Type(kernel), input.dimensions().begin(), kernel.dimensions().begin(),
        output.dimensions().begin(), geometry.begin()));
    Team::Run([&] {
      convolution->Run(input.untyped_data(), kernel.untyped_data(), output.untyped_data());
    });
  });
}

ffi::Error Forward(Any input, Any kernel, Result output, Geometry geometry) {
  return Convolve(kForward, input, kernel, *output, geometry);
}

ffi::Error InputGradient(Any output, Any kernel, Result input, Geometry geometry) {
  return Convolve(kInputGradient, *input, kernel, output, geometry);
}

ffi::Error KernelGradient(Any input, Any output, Result kernel, Geometry geometry) {
  return Convolve(kKernelGradient, input, *kernel, output, geometry);
}

}  // namespace

#define CONVOLUTION(symbol, function)                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,        \
                                ffi::Ffi::Bind()         \
                                    .Arg<Any>()          \
                                    .Arg<Any>()          \
                                    .Ret<Any>()          \
                                    .Attr<Geometry>("geometry"))

CONVOLUTION(resnet_jax_convolution, Forward);
CONVOLUTION(resnet_jax_input_gradient, InputGradient);
CONVOLUTION(resnet_jax_kernel_gradient, KernelGradient);

// Returns whether oneDNN has a convolution, and compiles it for the run. `shapes`: input, kernel,
// output, geometry, as `MakeProblem` takes them.
extern "C" bool resnet_jax_has_convolution(int kind, bool bfloat16, bool bfloat16_kernel,
                                           const int64_t* shapes) {
  auto type = [](bool half) { return half ? memory::data_type::bf16 : memory::data_type::f32; };
  try {
    Find(MakeProblem(Kind(kind), type(bfloat16), type(bfloat16_kernel), shapes, shapes + 4,
                     shapes + 8, shapes + 12));
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

extern "C" void resnet_jax_set_threads(int threads) { Team::SetSize(threads); }

// Batch normalization with what follows it, in as few passes over memory as there can be, as calls
// that XLA's CPU backend can make:
//
//   y = relu((x - mean) * scale / sqrt(variance + epsilon) + bias + shortcut)
//
// where ReLU and shortcut may be missing. Arrays are [..., channels], float32 or bfloat16; what there
// is one of per channel is float32. An array is cut into chunks, whose sums are added in order, so
// that the number of threads changes no bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

struct bfloat16 {
  uint16_t bits;
};

inline float Load(const float* p) { return *p; }
inline void Store(float value, float* p) { *p = value; }

inline float Load(const bfloat16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even. A NaN made by arithmetic stays one: its low bits are zero.
inline void Store(float value, bfloat16* p) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

using Floats = std::vector<float>;

// An array as rows of `lanes` numbers, enough to fill vector registers; lane i has channel
// i % channels. The last row may be shorter. A chunk of rows fits in a core's cache.
struct Layout {
  explicit Layout(const ffi::AnyBuffer& x)
      : channels(x.dimensions().back()), size(x.element_count()) {
    lanes = channels * ((63 + channels) / channels);
    chunk = lanes * std::max<int64_t>(1, 32768 / lanes);
    chunks = (size + chunk - 1) / chunk;
  }

  double Count() const { return double(size) / channels; }

  Floats Repeat(const float* values) const {
    Floats repeated(lanes);
    for (int64_t i = 0; i < lanes; ++i) repeated[i] = values[i % channels];
    return repeated;
  }

  // Calls f(first element, number of elements) for the rows of a chunk.
  template <typename F>
  void Rows(int64_t index, F f) const {
    const int64_t end = std::min(size, (index + 1) * chunk);
    int64_t i = index * chunk;
    for (; i + lanes <= end; i += lanes) f(i, lanes);
    if (i < end) f(i, end - i);
  }

  int64_t channels, size, lanes, chunk, chunks;
};

// Lets f(chunk, a, b) add to two sums per lane, and returns them by chunk and channel.
template <typename F>
Floats Sums(const Layout& s, F f) {
  Floats sums(s.chunks * 2 * s.channels);
#pragma omp parallel
  {
    Floats a(s.lanes), b(s.lanes);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      std::fill(a.begin(), a.end(), 0.f);
      std::fill(b.begin(), b.end(), 0.f);
      f(chunk, a.data(), b.data());
      float* to = &sums[chunk * 2 * s.channels];
      for (int64_t i = 0; i < s.lanes; ++i) {
        to[i % s.channels] += a[i];
        to[s.channels + i % s.channels] += b[i];
      }
    }
  }
  return sums;
}

// Calls f(first element, number of elements) for all rows. The last chunks, which the caches still
// hold from the pass before, come first.
template <typename F>
void ForAllRows(const Layout& s, F f) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < s.chunks; ++i) s.Rows(s.chunks - 1 - i, f);
}

// Deviations are from a chunk's first pixel, so that a large mean costs no precision; chunks are
// joined as by Chan, Golub and LeVeque (1979).
template <typename T>
void Statistics(const Layout& s, const T* x, float* mean, float* variance) {
  const Floats sums = Sums(s, [&](int64_t chunk, float* a, float* b) {
    Floats pivot(s.lanes);
    for (int64_t i = 0; i < s.lanes; ++i) pivot[i] = Load(x + chunk * s.chunk + i % s.channels);
    const float* p = pivot.data();
    s.Rows(chunk, [=](int64_t row, int64_t n) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const float d = Load(x + row + i) - p[i];
        a[i] += d;
        b[i] += d * d;
      }
    });
  });
  for (int64_t c = 0; c < s.channels; ++c) {
    double count = 0, average = 0, squares = 0;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const float* sum = &sums[chunk * 2 * s.channels + c];
      const double n = double(std::min(s.chunk, s.size - chunk * s.chunk)) / s.channels;
      const double deviation = sum[0] / n;
      const double step = Load(x + chunk * s.chunk + c) + deviation - average;
      count += n;
      squares += sum[s.channels] - n * deviation * deviation + step * step * n * (count - n) / count;
      average += step * n / count;
    }
    mean[c] = float(average);
    variance[c] = float(std::max(squares, 0.) / count);
  }
}

// What every lane multiplies the deviation from the mean with.
Floats Factors(const Layout& s, const float* variance, const float* scale, float epsilon) {
  Floats factors(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) factors[c] = scale[c] / std::sqrt(variance[c] + epsilon);
  return s.Repeat(factors.data());
}

template <typename T, bool kRelu, bool kShortcut>
void Normalize(const Layout& s, const T* x, const float* scale, const float* bias,
               const T* shortcut, T* y, float* mean, float* variance, float epsilon) {
  Statistics(s, x, mean, variance);
  const Floats factors = Factors(s, variance, scale, epsilon);
  const Floats means = s.Repeat(mean), biases = s.Repeat(bias);
  const float *f = factors.data(), *m = means.data(), *b = biases.data();
  ForAllRows(s, [=](int64_t row, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      float value = (Load(x + row + i) - m[i]) * f[i] + b[i];
      if (kShortcut) value += Load(shortcut + row + i);
      if (kRelu) value = value < 0 ? 0 : value;  // NaN stays
      Store(value, y + row + i);
    }
  });
}

// dz is where the gradient of the sum before the ReLU goes, which is the shortcut's.
template <typename T, bool kRelu, bool kShortcut>
void Gradient(const Layout& s, const T* x, const float* scale, const float* bias, const float* mean,
              const float* variance, const T* y, const T* dy, const float* dmean,
              const float* dvariance, T* dx, float* dscale, float* dbias, T* dz, float epsilon) {
  const Floats factors = Factors(s, variance, scale, epsilon);
  const Floats means = s.Repeat(mean), biases = s.Repeat(bias);
  const float *f = factors.data(), *m = means.data(), *b = biases.data();
  const Floats sums = Sums(s, [&](int64_t chunk, float* one, float* two) {
    s.Rows(chunk, [=](int64_t row, int64_t n) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const float d = Load(x + row + i) - m[i];
        float g = Load(dy + row + i);
        if (kRelu) g = (kShortcut ? Load(y + row + i) : d * f[i] + b[i]) > 0 ? g : 0;
        if (kShortcut) Store(g, dz + row + i);
        one[i] += g;
        two[i] += g * d;
      }
    });
  });
  // dx is a line of d = x - mean for each channel, and the factor times the gradient of the sum.
  Floats slope(s.channels), offset(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) {
    double one = 0, two = 0;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      one += sums[chunk * 2 * s.channels + c];
      two += sums[chunk * 2 * s.channels + s.channels + c];
    }
    const double reciprocal = 1 / std::sqrt(double(variance[c]) + epsilon);
    const double factor = scale[c] * reciprocal;
    dbias[c] = float(one);
    dscale[c] = float(two * reciprocal);
    slope[c] = float((2 * dvariance[c] - factor * reciprocal * reciprocal * two) / s.Count());
    offset[c] = float((dmean[c] - factor * one) / s.Count());
  }
  const Floats slopes = s.Repeat(slope.data()), offsets = s.Repeat(offset.data());
  const float *k = slopes.data(), *o = offsets.data();
  const T* gradient = kShortcut ? dz : dy;
  ForAllRows(s, [=](int64_t row, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float d = Load(x + row + i) - m[i];
      float g = Load(gradient + row + i);
      if (kRelu && !kShortcut) g = d * f[i] + b[i] > 0 ? g : 0;
      Store(f[i] * g + k[i] * d + o[i], dx + row + i);
    }
  });
}

// Calls f with a number of the dtype, and whether there are a ReLU and a shortcut, as constants.
template <typename F>
ffi::Error Choose(ffi::DataType dtype, bool relu, bool shortcut, F f) {
  using std::false_type, std::true_type;
  auto choose = [&](auto number) {
    if (shortcut) {
      f(number, true_type(), true_type());
    } else if (relu) {
      f(number, true_type(), false_type());
    } else {
      f(number, false_type(), false_type());
    }
  };
  return Guarded([&] {
    Team::Run([&] { dtype == ffi::DataType::BF16 ? choose(bfloat16()) : choose(float()); });
  });
}

using Any = ffi::AnyBuffer;
using Result = ffi::Result<Any>;

template <typename T = float>
T* Data(Any buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

ffi::Error NormalizeCall(Any x, Any scale, Any bias, ffi::RemainingArgs shortcut, Result y,
                         Result mean, Result variance, float epsilon, bool relu) {
  return Choose(x.element_type(), relu, shortcut.size(), [&](auto number, auto r, auto with) {
    using T = decltype(number);
    Normalize<T, r.value, with.value>(
        Layout(x), Data<T>(x), Data(scale), Data(bias),
        with.value ? Data<T>(*shortcut.get<Any>(0)) : nullptr, Data<T>(*y), Data(*mean),
        Data(*variance), epsilon);
  });
}

ffi::Error GradientCall(Any x, Any scale, Any bias, Any mean, Any variance, Any dy, Any dmean,
                        Any dvariance, ffi::RemainingArgs y, Result dx, Result dscale, Result dbias,
                        ffi::RemainingRets dz, float epsilon, bool relu) {
  return Choose(x.element_type(), relu, dz.size(), [&](auto number, auto r, auto with) {
    using T = decltype(number);
    Gradient<T, r.value, with.value>(
        Layout(x), Data<T>(x), Data(scale), Data(bias), Data(mean), Data(variance),
        with.value ? Data<T>(*y.get<Any>(0)) : nullptr, Data<T>(dy), Data(dmean), Data(dvariance),
        Data<T>(*dx), Data(*dscale), Data(*dbias),
        with.value ? Data<T>(**dz.get<Any>(0)) : nullptr, epsilon);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_normalize, NormalizeCall,
                              ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().RemainingArgs()
                                  .Ret<Any>().Ret<Any>().Ret<Any>()
                                  .Attr<float>("epsilon").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_normalize_gradient, GradientCall,
                              ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>()
                                  .Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().RemainingArgs()
                                  .Ret<Any>().Ret<Any>().Ret<Any>().RemainingRets()
                                  .Attr<float>("epsilon").Attr<bool>("relu"));

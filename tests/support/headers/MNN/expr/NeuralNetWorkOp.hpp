#pragma once
#include <memory>
#include <vector>

struct halide_type_t {};
template <typename T>
halide_type_t halide_type_of();

namespace MNN {
namespace Express {
class Variable {
public:
    template <typename T>
    T* writeMap();
};
typedef std::shared_ptr<Variable> VARP;
enum Dimensionformat { NHWC, NC4HW4, NCHW };
VARP _Input(std::vector<int> shape = {}, Dimensionformat format = NC4HW4,
            halide_type_t dtype = halide_type_of<float>());
}  // namespace Express
}  // namespace MNN

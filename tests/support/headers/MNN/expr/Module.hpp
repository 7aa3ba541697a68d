#pragma once
#include <memory>
#include <string>
#include <vector>

#include <MNN/expr/Executor.hpp>
#include <MNN/expr/NeuralNetWorkOp.hpp>

namespace MNN {
namespace Express {
class Module {
public:
    struct Config {};
    virtual ~Module();
    virtual std::vector<VARP> onForward(const std::vector<VARP>& inputs) = 0;
    static Module* load(const std::vector<std::string>& inputs, const std::vector<std::string>& outputs,
                        const char* name, const std::shared_ptr<Executor::RuntimeManager> manager,
                        const Config* config = nullptr);
    static void destroy(Module* module);
};
}  // namespace Express
}  // namespace MNN

#pragma once

// One call of a model directory without MNN's engine for language models: the program loads `llm.mnn` as a module, feeds
// every input that the contract declares, `logits_index` among them, and lets the guard look at the feed first.
// C++17. `lading_guard.h` is written beside the model by `lading compile --guard`.

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <MNN/expr/Executor.hpp>
#include <MNN/expr/Module.hpp>
#include <MNN/expr/NeuralNetWorkOp.hpp>

#include "lading_guard.h"

namespace app {

using namespace MNN::Express;

// An input of MNN with the numbers of an array.
template <typename T>
VARP input(const std::vector<int>& shape, const T* data) {
    VARP made = _Input(shape, NCHW, halide_type_of<T>());
    std::size_t count = 1;
    for (int size : shape) count *= static_cast<std::size_t>(size);
    T* place = made->writeMap<T>();
    for (std::size_t i = 0; i < count; ++i) place[i] = data[i];
    return made;
}

class Model {
public:
    explicit Model(const std::string& folder) {
        MNN::ScheduleConfig schedule;
        runtime_.reset(Executor::RuntimeManager::createRuntimeManager(schedule), Executor::RuntimeManager::destroy);
        runtime_->setExternalFile(folder + "/llm.mnn.weight");
        const std::vector<std::string> inputs = {"input_ids", "attention_mask", "position_ids", "logits_index"};
        module_.reset(Module::load(inputs, {"logits"}, (folder + "/llm.mnn").c_str(), runtime_), Module::destroy);
        if (!module_) throw std::runtime_error("MNN cannot load " + folder);
    }

    // Logits of the last token of a prompt. `rows` are the embedding rows of its tokens, [tokens, 1, hidden].
    VARP last_logits(const std::vector<float>& rows, int tokens, int hidden) {
        std::vector<int> positions(static_cast<std::size_t>(tokens));
        for (int i = 0; i < tokens; ++i) positions[static_cast<std::size_t>(i)] = i;
        const float causal = 0.0f;
        const int last = -1;  // 0 asks for the logits of all tokens
        const std::vector<lading::Tensor> feed = {
            {"input_ids", "f32", {tokens, 1, hidden}, rows.data()},
            {"attention_mask", "f32", {}, &causal},
            {"position_ids", "i32", {1, tokens}, positions.data()},
            {"logits_index", "i32", {1}, &last},
        };
        for (const lading::Problem& problem : lading::check(feed))
            throw std::runtime_error(problem.code + " " + problem.message);
        return module_->onForward({input({tokens, 1, hidden}, rows.data()), input<float>({}, &causal),
                                   input({1, tokens}, positions.data()), input({1}, &last)})[0];
    }

private:
    std::shared_ptr<Executor::RuntimeManager> runtime_;
    std::shared_ptr<Module> module_;
};

}  // namespace app

#pragma once

// A conversation with a model directory, in C++17, on MNN's own engine for language models: for Android through JNI,
// for iOS through Objective-C++, and on desktops.

#include <fstream>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>

#include <MNN/MNNDefine.h>
#include <llm/llm.hpp>

namespace app {

using MNN::Transformer::ChatMessages;
using MNN::Transformer::Llm;

// MNN 3.4 reads another configuration file than later releases; a directory for 3.5 and later alone has only one.
inline std::string configuration(const std::string& folder) {
    const std::string older = folder + "/config.3.4.json";
    const bool is_34 = MNN_VERSION_MAJOR == 3 && MNN_VERSION_MINOR == 4;
    return is_34 && std::ifstream(older).good() ? older : folder + "/config.json";
}

class Chat {
public:
    // Opens a directory. Check its contract before: MNN crashes on what it cannot read.
    explicit Chat(const std::string& folder) : llm_(Llm::createLLM(configuration(folder)), Llm::destroy) {
        if (!llm_ || !llm_->load()) throw std::runtime_error("MNN cannot load " + folder);
    }

    // The answer to the user's words; it is written to `out` as it comes.
    std::string say(const std::string& words, std::ostream& out, int most_tokens = 512) {
        turns_.emplace_back("user", words);
        llm_->response(turns_, &out, nullptr, most_tokens);
        const std::string answer = llm_->getContext()->generate_str;
        turns_.emplace_back("assistant", answer);
        return answer;
    }

    // Forget the conversation.
    void clear() {
        turns_.clear();
        llm_->reset();
    }

private:
    std::unique_ptr<Llm, void (*)(Llm*)> llm_;
    ChatMessages turns_;
};

}  // namespace app

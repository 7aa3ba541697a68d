#pragma once
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace MNN {
namespace Transformer {
using ChatMessage = std::pair<std::string, std::string>;
using ChatMessages = std::vector<ChatMessage>;
struct LlmContext {
    std::string generate_str;
};
class Llm {
public:
    static Llm* createLLM(const std::string& config_path);
    static void destroy(Llm* llm);
    virtual ~Llm();
    virtual bool load();
    void reset();
    void response(const ChatMessages& chat_prompts, std::ostream* os = &std::cout, const char* end_with = nullptr,
                  int max_new_tokens = -1);
    const LlmContext* getContext() const;
};
}  // namespace Transformer
}  // namespace MNN

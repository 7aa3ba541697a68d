#pragma once
#include <string>

namespace MNN {
struct ScheduleConfig {};
namespace Express {
class Executor {
public:
    class RuntimeManager {
    public:
        static RuntimeManager* createRuntimeManager(const ScheduleConfig& config);
        static void destroy(RuntimeManager* manager);
        void setExternalFile(std::string name);
    };
};
}  // namespace Express
}  // namespace MNN

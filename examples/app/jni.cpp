// The conversation for Java and Kotlin: class `app.Model` with `open`, `say` and `close`, see Model.kt. C++17.

#include <jni.h>

#include <exception>
#include <sstream>
#include <string>

#include "chat.hpp"

namespace {

std::string text(JNIEnv* env, jbyteArray bytes) {
    std::string found(static_cast<std::size_t>(env->GetArrayLength(bytes)), '\0');
    env->GetByteArrayRegion(bytes, 0, env->GetArrayLength(bytes), reinterpret_cast<jbyte*>(&found[0]));
    return found;
}

void fail(JNIEnv* env, const char* message) {
    env->ThrowNew(env->FindClass("java/lang/IllegalStateException"), message);
}

}  // namespace

// Text travels as UTF-8 bytes: JNI's own strings spell characters beyond the first 65,536 in another way.
extern "C" JNIEXPORT jlong JNICALL Java_app_Model_open(JNIEnv* env, jclass, jbyteArray folder) {
    try {
        return reinterpret_cast<jlong>(new app::Chat(text(env, folder)));
    } catch (const std::exception& error) {
        fail(env, error.what());
        return 0;
    }
}

extern "C" JNIEXPORT jbyteArray JNICALL Java_app_Model_say(JNIEnv* env, jclass, jlong chat, jbyteArray words) {
    try {
        std::ostringstream out;
        const std::string answer = reinterpret_cast<app::Chat*>(chat)->say(text(env, words), out);
        const jbyteArray bytes = env->NewByteArray(static_cast<jsize>(answer.size()));
        if (bytes != nullptr)
            env->SetByteArrayRegion(bytes, 0, static_cast<jsize>(answer.size()),
                                    reinterpret_cast<const jbyte*>(answer.data()));
        return bytes;
    } catch (const std::exception& error) {
        fail(env, error.what());
        return nullptr;
    }
}

extern "C" JNIEXPORT void JNICALL Java_app_Model_close(JNIEnv*, jclass, jlong chat) {
    delete reinterpret_cast<app::Chat*>(chat);
}

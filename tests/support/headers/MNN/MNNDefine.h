// The few declarations of MNN's public headers that examples/app uses, so that it can be compiled where MNN's are not.
#pragma once
#define MNN_VERSION_MAJOR 3
#define MNN_VERSION_MINOR 6
#define MNN_VERSION "3.6.1"

// A model directory on iOS: what the contract says is held against what is there, then MNN opens it. Objective-C++;
// Swift sees the class through the bridging header.

#import <Foundation/Foundation.h>

#include <sstream>

#include "chat.hpp"

@interface Model : NSObject
- (nullable instancetype)initWithFolder:(nonnull NSURL *)folder error:(NSError *_Nullable *_Nullable)error;
- (nonnull NSString *)say:(nonnull NSString *)words;  // slow, so not on the main thread
@end

static NSError *failure(NSString *message) {
    return [NSError errorWithDomain:@"Model" code:1 userInfo:@{NSLocalizedDescriptionKey : message}];
}

// What is wrong with a folder; nil when every file of the contract is there, whole, and made for this release of MNN.
static NSError *problem(NSURL *folder) {
    NSData *data = [NSData dataWithContentsOfURL:[folder URLByAppendingPathComponent:@"contract.json"]];
    NSDictionary *contract = data ? [NSJSONSerialization JSONObjectWithData:data options:0 error:nil] : nil;
    if (![contract isKindOfClass:NSDictionary.class]) return failure(@"the folder has no contract");
    if (![contract[@"target"][@"releases"] containsObject:@MNN_VERSION])
        return failure(@"the model is not made for MNN " MNN_VERSION);
    for (NSDictionary *entry in contract[@"files"]) {
        NSURL *file = [folder URLByAppendingPathComponent:entry[@"path"]];
        NSDictionary *found = [NSFileManager.defaultManager attributesOfItemAtPath:file.path error:nil];
        if (![found[NSFileSize] isEqual:entry[@"bytes"]])
            return failure([NSString stringWithFormat:@"%@ is not whole", entry[@"path"]]);
    }
    return nil;
}

@implementation Model {
    std::unique_ptr<app::Chat> _chat;
}

- (instancetype)initWithFolder:(NSURL *)folder error:(NSError **)error {
    if (!(self = [super init])) return nil;
    NSError *found = problem(folder);
    if (!found) {
        try {
            _chat = std::make_unique<app::Chat>(folder.path.UTF8String);
        } catch (const std::exception &caught) {
            found = failure(@(caught.what()));
        }
    }
    if (error) *error = found;
    return found ? nil : self;
}

- (NSString *)say:(NSString *)words {
    std::ostringstream out;
    const std::string answer = _chat->say(words.UTF8String, out);
    return [[NSString alloc] initWithBytes:answer.data() length:answer.size() encoding:NSUTF8StringEncoding] ?: @"";
}

@end

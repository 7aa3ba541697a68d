"""The C++11 header that checks inputs before inference: fixed code around a table of one model's signature."""

from __future__ import annotations

from typing import Any


def cpp_header(signature: dict[str, Any]) -> str:
    """The header for a signature in the form of `backends.guard.check_inputs.SIGNATURE`."""
    inputs = ",\n".join(_input(item) for item in signature["inputs"])
    dims = ",\n".join(_dim(name, dim) for name, dim in signature["dims"].items())
    past = text(signature["past"] or "")
    return (
        _HEAD
        + f"    static const Signature model = {{{{\n{inputs}}},\n        {{\n{dims}}},\n        {past}}};\n"
        + _TAIL
    )


def text(value: str) -> str:
    """A string literal of printable ASCII; other bytes as three octal digits."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{"".join(plain)}"'


def _input(item: dict[str, Any]) -> str:
    forms = ", ".join("Form{" + ", ".join(map(_axis, form)) + "}" for form in item["shapes"])
    limits = ", ".join(f"{str(limit is not None).lower()}, {_long(limit)}" for limit in (item["low"], item["high"]))
    names = ", ".join(text(item[key]) for key in ("name", "dtype", "meaning"))
    return f"        Input{{{names},\n              std::vector<Form>{{{forms}}}, {limits}}}"


def _axis(axis: int | str) -> str:
    return f'Axis{{{axis}, ""}}' if isinstance(axis, int) else f"Axis{{0, {text(axis)}}}"


def _dim(name: str, dim: dict[str, Any]) -> str:
    parts = ", ".join(map(text, dim["sum_of"]))
    high = -1 if dim["high"] is None else dim["high"]
    return (
        f"        Dimension{{{text(name)}, {_long(dim['low'])}, {_long(high)}, {_long(dim['multiple_of'])}, "
        f"std::vector<std::string>{{{parts}}}}}"
    )


def _long(number: int | None) -> str:
    return f"{number or 0}LL"


_HEAD = r"""// Checks what is fed to one model before the runtime sees it. Written beside the model; C++11, no dependencies.
//
//     std::vector<lading::Tensor> feed = {{"input_ids", "f32", {7, 1, 1024}, rows}, ...};
//     for (const lading::Problem& problem : lading::check(feed)) std::cerr << problem.code << " " << problem.message;
//
// `data` may be null; values are then not looked at. `previous` is the number of tokens in the runtime's cache.

#ifndef LADING_GUARD_H
#define LADING_GUARD_H

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lading {

struct Tensor {
    std::string name;
    std::string dtype;  // f32, f16, i32, i64, ...
    std::vector<std::int64_t> shape;
    const void* data;
};

struct Problem {
    std::string code;
    std::string message;
};

namespace detail {

struct Axis {
    std::int64_t size;
    std::string name;  // empty for a fixed size
};
typedef std::vector<Axis> Form;

struct Input {
    std::string name, dtype, meaning;
    std::vector<Form> forms;
    bool has_low;
    std::int64_t low;
    bool has_high;
    std::int64_t high;
};

struct Dimension {
    std::string name;
    std::int64_t low, high, multiple_of;  // high -1: unbounded
    std::vector<std::string> sum_of;
};

struct Signature {
    std::vector<Input> inputs;
    std::vector<Dimension> dims;
    std::string past;
};

inline const Signature& signature() {
"""

_TAIL = r"""    return model;
}

typedef std::map<std::string, std::int64_t> Bound;

inline std::string show(const std::vector<std::int64_t>& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

inline std::vector<Problem> fit(const Input& input, const Form& form, const Tensor& tensor, const Bound& bound,
                                Bound& made) {
    std::vector<Problem> found;
    for (std::size_t axis = 0; axis < form.size(); ++axis) {
        const Axis& want = form[axis];
        const std::int64_t size = tensor.shape[axis];
        const std::string place = " on axis " + std::to_string(axis) + " of input '" + input.name + "'";
        if (want.name.empty()) {
            if (size != want.size)
                found.push_back({"C829", "size " + std::to_string(size) + place + ", not " + std::to_string(want.size)});
            continue;
        }
        const Bound::const_iterator known = bound.find(want.name);
        const Bound::const_iterator own = made.find(want.name);
        if (known == bound.end() && own == made.end()) {
            made[want.name] = size;
        } else {
            const std::int64_t other = known != bound.end() ? known->second : own->second;
            if (other != size)
                found.push_back({"C826", "dimension " + want.name + " is " + std::to_string(size) + place + ", but " +
                                             std::to_string(other) + " elsewhere"});
        }
    }
    return found;
}

inline void check_shape(const Input& input, const Tensor& tensor, Bound& bound, std::vector<Problem>& found) {
    std::vector<Problem> first;
    bool any = false;
    for (const Form& form : input.forms) {
        if (form.size() != tensor.shape.size()) continue;
        Bound made;
        const std::vector<Problem> problems = fit(input, form, tensor, bound, made);
        if (problems.empty()) {
            bound.insert(made.begin(), made.end());
            return;
        }
        if (!any) first = problems;
        any = true;
    }
    if (any)
        found.insert(found.end(), first.begin(), first.end());
    else
        found.push_back({"C823", "input '" + input.name + "' has shape " + show(tensor.shape) +
                                     ", a rank that it does not take"});
}

template <typename T>
inline void check_numbers(const Input& input, const Tensor& tensor, std::vector<Problem>& found) {
    std::int64_t count = 1;
    for (std::int64_t size : tensor.shape) count *= size;
    const T* data = static_cast<const T*>(tensor.data);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t value = static_cast<std::int64_t>(data[i]);
        if ((input.has_low && value < input.low) || (input.has_high && value > input.high)) {
            found.push_back({"C827", "input '" + input.name + "' holds " + std::to_string(value) + " at element " +
                                         std::to_string(i)});
            return;
        }
    }
}

template <typename T>
inline void check_finite(const Input& input, const Tensor& tensor, std::vector<Problem>& found) {
    std::int64_t count = 1;
    for (std::int64_t size : tensor.shape) count *= size;
    const T* data = static_cast<const T*>(tensor.data);
    for (std::int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(data[i])) {
            found.push_back({"C828", "input '" + input.name + "' is not finite at element " + std::to_string(i)});
            return;
        }
    }
}

inline void check_values(const Input& input, const Tensor& tensor, std::vector<Problem>& found) {
    if (tensor.data == nullptr) return;
    if (input.dtype == "f32") check_finite<float>(input, tensor, found);
    else if (input.dtype == "f64") check_finite<double>(input, tensor, found);
    else if (input.dtype == "i32") check_numbers<std::int32_t>(input, tensor, found);
    else if (input.dtype == "i64") check_numbers<std::int64_t>(input, tensor, found);
}

inline void check_sums(const Signature& model, Bound& bound, std::vector<Problem>& found) {
    for (std::size_t before = bound.size() + 1; before != bound.size();) {
        before = bound.size();
        for (const Dimension& dim : model.dims) {
            if (dim.sum_of.empty()) continue;
            std::int64_t known = 0;
            std::vector<std::string> unknown;
            for (const std::string& part : dim.sum_of) {
                if (bound.count(part)) known += bound[part];
                else unknown.push_back(part);
            }
            if (!bound.count(dim.name) && unknown.empty()) bound[dim.name] = known;
            else if (bound.count(dim.name) && unknown.size() == 1 && bound[dim.name] >= known)
                bound[unknown[0]] = bound[dim.name] - known;
        }
    }
    for (const Dimension& dim : model.dims) {
        if (dim.sum_of.empty() || !bound.count(dim.name)) continue;
        std::int64_t known = 0;
        bool whole = true;
        for (const std::string& part : dim.sum_of) {
            if (bound.count(part)) known += bound[part];
            else whole = false;
        }
        const std::int64_t total = bound[dim.name];
        if (whole ? total != known : total < known)
            found.push_back({"C832", "dimension " + dim.name + " is " + std::to_string(total) + ", but its parts are " +
                                         std::to_string(known)});
    }
}

inline void check_ranges(const Signature& model, const Bound& bound, std::vector<Problem>& found) {
    for (const Dimension& dim : model.dims) {
        const Bound::const_iterator item = bound.find(dim.name);
        if (item == bound.end()) continue;
        const std::string is = "dimension " + dim.name + " is " + std::to_string(item->second);
        if (item->second < dim.low || (dim.high >= 0 && item->second > dim.high))
            found.push_back({"C824", is + "; allowed is " + std::to_string(dim.low) + ".." +
                                         (dim.high < 0 ? std::string() : std::to_string(dim.high))});
        else if (item->second % dim.multiple_of)
            found.push_back({"C825", is + ", which is no multiple of " + std::to_string(dim.multiple_of)});
    }
}

}  // namespace detail

// What is wrong with a feed; empty when it is right.
inline std::vector<Problem> check(const std::vector<Tensor>& feed, std::int64_t previous = -1) {
    const detail::Signature& model = detail::signature();
    std::vector<Problem> found;
    detail::Bound bound;
    if (previous >= 0 && !model.past.empty()) bound[model.past] = previous;
    for (const detail::Input& input : model.inputs) {
        const Tensor* tensor = nullptr;
        for (const Tensor& item : feed)
            if (item.name == input.name) tensor = &item;
        if (tensor == nullptr) {
            found.push_back({"C820", "input '" + input.name + "' is missing: " + input.meaning});
            continue;
        }
        if (tensor->dtype == input.dtype) detail::check_values(input, *tensor, found);
        else
            found.push_back({"C822", "input '" + input.name + "' has element type " + tensor->dtype + ", not " +
                                         input.dtype});
        detail::check_shape(input, *tensor, bound, found);
    }
    for (const Tensor& item : feed) {
        bool known = false;
        for (const detail::Input& input : model.inputs) known = known || input.name == item.name;
        if (!known) found.push_back({"C821", "the model has no input '" + item.name + "'"});
    }
    detail::check_sums(model, bound, found);
    detail::check_ranges(model, bound, found);
    return found;
}

}  // namespace lading

#endif  // LADING_GUARD_H
"""

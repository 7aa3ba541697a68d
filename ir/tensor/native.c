/* Inner loops of quantization, compiled: the same operations in the same order as the numpy code beside each caller, so
   that the bytes are equal whether this module is there or not. Every product and every sum is rounded by itself: it has
   to be compiled with -ffp-contract=off and without any flag that lets a compiler change the order of operations.

   Matrices are numpy arrays whose rows are contiguous; rows may be further apart than they are long. Columns never mix. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VERSION 1

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

#define LANES 32   /* columns that are worked on together */
#define MOST 64    /* rows of a group of features that are taken in turn */

/* ---- arguments ---- */

typedef struct {
    Py_buffer view;
    Py_ssize_t rows, columns, apart; /* apart: elements from one row to the next */
} Matrix;

static int take(PyObject *object, Matrix *matrix, Py_ssize_t itemsize, int writable) {
    int flags = PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &matrix->view, flags) < 0) return -1;
    Py_buffer *view = &matrix->view;
    int last = view->ndim - 1;
    int fits = view->itemsize == itemsize && (view->ndim == 1 || view->ndim == 2);
    if (fits && view->shape[last] > 1) fits = view->strides[last] == itemsize;
    if (fits && view->ndim == 2) fits = view->strides[0] % itemsize == 0;
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "not one or two dimensions of contiguous elements of %zd bytes", itemsize);
        PyBuffer_Release(view);
        return -1;
    }
    matrix->columns = view->shape[last];
    matrix->rows = view->ndim == 2 ? view->shape[0] : 1;
    matrix->apart = view->ndim == 2 ? view->strides[0] / itemsize : matrix->columns;
    return 0;
}

/* Takes `count` objects; sizes are those of elements, negative for what is written to. */
static int take_all(PyObject **objects, Matrix *matrices, const int *sizes, int count) {
    for (int at = 0; at < count; at++) {
        int size = sizes[at];
        if (take(objects[at], &matrices[at], size < 0 ? -size : size, size < 0) < 0) {
            while (at--) PyBuffer_Release(&matrices[at].view);
            return -1;
        }
    }
    return 0;
}

static PyObject *released(Matrix *matrices, int count, int fits) {
    for (int at = 0; at < count; at++) PyBuffer_Release(&matrices[at].view);
    if (fits) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the sizes of the arrays do not fit each other");
    return NULL;
}

#define FLOATS(matrix) ((float *)(matrix).view.buf)

/* ---- round to nearest ---- */

#define EXTREMES(name, word, signed_word, top)                                                                        \
    FAST static void name(const word *words, word *low, word *high, Py_ssize_t blocks, Py_ssize_t block, int zero) {  \
        for (Py_ssize_t at = 0; at < blocks; at++) {                                                                  \
            const word *restrict own = words + at * block;                                                                     \
            signed_word most = (signed_word)own[0];                                                                   \
            word largest = own[0], least = own[0];                                                                    \
            for (Py_ssize_t i = 0; i < block; i++) {                                                                  \
                word value = own[i];                                                                                  \
                signed_word as_signed = (signed_word)value;                                                           \
                most = as_signed > most ? as_signed : most;                                                           \
                largest = value > largest ? value : largest;                                                          \
                least = value < least ? value : least;                                                                \
            }                                                                                                         \
            if (zero) {                                                                                               \
                most = most > 0 ? most : 0;                                                                           \
                largest = largest > top ? largest : top;                                                              \
            } else {                                                                                                  \
                if (most < 0) most = (signed_word)least;                                                              \
                if (largest < top) largest = least;                                                                   \
            }                                                                                                         \
            low[at] = largest;                                                                                        \
            high[at] = (word)most;                                                                                    \
        }                                                                                                             \
    }

EXTREMES(extremes_16, uint16_t, int16_t, 0x8000u)
EXTREMES(extremes_32, uint32_t, int32_t, 0x80000000u)

static PyObject *block_extremes(PyObject *self, PyObject *args) {
    PyObject *objects[3];
    int zero;
    if (!PyArg_ParseTuple(args, "OOOp", &objects[0], &objects[1], &objects[2], &zero)) return NULL;
    Matrix m[3];
    PyObject *size = PyObject_GetAttrString(objects[0], "itemsize");
    if (size == NULL) return NULL;
    int item = (int)PyLong_AsLong(size);
    Py_DECREF(size);
    if (item != 2 && item != 4) {
        PyErr_SetString(PyExc_ValueError, "words have 2 or 4 bytes");
        return NULL;
    }
    int sizes[3] = {item, -item, -item};
    if (take_all(objects, m, sizes, 3) < 0) return NULL;
    Py_ssize_t blocks = m[0].rows, block = m[0].columns;
    int fits = m[0].apart == block && block > 0 && m[1].columns == blocks && m[2].columns == blocks;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if (item == 2) extremes_16(m[0].view.buf, m[1].view.buf, m[2].view.buf, blocks, block, zero);
        else extremes_32(m[0].view.buf, m[1].view.buf, m[2].view.buf, blocks, block, zero);
        Py_END_ALLOW_THREADS
    }
    return released(m, 3, fits);
}

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float from_single(uint32_t word) { return as_float(word); }
INLINE float from_brain(uint16_t word) { return as_float((uint32_t)word << 16); }
/* Finite halves: the exponent is moved by a product, which is exact and takes care of subnormal numbers. */
INLINE float from_half(uint16_t word) {
    float size = as_float((uint32_t)(word & 0x7fff) << 13) * 0x1p112f;
    return (word & 0x8000) ? -size : size;
}

#define CODES(name, word, widen)                                                                                      \
    FAST static void name(const word *words, const float *inverse, const float *shift, int one_shift, int8_t *codes,  \
                          Py_ssize_t blocks, Py_ssize_t block, float span, int low) {                                 \
        for (Py_ssize_t at = 0; at < blocks; at++) {                                                                  \
            const word *restrict own = words + at * block;                                                                     \
            int8_t *restrict out = codes + at * block;                                                                         \
            float factor = inverse[at], added = shift[one_shift ? 0 : at];                                            \
            for (Py_ssize_t i = 0; i < block; i++) {                                                                  \
                float value = widen(own[i]) * factor + added;                                                         \
                value = value > 0.0f ? value : 0.0f;                                                                  \
                value = value < span ? value : span;                                                                  \
                out[i] = (int8_t)((int32_t)value + low);                                                              \
            }                                                                                                         \
        }                                                                                                             \
    }

CODES(codes_single, uint32_t, from_single)
CODES(codes_brain, uint16_t, from_brain)
CODES(codes_half, uint16_t, from_half)

static PyObject *block_codes(PyObject *self, PyObject *args) {
    PyObject *objects[4];
    const char *kind;
    int bits;
    if (!PyArg_ParseTuple(args, "OOOOsi", &objects[0], &objects[1], &objects[2], &objects[3], &kind, &bits)) return NULL;
    int single = !strcmp(kind, "f32"), half = !strcmp(kind, "f16");
    Matrix m[4];
    int sizes[4] = {single ? 4 : 2, 4, 4, -1};
    if (take_all(objects, m, sizes, 4) < 0) return NULL;
    Py_ssize_t blocks = m[0].rows, block = m[0].columns;
    int one = m[2].columns == 1;
    int fits = m[0].apart == block && m[1].columns == blocks && (one || m[2].columns == blocks) && bits >= 2 && bits <= 8;
    fits = fits && m[3].rows == blocks && m[3].columns == block && m[3].apart == block;
    if (fits) {
        float span = (float)((1 << bits) - 1);
        int low = -(1 << (bits - 1));
        int8_t *out = m[3].view.buf;
        Py_BEGIN_ALLOW_THREADS
        if (single) codes_single(m[0].view.buf, FLOATS(m[1]), FLOATS(m[2]), one, out, blocks, block, span, low);
        else if (half) codes_half(m[0].view.buf, FLOATS(m[1]), FLOATS(m[2]), one, out, blocks, block, span, low);
        else codes_brain(m[0].view.buf, FLOATS(m[1]), FLOATS(m[2]), one, out, blocks, block, span, low);
        Py_END_ALLOW_THREADS
    }
    return released(m, 4, fits);
}

/* ---- packing ---- */

FAST static void pack_pairs(const uint8_t *restrict codes, uint8_t *restrict out, Py_ssize_t bytes) {
    for (Py_ssize_t i = 0; i < bytes; i++) {
        out[i] = (uint8_t)(((uint8_t)(codes[2 * i] + 8) << 4) | (uint8_t)(codes[2 * i + 1] + 8));
    }
}

FAST static void pack_fours(const uint8_t *restrict codes, uint8_t *restrict out, Py_ssize_t bytes) {
    for (Py_ssize_t i = 0; i < bytes; i++) {
        const uint8_t *own = codes + 4 * i;
        out[i] = (uint8_t)(((uint8_t)(own[0] + 2) << 6) | ((uint8_t)(own[1] + 2) << 4) | ((uint8_t)(own[2] + 2) << 2) |
                           (uint8_t)(own[3] + 2));
    }
}

FAST static void pack_bytes(const uint8_t *restrict codes, uint8_t *restrict out, Py_ssize_t bytes) {
    for (Py_ssize_t i = 0; i < bytes; i++) out[i] = (uint8_t)(codes[i] + 128);
}

static void pack_stream(const uint8_t *restrict codes, Py_ssize_t count, int bits, uint8_t *restrict out, Py_ssize_t bytes) {
    uint8_t half = (uint8_t)(1 << (bits - 1));
    Py_ssize_t groups = count / 8;
    for (Py_ssize_t group = 0; group < groups; group++) {
        const uint8_t *own = codes + 8 * group;
        uint64_t word = 0;
        for (int i = 0; i < 8; i++) word = (word << bits) | (uint8_t)(own[i] + half);
        for (int i = 0; i < bits; i++) out[group * bits + i] = (uint8_t)(word >> (8 * (bits - 1 - i)));
    }
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        Py_ssize_t at = 8 * groups + i;
        word = (word << bits) | (at < count ? (uint8_t)(codes[at] + half) : 0);
    }
    for (Py_ssize_t i = groups * bits; i < bytes; i++) out[i] = (uint8_t)(word >> (8 * (bits - 1 - (i - groups * bits))));
}

static PyObject *pack(PyObject *self, PyObject *args) {
    PyObject *objects[2];
    int bits;
    if (!PyArg_ParseTuple(args, "OOi", &objects[0], &objects[1], &bits)) return NULL;
    Matrix m[2];
    int sizes[2] = {1, -1};
    if (take_all(objects, m, sizes, 2) < 0) return NULL;
    Py_ssize_t count = m[0].columns, bytes = m[1].columns;
    int fits = m[0].rows == 1 && m[1].rows == 1 && bits >= 2 && bits <= 8 && bytes == (count * bits + 7) / 8;
    if (fits) {
        const uint8_t *codes = m[0].view.buf;
        uint8_t *out = m[1].view.buf;
        Py_BEGIN_ALLOW_THREADS
        if (bits == 8) {
            pack_bytes(codes, out, count);
        } else if (bits == 4 || bits == 2) {
            Py_ssize_t each = 8 / bits, whole = count / each;
            if (bits == 4) pack_pairs(codes, out, whole);
            else pack_fours(codes, out, whole);
            if (bytes > whole) pack_stream(codes + whole * each, count - whole * each, bits, out + whole, bytes - whole);
        } else {
            pack_stream(codes, count, bits, out, bytes);
        }
        Py_END_ALLOW_THREADS
    }
    return released(m, 2, fits);
}

/* ---- what searches for the numbers of blocks compute; blocks are columns ---- */

INLINE float clipped(float value, float low, float high) {
    value = low > value ? low : value;
    return high < value ? high : value;
}

INLINE void errors_of(const float *values, const float *share, const float *scale, const float *zero, float *codes,
                      float *error, Py_ssize_t rows, Py_ssize_t apart, float low, float high, int width) {
    float sum[LANES];
    for (int c = 0; c < width; c++) sum[c] = 0.0f;
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *restrict v = values + row * apart, *restrict s = share + row * apart;
        float *restrict q = codes + row * apart;
        for (int c = 0; c < width; c++) {
            float code = clipped(rintf((v[c] - zero[c]) / scale[c]), low, high);
            float off = (code * scale[c] + zero[c]) - v[c];
            q[c] = code;
            off = (off * off) * s[c];
            sum[c] = row ? sum[c] + off : off;
        }
    }
    for (int c = 0; c < width; c++) error[c] = sum[c];
}

FAST static void all_errors(const float *values, const float *share, const float *scale, const float *zero, float *codes,
                            float *error, Py_ssize_t rows, Py_ssize_t columns, float low, float high) {
    Py_ssize_t c = 0;
    for (; c + LANES <= columns; c += LANES)
        errors_of(values + c, share + c, scale + c, zero + c, codes + c, error + c, rows, columns, low, high, LANES);
    if (c < columns)
        errors_of(values + c, share + c, scale + c, zero + c, codes + c, error + c, rows, columns, low, high,
                  (int)(columns - c));
}

static PyObject *column_errors(PyObject *self, PyObject *args) {
    PyObject *objects[6];
    float low, high;
    if (!PyArg_ParseTuple(args, "OOOOOOff", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4], &objects[5],
                          &low, &high))
        return NULL;
    Matrix m[6];
    int sizes[6] = {4, 4, 4, 4, -4, -4};
    if (take_all(objects, m, sizes, 6) < 0) return NULL;
    Py_ssize_t rows = m[0].rows, columns = m[0].columns;
    int fits = m[2].columns == columns && m[3].columns == columns && m[5].columns == columns;
    for (int at = 0; at < 5; at += at ? 3 : 1)
        fits = fits && m[at].rows == rows && m[at].columns == columns && m[at].apart == columns;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        all_errors(FLOATS(m[0]), FLOATS(m[1]), FLOATS(m[2]), FLOATS(m[3]), FLOATS(m[4]), FLOATS(m[5]), rows, columns, low,
                   high);
        Py_END_ALLOW_THREADS
    }
    return released(m, 6, fits);
}

INLINE void sums_of(const float *values, const float *share, const float *codes, const float *point, float *first,
                    float *product, float *square, Py_ssize_t rows, Py_ssize_t apart, int width) {
    float f[LANES], p[LANES], s[LANES];
    for (int c = 0; c < width; c++) f[c] = p[c] = s[c] = 0.0f;
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *restrict v = values + row * apart, *restrict w = share + row * apart;
        const float *restrict q = codes + row * apart;
        for (int c = 0; c < width; c++) {
            float code = point ? q[c] - point[c] : q[c];
            float weighed = code * w[c], with_value = weighed * v[c], with_code = weighed * code;
            f[c] = row ? f[c] + weighed : weighed;
            p[c] = row ? p[c] + with_value : with_value;
            s[c] = row ? s[c] + with_code : with_code;
        }
    }
    for (int c = 0; c < width; c++) {
        first[c] = f[c];
        product[c] = p[c];
        square[c] = s[c];
    }
}

FAST static void all_sums(const float *values, const float *share, const float *codes, const float *point, float *first,
                          float *product, float *square, Py_ssize_t rows, Py_ssize_t columns) {
    for (Py_ssize_t c = 0; c < columns; c += LANES) {
        const float *moved = point ? point + c : NULL;
        if (c + LANES <= columns)
            sums_of(values + c, share + c, codes + c, moved, first + c, product + c, square + c, rows, columns, LANES);
        else
            sums_of(values + c, share + c, codes + c, moved, first + c, product + c, square + c, rows, columns,
                    (int)(columns - c));
    }
}

static PyObject *column_sums(PyObject *self, PyObject *args) {
    PyObject *objects[7];
    if (!PyArg_ParseTuple(args, "OOOOOOO", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4], &objects[5],
                          &objects[6]))
        return NULL;
    Matrix m[7];
    int sizes[7] = {4, 4, 4, 4, -4, -4, -4};
    if (take_all(objects, m, sizes, 7) < 0) return NULL;
    Py_ssize_t rows = m[0].rows, columns = m[0].columns;
    int fits = m[3].columns == columns || m[3].columns == 0;
    for (int at = 0; at < 3; at++)
        fits = fits && m[at].rows == rows && m[at].columns == columns && m[at].apart == columns;
    for (int at = 4; at < 7; at++) fits = fits && m[at].columns == columns;
    if (fits) {
        const float *point = m[3].columns ? FLOATS(m[3]) : NULL;
        Py_BEGIN_ALLOW_THREADS
        all_sums(FLOATS(m[0]), FLOATS(m[1]), FLOATS(m[2]), point, FLOATS(m[4]), FLOATS(m[5]), FLOATS(m[6]), rows, columns);
        Py_END_ALLOW_THREADS
    }
    return released(m, 7, fits);
}

/* ---- features one after the other; rows of the weight are columns ---- */

typedef struct {
    const float *coupling; /* [n, n]: how much a change of one feature moves a later one */
    Py_ssize_t coupled;
    const float *shares; /* [n], descent alone */
    float *moved;        /* [n, columns]: the targets so far, or the pull */
    const float *shifted, *scale, *inverse;
    float *codes, *errors, *changes;
    Py_ssize_t apart[7]; /* of moved, shifted, scale, inverse, codes, errors, changes */
    int count;
    float low, high;
} Turn;

#define AT(name, number, place) (turn->name + (place) * turn->apart[number] + at)

INLINE void feed_back_some(const Turn *turn, Py_ssize_t at, int width) {
    float moved[MOST][LANES];
    for (int i = 0; i < turn->count; i++) {
        const float *from = AT(moved, 0, i);
        for (int c = 0; c < width; c++) moved[i][c] = from[c];
    }
    for (int i = 0; i < turn->count; i++) {
        const float *restrict shifted = AT(shifted, 1, i), *restrict scale = AT(scale, 2, i);
        const float *restrict inverse = AT(inverse, 3, i);
        float *restrict codes = AT(codes, 4, i), *restrict errors = AT(errors, 5, i);
        float *restrict out = AT(moved, 0, i);
        float error[LANES];
        for (int c = 0; c < width; c++) {
            float target = shifted[c] + moved[i][c];
            float code = clipped(rintf(target * inverse[c]), turn->low, turn->high);
            out[c] = target;
            codes[c] = code;
            error[c] = shifted[c] - code * scale[c];
            errors[c] = error[c];
        }
        for (int j = i + 1; j < turn->count; j++) {
            float factor = turn->coupling[i * turn->coupled + j];
            for (int c = 0; c < width; c++) moved[j][c] = moved[j][c] + factor * error[c];
        }
    }
}

INLINE void descend_some(const Turn *turn, Py_ssize_t at, int width) {
    float pull[MOST][LANES];
    for (int i = 0; i < turn->count; i++) {
        const float *from = AT(moved, 0, i);
        for (int c = 0; c < width; c++) pull[i][c] = from[c];
    }
    for (int i = 0; i < turn->count; i++) {
        const float *restrict shifted = AT(shifted, 1, i), *restrict scale = AT(scale, 2, i);
        const float *restrict inverse = AT(inverse, 3, i);
        float *restrict codes = AT(codes, 4, i), *restrict errors = AT(errors, 5, i);
        float *restrict changes = AT(changes, 6, i), *restrict out = AT(moved, 0, i);
        float share = turn->shares[i], change[LANES];
        for (int c = 0; c < width; c++) {
            float target = (pull[i][c] * share - errors[c]) + shifted[c];
            float code = clipped(rintf(target * inverse[c]), turn->low, turn->high);
            float error = shifted[c] - code * scale[c];
            out[c] = pull[i][c];
            codes[c] = code;
            change[c] = error - errors[c];
            changes[c] = change[c];
            errors[c] = error;
        }
        for (int j = i + 1; j < turn->count; j++) {
            float factor = turn->coupling[i * turn->coupled + j];
            for (int c = 0; c < width; c++) pull[j][c] = pull[j][c] + factor * change[c];
        }
    }
}

FAST static void feed_back_all(const Turn *turn, Py_ssize_t columns) {
    Py_ssize_t at = 0;
    for (; at + LANES <= columns; at += LANES) feed_back_some(turn, at, LANES);
    if (at < columns) feed_back_some(turn, at, (int)(columns - at));
}

FAST static void descend_all(const Turn *turn, Py_ssize_t columns) {
    Py_ssize_t at = 0;
    for (; at + LANES <= columns; at += LANES) descend_some(turn, at, LANES);
    if (at < columns) descend_some(turn, at, (int)(columns - at));
}

static PyObject *in_turn(PyObject *args, int descent) {
    /* coupling, shares, moved, shifted, scale, inverse, codes, errors, changes, low, high */
    PyObject *objects[9];
    Turn turn;
    if (!PyArg_ParseTuple(args, "OOOOOOOOOff", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4],
                          &objects[5], &objects[6], &objects[7], &objects[8], &turn.low, &turn.high))
        return NULL;
    Matrix m[9];
    int sizes[9] = {4, 4, -4, 4, 4, 4, -4, -4, -4};
    if (take_all(objects, m, sizes, 9) < 0) return NULL;
    Py_ssize_t count = m[2].rows, columns = m[2].columns;
    int fits = count <= MOST && m[0].rows == count && m[0].columns == count && m[1].columns >= count;
    for (int at = 2; at < 9; at++) {
        fits = fits && m[at].rows == count && m[at].columns == columns;
        turn.apart[at - 2] = m[at].apart;
    }
    if (fits) {
        turn.coupling = FLOATS(m[0]);
        turn.coupled = m[0].apart;
        turn.shares = FLOATS(m[1]);
        turn.moved = FLOATS(m[2]);
        turn.shifted = FLOATS(m[3]);
        turn.scale = FLOATS(m[4]);
        turn.inverse = FLOATS(m[5]);
        turn.codes = FLOATS(m[6]);
        turn.errors = FLOATS(m[7]);
        turn.changes = FLOATS(m[8]);
        turn.count = (int)count;
        Py_BEGIN_ALLOW_THREADS
        if (descent) descend_all(&turn, columns);
        else feed_back_all(&turn, columns);
        Py_END_ALLOW_THREADS
    }
    return released(m, 9, fits);
}

static PyObject *feed_back(PyObject *self, PyObject *args) { return in_turn(args, 0); }
static PyObject *descend(PyObject *self, PyObject *args) { return in_turn(args, 1); }

/* ---- the module ---- */

static PyMethodDef METHODS[] = {
    {"block_extremes", block_extremes, METH_VARARGS, NULL},
    {"block_codes", block_codes, METH_VARARGS, NULL},
    {"pack", pack, METH_VARARGS, NULL},
    {"column_errors", column_errors, METH_VARARGS, NULL},
    {"column_sums", column_sums, METH_VARARGS, NULL},
    {"feed_back", feed_back, METH_VARARGS, NULL},
    {"descend", descend, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int filled(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, filled}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }

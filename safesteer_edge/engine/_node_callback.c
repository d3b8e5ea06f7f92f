/* The callback of node_catcher.py in C: one in Python costs its call at every node of every graph.

   Python owns all memory. ggml's functions come as pointers, so that this builds without ggml. */

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The same fields as _Shared in node_catcher.py, which checks the size alone. */
typedef struct {
    const char *(*get_name)(const void *tensor);
    int64_t (*n_rows)(const void *tensor);
    size_t (*n_bytes)(const void *tensor);
    void (*copy_out)(const void *tensor, void *target, size_t offset, size_t size);
    const char *const *names; /* [n_names] */
    int64_t *n_caught;        /* [n_names]: how many rows of each were copied, 0 before */
    char *rows;               /* [n_names][max_rows][row_bytes] */
    int64_t n_names;
    int64_t max_rows;
    int64_t row_bytes;
    int64_t is_enabled;
    int64_t has_failed;
} shared;

/* ask: may llama.cpp show this node? Else: here it is, computed. False then stops the graph. */
static bool on_node(const void *tensor, bool ask, void *user_data) {
    shared *self = user_data;
    if (!self->is_enabled || self->has_failed) {
        return !ask;
    }
    const char *name = self->get_name(tensor);
    for (int64_t index = 0; index < self->n_names; index++) {
        if (strcmp(name, self->names[index]) != 0) {
            continue;
        }
        int64_t n_rows = self->n_rows(tensor);
        if (ask) {
            self->n_caught[index] = 0;
            return n_rows <= self->max_rows;
        }
        size_t size = (size_t)n_rows * (size_t)self->row_bytes;
        if (n_rows > self->max_rows || self->n_bytes(tensor) != size) {
            self->has_failed = 1;
            return false;
        }
        self->copy_out(tensor, self->rows + index * self->max_rows * self->row_bytes, 0, size);
        self->n_caught[index] = n_rows;
        return true;
    }
    return !ask;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_node_callback", NULL, -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__node_callback(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL
        && (PyModule_AddObject(module, "ADDRESS", PyLong_FromVoidPtr((void *)on_node)) < 0
            || PyModule_AddIntConstant(module, "SHARED_BYTES", sizeof(shared)) < 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

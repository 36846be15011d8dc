/* pyquant's engine for C: runs an integer network that Python saved, without Python or torch.
 *
 *     pq_program *program;
 *     if (pq_load("model.pq", NULL, &program) != PQ_OK) { puts(pq_last_error()); return 1; }
 *     const void *inputs[] = {image};
 *     void *outputs[] = {scores};
 *     if (pq_run(program, 1, inputs, outputs, 1) != PQ_OK) { puts(pq_last_error()); return 1; }
 *     pq_free(program);
 *
 * Link with libpyquant.so, which needs the C and C++ run-time libraries and nothing else. Every function may be called
 * from any number of threads; a program is never changed by what runs it, so many may run one at the same time, and a
 * process may fork before, between and after runs. pq_free alone must come when no run of its program is under way.
 *
 * Outputs are the same bytes on every machine, for every instruction set, batch and number of threads, and the same that
 * Python gives.
 */
#ifndef PYQUANT_H
#define PYQUANT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PQ_API __attribute__((visibility("default")))
#else
#define PQ_API
#endif

/* Raised when programs compiled against an older header can no longer run with the library. */
#define PQ_ABI_VERSION 1

/* PQ_ABI_VERSION of the library, and the release it comes from, such as "0.1.0". */
PQ_API int pq_abi_version(void);
PQ_API const char *pq_version(void);

typedef enum pq_status {
  PQ_OK = 0,
  PQ_BAD_ARGUMENT = 1, /* null where something is needed, a number out of range, an instruction set this machine lacks */
  PQ_BAD_FILE = 2,     /* there is no such file, or it cannot be read */
  PQ_BAD_PROGRAM = 3,  /* truncated, altered, of another format, or a network that this engine cannot run */
  PQ_NO_MEMORY = 4,
  PQ_FAILED = 5 /* anything else, such as a thread that cannot be started */
} pq_status;

/* What went wrong in this thread's latest call that did not return PQ_OK: one sentence, valid until its next such call.
 * Never NULL. */
PQ_API const char *pq_last_error(void);

typedef struct pq_program pq_program;

/* Load a file that Net.save wrote. `isa` is the instruction set to use: NULL or "auto" for the best of this machine,
 * or one of those that pq_isas lists. On success *program is to be freed by pq_free; on failure it is NULL. */
PQ_API pq_status pq_load(const char *path, const char *isa, pq_program **program);

/* The same of a file's bytes in memory, which may go when this returns. */
PQ_API pq_status pq_load_memory(const void *bytes, size_t size, const char *isa, pq_program **program);

/* Free a program; NULL is allowed. */
PQ_API void pq_free(pq_program *program);

/* The instruction set that a program uses; it lives as long as the program. */
PQ_API const char *pq_isa(const pq_program *program);

/* The instruction sets that this machine has, best first, with commas between them. */
PQ_API const char *pq_isas(void);

typedef enum pq_dtype { PQ_FLOAT32 = 0, PQ_UINT8 = 1 } pq_dtype;

/* How the sizes of a shape are to be read. */
typedef enum pq_layout {
  PQ_FLAT = 0, /* (F), (T, F) or (): as it stands */
  PQ_CHW = 1,  /* float images: channels, height, width, as torch has them */
  PQ_HWC = 2   /* codes: height, width, channels */
} pq_layout;

/* An input or output: a contiguous array of [batch][shape[0]]...[shape[rank - 1]] elements, no padding anywhere. */
typedef struct pq_tensor {
  const char *name; /* lives as long as the program */
  pq_dtype dtype;
  pq_layout layout;
  int rank; /* 0 to 3, the batch left out */
  int64_t shape[3];
  int64_t elements; /* product of the shape: elements a sample */
} pq_tensor;

PQ_API int pq_input_count(const pq_program *program);
PQ_API int pq_output_count(const pq_program *program);
PQ_API pq_status pq_input(const pq_program *program, int index, pq_tensor *tensor);
PQ_API pq_status pq_output(const pq_program *program, int index, pq_tensor *tensor);

/* Bytes that a run allocates at first and the program then keeps, inputs and outputs not among them; 0 for
 * arguments that pq_run refuses. */
PQ_API int64_t pq_run_memory(const pq_program *program, int64_t batch, int threads);

/* Run `batch` samples, 1 to 2^30, with up to `threads` threads, the caller's among them.
 *
 * inputs: one pointer for each input, in order; outputs: one for each output, to memory that no input and no other
 * output shares. Any address will do for codes; floats lie on multiples of 4. What a run allocates is kept for the
 * next, so that one with no larger batch and no more threads allocates nothing. */
PQ_API pq_status pq_run(const pq_program *program, int64_t batch, const void *const *inputs, void *const *outputs,
                        int threads);

#ifdef __cplusplus
}
#endif
#endif

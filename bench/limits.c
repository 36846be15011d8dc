// What one core of this machine can do at most: loops of one instruction, or of plain reads and copies. Compiled on demand
// by limits.py. Every loop is inline assembly or goes through volatile, so that no compiler can leave work out.
// Work is counted in operations (a multiply-add is two) or in bytes (a copy counts its reads and its writes).
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#include <sys/syscall.h>
#endif

enum { VNNI512, VNNI256, AMX, MADD, FMA512, FMA256, READ, COPY, COPY_STREAM };

typedef struct {
  int which;
  long repeats;   // of the loop's body, or of the pass over the buffer
  size_t bytes;   // of the part of one thread: read, or copied
  char* from;
  char* to;
} Job;

#ifdef __x86_64__
#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define TARGET(features) __attribute__((target(features), noinline))

// Twelve chains hide the latency of two units at five cycles each.
#define CHAINS(name, features, vector, zero, body)   \
  TARGET(features) static void name(long repeats) {  \
    vector a = zero, b = zero;                       \
    EACH(CHAIN_##vector)                             \
    for (long i = 0; i < repeats; ++i) {             \
      EACH(body) EACH(body)                          \
    }                                                \
  }
#define CHAIN___m512i(i) __m512i c##i = _mm512_setzero_si512();
#define CHAIN___m256i(i) __m256i c##i = _mm256_setzero_si256();
#define CHAIN___m512(i) __m512 c##i = _mm512_setzero_ps();
#define CHAIN___m256(i) __m256 c##i = _mm256_setzero_ps();
#define DOT(i) asm volatile("vpdpbusd %1, %2, %0" : "+v"(c##i) : "v"(a), "v"(b));
#define DOT_VEX(i) asm volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(c##i) : "x"(a), "x"(b));
#define MADD16(i)                                                                                            \
  {                                                                                                          \
    __m256i t;                                                                                               \
    asm volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(c##i), "=&x"(t) : "x"(a), "x"(b)); \
  }
#define FMA(i) asm volatile("vfmadd231ps %1, %2, %0" : "+v"(c##i) : "v"(a), "v"(b));
#define FMA_VEX(i) asm volatile("vfmadd231ps %1, %2, %0" : "+x"(c##i) : "x"(a), "x"(b));

CHAINS(vnni512, "avx512f", __m512i, _mm512_set1_epi8(1), DOT)
#ifdef NEW_INSTRUCTIONS
CHAINS(vnni256, "avx2", __m256i, _mm256_set1_epi8(1), DOT_VEX)
#endif
CHAINS(madd, "avx2", __m256i, _mm256_set1_epi16(1), MADD16)
CHAINS(fma512, "avx512f", __m512, _mm512_set1_ps(1e-9f), FMA)
CHAINS(fma256, "avx2", __m256, _mm256_set1_ps(1e-9f), FMA_VEX)

#ifdef NEW_INSTRUCTIONS
static int asked_for_tiles(void) {
  // ARCH_REQ_XCOMP_PERM for XTILEDATA: the kernel gives tiles to processes that ask.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

// A CPUID feature bit of leaf 7; __builtin_cpu_supports does not know all of them in every compiler.
static int leaf7(int subleaf, int reg, int bit) {
  uint32_t r[4];
  asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(7), "c"(subleaf));
  return r[reg] >> bit & 1;
}

static void amx(long repeats) {
  // Palette 1; eight tiles of 16 rows of 64 bytes. Four sums, two left and two right tiles, as a kernel would use them.
  struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } config = {.palette = 1};
  for (int i = 0; i < 8; ++i) config.columns[i] = 64, config.rows[i] = 16;
  asm volatile("ldtilecfg %0" ::"m"(config));
  asm volatile(
      "tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3\n\t"
      "tilezero %tmm4\n\ttilezero %tmm5\n\ttilezero %tmm6\n\ttilezero %tmm7");
  for (long i = 0; i < repeats; ++i)
    asm volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\n\ttdpbusd %tmm7, %tmm4, %tmm1\n\t"
        "tdpbusd %tmm6, %tmm5, %tmm2\n\ttdpbusd %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
}
#endif

// One load after another; the results go nowhere, and asm volatile keeps them all.
TARGET("avx512f") static void read512(const char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 256)
    asm volatile(
        "vmovdqu64 (%0), %%zmm0\n\tvmovdqu64 64(%0), %%zmm1\n\tvmovdqu64 128(%0), %%zmm2\n\tvmovdqu64 192(%0), %%zmm3" ::"r"(p + i)
        : "xmm0", "xmm1", "xmm2", "xmm3");
}
TARGET("avx2") static void read256(const char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 256)
    asm volatile(
        "vmovdqu (%0), %%ymm0\n\tvmovdqu 32(%0), %%ymm1\n\tvmovdqu 64(%0), %%ymm2\n\tvmovdqu 96(%0), %%ymm3\n\t"
        "vmovdqu 128(%0), %%ymm0\n\tvmovdqu 160(%0), %%ymm1\n\tvmovdqu 192(%0), %%ymm2\n\tvmovdqu 224(%0), %%ymm3" ::"r"(p + i)
        : "xmm0", "xmm1", "xmm2", "xmm3");
}
TARGET("avx512f") static void copy512(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
}
TARGET("avx512f") static void stream512(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) _mm512_stream_si512((void*)(to + i), _mm512_loadu_si512(from + i));
}
static void stream128(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 16)
    _mm_stream_si128((__m128i*)(to + i), _mm_loadu_si128((const __m128i*)(from + i)));
}
#endif

typedef uint64_t Pair __attribute__((vector_size(16)));

static void read_plain(const char* p, size_t bytes) {
  Pair sums[8] = {{0}};
  for (size_t i = 0; i < bytes; i += 128)
    for (int j = 0; j < 8; ++j) sums[j] |= ((const Pair*)(p + i))[j];
  for (int j = 0; j < 8; ++j) (void)*(volatile Pair*)&sums[j];
}

static void read_bytes(const char* p, size_t bytes) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return read512(p, bytes);
  if (__builtin_cpu_supports("avx2")) return read256(p, bytes);
#endif
  read_plain(p, bytes);
}

static void copy_bytes(char* to, const char* from, size_t bytes) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return copy512(to, from, bytes);
#endif
  for (size_t i = 0; i < bytes; i += 64) memcpy(to + i, from + i, 64);
}

static void stream_bytes(char* to, const char* from, size_t bytes) {
#ifdef __x86_64__
  __builtin_cpu_supports("avx512f") ? stream512(to, from, bytes) : stream128(to, from, bytes);
  _mm_sfence();
#else
  (void)to, (void)from, (void)bytes;
#endif
}

int limit_available(int which) {
#ifdef __x86_64__
  __builtin_cpu_init();
  const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  switch (which) {
    case VNNI512: return avx512 && __builtin_cpu_supports("avx512vnni");
#ifdef NEW_INSTRUCTIONS
    case VNNI256: return avx2 && leaf7(1, 0, 4);
    case AMX: return avx512 && leaf7(0, 3, 24) && leaf7(0, 3, 25) && asked_for_tiles();
#endif
    case MADD:
    case FMA256: return avx2;
    case FMA512: return avx512;
    case COPY_STREAM: return 1;
  }
#endif
  return which == READ || which == COPY;
}

static void* work(void* pointer) {
  const Job* job = pointer;
  switch (job->which) {
#ifdef __x86_64__
    case VNNI512: vnni512(job->repeats); break;
    case MADD: madd(job->repeats); break;
    case FMA512: fma512(job->repeats); break;
    case FMA256: fma256(job->repeats); break;
#ifdef NEW_INSTRUCTIONS
    case VNNI256: vnni256(job->repeats); break;
    case AMX: amx(job->repeats); break;
#endif
#endif
    case READ:
      for (long i = 0; i < job->repeats; ++i) read_bytes(job->from, job->bytes);
      break;
    case COPY:
      for (long i = 0; i < job->repeats; ++i) copy_bytes(job->to, job->from, job->bytes);
      break;
    case COPY_STREAM:
      for (long i = 0; i < job->repeats; ++i) stream_bytes(job->to, job->from, job->bytes);
      break;
  }
  return NULL;
}

// Operations or bytes of one repeat.
static double work_of(const Job* job) {
  switch (job->which) {
    case VNNI512: return 24 * 128;
    case VNNI256: return 24 * 64;
    case AMX: return 4 * 2 * 16 * 16 * 64;
    case MADD: return 24 * 32;
    case FMA512: return 24 * 32;
    case FMA256: return 24 * 16;
    case READ: return (double)job->bytes;
  }
  return 2.0 * job->bytes;
}

// Bytes of the first, second or third cache of data; 0 or less where the system does not say.
long limit_cache(int level) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return sysconf(names[level - 1]);
#else
  (void)level;
  return 0;
#endif
}

// Memory on huge pages where the system gives them, every page written once; NULL if there is not so much.
void* limit_memory(size_t bytes) {
  const size_t huge = (size_t)2 << 20;
  char* p = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
  p = (char*)(((uintptr_t)p + huge - 1) & ~(uintptr_t)(huge - 1));
#ifdef MADV_HUGEPAGE
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
  memset(p, 1, bytes);
  return p;
}

// Runs a loop on `threads` threads, each on a part of its own; returns the operations or bytes of all of them.
double limit_run(int which, int threads, long repeats, char* from, char* to, size_t bytes) {
  Job jobs[64];
  pthread_t others[64];
  if (threads > 64) threads = 64;
  const size_t part = bytes / threads / 256 * 256;
  double total = 0;
  for (int i = 0; i < threads; ++i) {
    jobs[i] = (Job){which, repeats, part, from + i * part, to + i * part};
    total += repeats * work_of(&jobs[i]);
    if (i && pthread_create(&others[i], NULL, work, &jobs[i])) abort();
  }
  work(&jobs[0]);
  for (int i = 1; i < threads; ++i) pthread_join(others[i], NULL);
  return total;
}

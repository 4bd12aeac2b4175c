/* Measures how many float32 operations a second the cores can do: fused multiply-adds on
   registers alone, in as many independent chains as hide their latency. */
#include <pthread.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
/* Keeps a chain in its register and the loop as it stands. */
#if defined(__AVX512F__)
#define KEEP(s) __asm__ volatile("" : "+v"(s))
#elif defined(__x86_64__)
#define KEEP(s) __asm__ volatile("" : "+x"(s))
#elif defined(__aarch64__)
#define KEEP(s) __asm__ volatile("" : "+w"(s))
#endif

typedef float vec __attribute__((vector_size(BYTES)));
#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define CHAINS 12
#define START(k) vec s##k = (vec){0} + (float)(k + 1);
#define STEP(k) s##k = s##k * a + b; KEEP(s##k);

static void *chains(void *argument)
{
    long iterations = *(long *)argument;
    vec a = (vec){0} + 0.999f, b = (vec){0} + 0.001f;
    EACH(START)
    for (long n = 0; n < iterations; n++) {
        EACH(STEP)
    }
    return 0;
}

/* Runs on so many threads at once (at most 256); returns the operations done, or -1. */
double run(long iterations, int threads)
{
    pthread_t others[256];
    int started = 0;
    if (threads < 1 || threads > 256)
        return -1;
    while (started < threads - 1 &&
           pthread_create(&others[started], 0, chains, &iterations) == 0)
        started++;
    chains(&iterations);
    for (int k = 0; k < started; k++)
        pthread_join(others[k], 0);
    return (double)iterations * (started + 1) * CHAINS * (sizeof(vec) / sizeof(float)) * 2;
}

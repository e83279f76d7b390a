/* Loaded before the C library by the short form (scripts/fuzz.sh): std's maps get the same keys in each run, so that their
 * iteration, which the fuzzer sees as coverage, leads to the same inputs. */
#include <string.h>
#include <sys/types.h>

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
  (void)flags;
  memset(buffer, 7, length);
  return (ssize_t)length;
}

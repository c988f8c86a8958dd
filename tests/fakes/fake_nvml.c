/* Fake libnvidia-ml.so.1, part 1: the shared state, the power model, init and shutdown.
 *
 * The state is one mmap'ed file ($FAKE_NVML_STATE) that a test edits through fake_nvml.py. Any
 * number of processes and threads may use it: each call integrates the energy under a lock.
 * Power model: P = idle + (peak - idle) * util * (f / f_max)^3, the clock f lowered until
 * P <= limit. It is a test double's model, not a claim about real GPUs.
 */
#include "fake_nvml.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

fake_state *S;
static int fd = -1, users;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void file_lock(int type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
  while (fcntl(fd, F_SETLKW, &lock) && errno == EINTR) {
  }
}

uint64_t now_ns(void) {
  if (S->virtual_ns) return S->virtual_ns;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

uint32_t enforced_mw(const fake_device *d) {
  return d->oob_limit_mw && d->oob_limit_mw < d->limit_mw ? d->oob_limit_mw : d->limit_mw;
}

double sm_clock_mhz(const fake_device *d) {
  if (!d->util) return 345;
  double f = d->lock_max && d->lock_max < d->sm_max ? d->lock_max : d->sm_max;
  double span = ((double)d->peak_mw - d->idle_mw) * d->util / 100.0;
  double limit = enforced_mw(d);
  if (limit < d->idle_mw + span * pow(f / d->sm_max, 3))
    f = d->sm_max * cbrt(fmax(0.001, (limit - d->idle_mw) / span));
  return f;
}

double draw_mw(const fake_device *d) {
  if (d->power_override_mw >= 0) return d->power_override_mw;
  if (!d->util) return d->idle_mw;
  double span = ((double)d->peak_mw - d->idle_mw) * d->util / 100.0;
  return d->idle_mw + span * pow(sm_clock_mhz(d) / d->sm_max, 3);
}

/* Keeps a point about every 1/32 of the averaging time, so that the ring spans twice of it. */
static void remember(fake_device *d, uint64_t n) {
  fake_point *last = &d->history[(d->n_history + MAXHIST - 1) % MAXHIST];
  if (d->n_history && n - last->ns < d->power_mean_ms * 1000000ull / 32) return;
  d->history[d->n_history++ % MAXHIST] = (fake_point){n, d->used_mj};
}

static double mean_mw(const fake_device *d) {
  uint64_t n = now_ns(), from = n - d->power_mean_ms * 1000000ull;
  unsigned kept = d->n_history < MAXHIST ? d->n_history : MAXHIST;
  fake_point later = {n, d->used_mj};
  for (unsigned i = 1; i <= kept; i++) { /* backwards in time, to the first point before `from` */
    fake_point p = d->history[(d->n_history - i) % MAXHIST];
    if (p.ns <= from && later.ns > p.ns) {
      double part = (double)(from - p.ns) / (later.ns - p.ns);
      double then = p.used_mj + part * (later.used_mj - p.used_mj);
      return (d->used_mj - then) * 1e9 / (n - from);
    }
    later = p;
  }
  return n > later.ns ? (d->used_mj - later.used_mj) * 1e9 / (n - later.ns) : draw_mw(d);
}

double sensor_mw(const fake_device *d, int instant) {
  double mw = instant || !d->power_mean_ms ? draw_mw(d) : mean_mw(d);
  return d->power_permille ? mw * d->power_permille / 1000 : mw;
}

static void integrate(void) {
  uint64_t n = now_ns();
  for (unsigned i = 0; i < S->ndev; i++) {
    fake_device *d = &S->dev[i];
    if (d->last_ns && n > d->last_ns) {
      double more = draw_mw(d) * (n - d->last_ns) / 1e9;
      d->used_mj += more;
      if (!d->energy_frozen) d->energy_mj += more;
    }
    d->last_ns = n;
    if (d->power_mean_ms) remember(d, n);
  }
}

static int applies(const fake_failure *f, const char *fn, int needs_device, int index) {
  if (!f->fn[0] || !f->left || (f->dev >= 0 && f->dev != index)) return 0;
  return !strcmp(f->fn, fn) || (needs_device && !strcmp(f->fn, "*"));
}

nvmlReturn_t enter(const char *fn, nvmlDevice_t handle, int needs_device, fake_device **d) {
  pthread_mutex_lock(&mutex);
  if (!users) {
    pthread_mutex_unlock(&mutex);
    return NVML_ERROR_UNINITIALIZED;
  }
  file_lock(F_WRLCK);
  integrate();
  int index = handle ? (int)((uintptr_t)handle - 1) : -1;
  nvmlReturn_t rc = NVML_SUCCESS;
  if (needs_device && (index < 0 || index >= (int)S->ndev)) return NVML_ERROR_INVALID_ARGUMENT;
  for (int i = 0; i < MAXFAIL && rc == NVML_SUCCESS; i++) {
    fake_failure *f = &S->fail[i];
    if (!applies(f, fn, needs_device, index)) continue;
    if (f->left > 0) f->left--;
    rc = f->rc;
  }
  if (index >= 0) *d = &S->dev[index];
  return rc;
}

nvmlReturn_t leave(nvmlReturn_t rc) {
  file_lock(F_UNLCK);
  pthread_mutex_unlock(&mutex);
  return rc;
}

static nvmlReturn_t map_state(void) {
  const char *path = getenv("FAKE_NVML_STATE");
  struct stat st;
  fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof(fake_state))
    return NVML_ERROR_DRIVER_NOT_LOADED;
  fake_state *mapped = mmap(0, sizeof *S, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED || mapped->magic != MAGIC) return NVML_ERROR_DRIVER_NOT_LOADED;
  S = mapped;
  return NVML_SUCCESS;
}

API nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  pthread_mutex_lock(&mutex);
  nvmlReturn_t rc = S ? NVML_SUCCESS : map_state();
  for (int i = 0; !rc && i < MAXFAIL; i++)
    if (!strcmp(S->fail[i].fn, "nvmlInit") && S->fail[i].left) rc = S->fail[i].rc;
  if (!rc) users++;
  pthread_mutex_unlock(&mutex);
  return rc;
}

API nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API nvmlReturn_t nvmlShutdown(void) {
  pthread_mutex_lock(&mutex);
  nvmlReturn_t rc = users ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
  if (users && --users == 0) { /* the next init maps the file anew, as a reloaded driver would */
    munmap(S, sizeof *S);
    close(fd);
    S = 0;
  }
  pthread_mutex_unlock(&mutex);
  return rc;
}

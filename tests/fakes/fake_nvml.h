/* Types shared by the two files of the fake libnvidia-ml.so.1. */
#ifndef FAKE_NVML_H
#define FAKE_NVML_H

#include <stdint.h>

#ifdef USE_NVML_H /* check every signature against NVIDIA's own header */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#else
typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef int nvmlClockType_t, nvmlEnableState_t, nvmlTemperatureSensors_t, nvmlComputeMode_t;
typedef unsigned nvmlDeviceArchitecture_t;
typedef struct {
  unsigned gpu, memory;
} nvmlUtilization_t;
typedef struct {
  unsigned long long total, free, used;
} nvmlMemory_t;
typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;
typedef struct {
  char busIdLegacy[16];
  unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;
typedef struct {
  unsigned pid;
  unsigned long long usedGpuMemory;
  unsigned gi, ci;
} nvmlProcessInfo_t;
typedef struct {
  unsigned version;
  int sensorType;
  int temperature;
} nvmlTemperature_t;
typedef union {
  double dVal;
  int siVal;
  unsigned uiVal;
  unsigned long ulVal;
  unsigned long long ullVal;
  signed long long sllVal;
  unsigned short usVal;
} nvmlValue_t;
typedef struct {
  unsigned fieldId, scopeId;
  long long timestamp, latencyUsec;
  int valueType;
  nvmlReturn_t nvmlReturn;
  nvmlValue_t value;
} nvmlFieldValue_t;
enum {
  NVML_SUCCESS = 0,
  NVML_ERROR_UNINITIALIZED = 1,
  NVML_ERROR_INVALID_ARGUMENT = 2,
  NVML_ERROR_NOT_SUPPORTED = 3,
  NVML_ERROR_NO_PERMISSION = 4,
  NVML_ERROR_NOT_FOUND = 6,
  NVML_ERROR_INSUFFICIENT_SIZE = 7,
  NVML_ERROR_DRIVER_NOT_LOADED = 9
};
#endif

#define API __attribute__((visibility("default")))
#define MAXDEV 16
#define MAXFAIL 32
#define MAXHIST 64
#define MAGIC 0x4c4d564eu

/* ---- the state file: fake_nvml.py holds the same layout, keep both in step ---- */
typedef struct {
  uint64_t ns;
  double used_mj;
} fake_point;

typedef struct {
  char name[96], uuid[80], busid[32];
  uint32_t util, mem_util, temp, mig_mode; /* mig_mode > 1: MIG is not supported */
  uint32_t idle_mw, peak_mw, limit_mw, min_mw, max_mw, default_mw;
  uint32_t sm_max, mem_clk, lock_min, lock_max;
  int64_t power_override_mw; /* < 0: use the model */
  uint64_t mem_total, mem_used;
  double energy_mj; /* what the energy counter shows; integrated on each call */
  uint64_t last_ns;
  uint32_t n_set_limit, n_set_clock;
  uint32_t energy_frozen;  /* != 0: the counter stands still, whatever is drawn */
  uint32_t power_permille; /* what the power sensor shows of the draw; 0: all of it */
  uint32_t power_mean_ms;  /* != 0: nvmlDeviceGetPowerUsage is a mean over so long */
  uint32_t no_instant;     /* the present draw as a field value is 1: not supported, 2: zero */
  uint32_t arch, cc;       /* nvmlDeviceArchitecture_t and compute capability x 10; 0: 9 and 90 */
  uint32_t n_compute, n_mps, compute_mode, n_history;
  uint32_t oob_limit_mw;   /* != 0: an out-of-band limit; the lower of the two is enforced */
  double used_mj;          /* the truth: never frozen, never reset */
  fake_point history[MAXHIST];
} fake_device;

typedef struct {
  char fn[64]; /* "*": every call that takes a device */
  int32_t rc, dev, left, pad; /* dev < 0: every device; left < 0: for ever */
} fake_failure;

typedef struct {
  uint32_t magic, ndev;
  uint32_t set_mode; /* 0: everybody may set, 1: root only, 2: nobody */
  uint32_t energy_supported;
  uint64_t virtual_ns; /* != 0: this is the time */
  char driver[32];
  fake_failure fail[MAXFAIL];
  fake_device dev[MAXDEV];
} fake_state;

extern fake_state *S;

/* Starts a call: takes the locks, brings the energy up to date, applies planned failures. On
 * NVML_ERROR_UNINITIALIZED nothing is held; otherwise `leave` must follow. */
nvmlReturn_t enter(const char *fn, nvmlDevice_t handle, int needs_device, fake_device **d);
nvmlReturn_t leave(nvmlReturn_t rc);

uint64_t now_ns(void);
uint32_t enforced_mw(const fake_device *d);
double sm_clock_mhz(const fake_device *d);
double draw_mw(const fake_device *d);
double sensor_mw(const fake_device *d, int instant); /* what the power sensor shows */

#endif

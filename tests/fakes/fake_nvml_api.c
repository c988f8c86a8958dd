/* Fake libnvidia-ml.so.1, part 2: the entry points. A function that is absent here answers
 * NVML_ERROR_FUNCTION_NOT_FOUND in nvidia-ml-py, which is what an old driver does. */
#include "fake_nvml.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* nvmlReturn_t NAME(nvmlDevice_t device, ...) { BODY } with `d` the device's state. */
#define ON_DEVICE(NAME, PARAMETERS, BODY)                \
  API nvmlReturn_t NAME PARAMETERS {                     \
    fake_device *d = 0;                                  \
    nvmlReturn_t rc = enter(#NAME, device, 1, &d);       \
    if (rc == NVML_ERROR_UNINITIALIZED) return rc;       \
    if (rc) return leave(rc);                            \
    (void)d;                                             \
    BODY return leave(NVML_SUCCESS);                     \
  }
#define ON_SYSTEM(NAME, PARAMETERS, BODY)                \
  API nvmlReturn_t NAME PARAMETERS {                     \
    fake_device *d = 0;                                  \
    nvmlReturn_t rc = enter(#NAME, 0, 0, &d);            \
    if (rc == NVML_ERROR_UNINITIALIZED) return rc;       \
    if (rc) return leave(rc);                            \
    BODY return leave(NVML_SUCCESS);                     \
  }
#define REFUSE(RC) return leave(RC)
#define MAY_SET                                                 \
  if (S->set_mode == 2 || (S->set_mode == 1 && geteuid())) \
    REFUSE(NVML_ERROR_NO_PERMISSION);

static nvmlDevice_t handle_of(unsigned index) { return (nvmlDevice_t)(uintptr_t)(index + 1); }
static unsigned index_of(nvmlDevice_t device) { return (unsigned)((uintptr_t)device - 1); }

API const char *nvmlErrorString(nvmlReturn_t rc) {
  switch ((int)rc) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
  }
}

/* ---- the system and its devices ---- */
ON_SYSTEM(nvmlSystemGetDriverVersion, (char *v, unsigned n), { snprintf(v, n, "%s", S->driver); })
ON_SYSTEM(nvmlSystemGetNVMLVersion, (char *v, unsigned n), { snprintf(v, n, "13.%s", S->driver); })
ON_SYSTEM(nvmlSystemGetCudaDriverVersion, (int *v), { *v = 13000; })
ON_SYSTEM(nvmlSystemGetCudaDriverVersion_v2, (int *v), { *v = 13000; })
ON_SYSTEM(nvmlDeviceGetCount_v2, (unsigned *count), { *count = S->ndev; })

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
  fake_device *d = 0;
  nvmlReturn_t rc = enter(__func__, handle_of(index), 1, &d);
  if (rc == NVML_ERROR_UNINITIALIZED) return rc;
  if (!rc) *out = handle_of(index);
  return leave(rc);
}

ON_SYSTEM(nvmlDeviceGetHandleByUUID, (const char *uuid, nvmlDevice_t *out), {
  for (unsigned i = 0; i < S->ndev; i++)
    if (!strcasecmp(uuid, S->dev[i].uuid)) {
      *out = handle_of(i);
      return leave(NVML_SUCCESS);
    }
  REFUSE(NVML_ERROR_NOT_FOUND);
})
ON_SYSTEM(nvmlDeviceGetHandleByPciBusId_v2, (const char *id, nvmlDevice_t *out), {
  for (unsigned i = 0; i < S->ndev; i++)
    if (!strcasecmp(id, S->dev[i].busid)) {
      *out = handle_of(i);
      return leave(NVML_SUCCESS);
    }
  REFUSE(NVML_ERROR_NOT_FOUND);
})
ON_DEVICE(nvmlDeviceGetIndex, (nvmlDevice_t device, unsigned *v), { *v = index_of(device); })
ON_DEVICE(nvmlDeviceGetMinorNumber, (nvmlDevice_t device, unsigned *v), { *v = index_of(device); })
ON_DEVICE(nvmlDeviceGetName, (nvmlDevice_t device, char *v, unsigned n),
          { snprintf(v, n, "%s", d->name); })
ON_DEVICE(nvmlDeviceGetUUID, (nvmlDevice_t device, char *v, unsigned n),
          { snprintf(v, n, "%s", d->uuid); })
ON_DEVICE(nvmlDeviceGetPciInfo_v3, (nvmlDevice_t device, nvmlPciInfo_t *pci), {
  memset(pci, 0, sizeof *pci);
  snprintf(pci->busId, sizeof pci->busId, "%s", d->busid);
  memcpy(pci->busIdLegacy, d->busid + 4, 12);
  pci->bus = index_of(device) + 1;
})
ON_DEVICE(nvmlDeviceGetCudaComputeCapability, (nvmlDevice_t device, int *major, int *minor), {
  *major = (int)(d->cc ? d->cc : 90) / 10;
  *minor = (int)(d->cc ? d->cc : 90) % 10;
})
ON_DEVICE(nvmlDeviceGetArchitecture, (nvmlDevice_t device, nvmlDeviceArchitecture_t *v),
          { *v = d->arch ? d->arch : 9; })
ON_DEVICE(nvmlDeviceGetComputeMode, (nvmlDevice_t device, nvmlComputeMode_t *mode),
          { *mode = (nvmlComputeMode_t)d->compute_mode; })

/* ---- power and energy ---- */
ON_DEVICE(nvmlDeviceGetPowerUsage, (nvmlDevice_t device, unsigned *mw),
          { *mw = (unsigned)lround(sensor_mw(d, 0)); })
ON_DEVICE(nvmlDeviceGetTotalEnergyConsumption, (nvmlDevice_t device, unsigned long long *mj), {
  if (!S->energy_supported) REFUSE(NVML_ERROR_NOT_SUPPORTED);
  *mj = (unsigned long long)d->energy_mj;
})
ON_DEVICE(nvmlDeviceGetPowerManagementLimit, (nvmlDevice_t device, unsigned *mw),
          { *mw = d->limit_mw; })
ON_DEVICE(nvmlDeviceGetEnforcedPowerLimit, (nvmlDevice_t device, unsigned *mw),
          { *mw = enforced_mw(d); })
ON_DEVICE(nvmlDeviceGetPowerManagementDefaultLimit, (nvmlDevice_t device, unsigned *mw),
          { *mw = d->default_mw; })
ON_DEVICE(nvmlDeviceGetPowerManagementLimitConstraints,
          (nvmlDevice_t device, unsigned *min_mw, unsigned *max_mw), {
            *min_mw = d->min_mw;
            *max_mw = d->max_mw;
          })
ON_DEVICE(nvmlDeviceSetPowerManagementLimit, (nvmlDevice_t device, unsigned mw), {
  MAY_SET
  if (mw < d->min_mw || mw > d->max_mw) REFUSE(NVML_ERROR_INVALID_ARGUMENT);
  d->limit_mw = mw;
  d->n_set_limit++;
})

/* ---- clocks ---- */
ON_DEVICE(nvmlDeviceSetGpuLockedClocks, (nvmlDevice_t device, unsigned low, unsigned high), {
  MAY_SET
  if (!high || low > high || high > d->sm_max) REFUSE(NVML_ERROR_INVALID_ARGUMENT);
  d->lock_min = low;
  d->lock_max = high;
  d->n_set_clock++;
})
ON_DEVICE(nvmlDeviceResetGpuLockedClocks, (nvmlDevice_t device), {
  MAY_SET
  d->lock_min = d->lock_max = 0;
  d->n_set_clock++;
})
ON_DEVICE(nvmlDeviceGetClockInfo, (nvmlDevice_t device, nvmlClockType_t type, unsigned *mhz),
          { *mhz = type == 2 ? d->mem_clk : (unsigned)sm_clock_mhz(d); })
ON_DEVICE(nvmlDeviceGetMaxClockInfo, (nvmlDevice_t device, nvmlClockType_t type, unsigned *mhz),
          { *mhz = type == 2 ? d->mem_clk : d->sm_max; })

static unsigned long long event_reasons(const fake_device *d) {
  if (!d->util) return 1; /* idle */
  unsigned reachable = d->lock_max ? d->lock_max : d->sm_max;
  return sm_clock_mhz(d) + 1 < reachable ? 4 : 0; /* software power cap */
}
ON_DEVICE(nvmlDeviceGetCurrentClocksEventReasons,
          (nvmlDevice_t device, unsigned long long *v), { *v = event_reasons(d); })
ON_DEVICE(nvmlDeviceGetCurrentClocksThrottleReasons,
          (nvmlDevice_t device, unsigned long long *v), { *v = event_reasons(d); })

/* ---- the rest of what Ray and GPU telemetry ask for ---- */
ON_DEVICE(nvmlDeviceGetUtilizationRates, (nvmlDevice_t device, nvmlUtilization_t *v), {
  v->gpu = d->util;
  v->memory = d->mem_util;
})
ON_DEVICE(nvmlDeviceGetMemoryInfo, (nvmlDevice_t device, nvmlMemory_t *v), {
  v->total = d->mem_total;
  v->used = d->mem_used;
  v->free = d->mem_total - d->mem_used;
})
ON_DEVICE(nvmlDeviceGetMemoryInfo_v2, (nvmlDevice_t device, nvmlMemory_v2_t *v), {
  v->total = d->mem_total;
  v->reserved = 0;
  v->used = d->mem_used;
  v->free = d->mem_total - d->mem_used;
})
ON_DEVICE(nvmlDeviceGetTemperature,
          (nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned *celsius), {
            (void)sensor;
            *celsius = d->temp;
          })
ON_DEVICE(nvmlDeviceGetTemperatureV, (nvmlDevice_t device, nvmlTemperature_t *v),
          { v->temperature = (int)d->temp; })
ON_DEVICE(nvmlDeviceGetMigMode, (nvmlDevice_t device, unsigned *current, unsigned *pending), {
  if (d->mig_mode > 1) REFUSE(NVML_ERROR_NOT_SUPPORTED);
  *current = *pending = d->mig_mode;
})
ON_DEVICE(nvmlDeviceGetPersistenceMode, (nvmlDevice_t device, nvmlEnableState_t *mode),
          { *mode = 1; })
static nvmlReturn_t list_processes(unsigned have, unsigned *count, nvmlProcessInfo_t *infos) {
  unsigned room = *count;
  *count = have;
  if (room < have) return NVML_ERROR_INSUFFICIENT_SIZE;
  for (unsigned i = 0; i < have; i++) infos[i] = (nvmlProcessInfo_t){1000 + i, 1ull << 30, ~0u, ~0u};
  return NVML_SUCCESS;
}
ON_DEVICE(nvmlDeviceGetComputeRunningProcesses_v3,
          (nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos),
          { REFUSE(list_processes(d->n_compute, count, infos)); })
ON_DEVICE(nvmlDeviceGetMPSComputeRunningProcesses_v3,
          (nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos),
          { REFUSE(list_processes(d->n_mps, count, infos)); })
ON_DEVICE(nvmlDeviceGetGraphicsRunningProcesses_v3,
          (nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos), {
            (void)infos;
            *count = 0;
          })

/* Field ids of nvml.h: 83 and 191 energy, 185 average and 186 instant power, 187-192 limits. */
static void field_value(const fake_device *d, nvmlFieldValue_t *v) {
  v->nvmlReturn = NVML_SUCCESS;
  v->valueType = 1; /* unsigned int */
  v->timestamp = (long long)(now_ns() / 1000);
  v->latencyUsec = 0;
  switch (v->fieldId) {
    case 83:
    case 191:
      v->valueType = 3; /* unsigned long long */
      v->value.ullVal = (unsigned long long)d->energy_mj;
      if (!S->energy_supported) v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
      break;
    case 185: v->value.uiVal = (unsigned)lround(sensor_mw(d, 0)); break;
    case 186:
      v->value.uiVal = (unsigned)lround(sensor_mw(d, 1));
      if (d->no_instant == 1) v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
      if (d->no_instant == 2) v->value.uiVal = 0;
      break;
    case 187: v->value.uiVal = d->min_mw; break;
    case 188: v->value.uiVal = d->max_mw; break;
    case 189: v->value.uiVal = d->default_mw; break;
    case 190: v->value.uiVal = enforced_mw(d); break;
    case 192: v->value.uiVal = d->limit_mw; break;
    default: v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
  }
}
ON_DEVICE(nvmlDeviceGetFieldValues, (nvmlDevice_t device, int count, nvmlFieldValue_t *values), {
  for (int i = 0; i < count; i++) field_value(d, &values[i]);
})

/* A GPU management library without a GPU: the NVML entry points that the harness calls, over scripted power.
 *
 * The script is the text file that FAKE_NVML names; README.md describes it. Power is a periodic table of (seconds, watts),
 * stepwise or linear, whose integral is exact; the energy counter publishes that integral, times the sensor's gain, in whole
 * millijoules once a period; the power fields publish the mean over a window that ends at their own update. Everything is a
 * function of time alone, so two processes that read one script see one GPU.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { FIELD_COUNTER = 83, FIELD_AVERAGE = 185, FIELD_INSTANT = 186, FIELD_POWER_CAPPED = 74, FIELD_HEAT_CAPPED = 75 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1, SCOPE_MEMORY = 2 };
enum { MAX_GPUS = 16, MAX_KNOTS = 4096, MAX_FAULTS = 16 };

typedef int Status;

typedef struct {
    char kind[24];
    char what[24];
    double at;
    double value;
} Fault;

typedef struct {
    double period, window, phase, jitter;
} Sensor;

typedef struct {
    int index;
    int knots, linear, repeats;
    double t[MAX_KNOTS], w[MAX_KNOTS], e[MAX_KNOTS]; /* seconds, watts, joules since the table's start */
    double length, base_j;
    Sensor counter, average, instant;
    double gain, counter_gain, gain_from, noise, memory_share, lag, power_lag;
    double limit_w, default_limit_w, celsius, celsius_per_s;
    double ask_latency, latency, slow_latency, slow_s; /* busy seconds of a call, and of one that starts within slow_s of an update */
    unsigned sm_mhz, utilisation;
    Fault faults[MAX_FAULTS];
    int fault_count;
    char name[64];
} Gpu;

typedef struct { uint32_t field, scope; int64_t timestamp, latency; uint32_t type, status;
                 union { double d; uint32_t ui; uint64_t ull; } value; } FieldValue;
typedef struct { uint32_t pid; unsigned long long memory; uint32_t instance, compute; } Process;
typedef struct { uint32_t version; uint32_t sensor; int32_t celsius; } Temperature;
typedef struct { char legacy[16]; uint32_t domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

static Gpu gpus[MAX_GPUS];
static int gpu_count, loaded, virtual_clock;
static double virtual_now, origin;
static uint64_t seed;
static char driver[64];

/* ---- time and chance ---- */

void fake_nvml_set_time(double seconds) { virtual_now = seconds; }
double fake_nvml_time(void) { return virtual_now; }

static double now(void) {
    struct timespec ts;
    if (virtual_clock) return virtual_now;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec * 1e-9 - origin;
}

/* splitmix64: a well mixed number for each (gpu, stream, tick), so that noise depends on time alone */
static double uniform(const Gpu *g, int stream, int64_t tick) {
    uint64_t x = seed + 0x9e3779b97f4a7c15ULL * (uint64_t)(tick * 64 + stream * 8 + g->index + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return ((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

static double gaussian(const Gpu *g, int stream, int64_t tick) {
    double u = uniform(g, stream, tick), v = uniform(g, stream + 1, tick);
    return sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * v);
}

/* ---- power and energy ---- */

static double within(const Gpu *g, double t) { /* joules in the table's first t seconds */
    int lo = 0, hi = g->knots - 1;
    while (lo < hi) { int mid = (lo + hi + 1) / 2; if (g->t[mid] <= t) lo = mid; else hi = mid - 1; }
    double dt = t - g->t[lo], w = g->w[lo];
    if (g->linear && lo + 1 < g->knots) {
        double slope = (g->w[lo + 1] - w) / (g->t[lo + 1] - g->t[lo]);
        return g->e[lo] + w * dt + slope * dt * dt / 2;
    }
    return g->e[lo] + w * dt;
}

static double energy(const Gpu *g, double t) { /* true joules since t = 0; before it, the first value held */
    if (t < 0) return g->w[0] * t;
    if (!g->repeats) return within(g, t);
    double turns = floor(t / g->length);
    return turns * within(g, g->length) + within(g, t - turns * g->length);
}

double fake_nvml_energy(int index, double from, double to) { return energy(&gpus[index], to) - energy(&gpus[index], from); }

static double update(const Gpu *g, const Sensor *s, int stream, double t, int64_t *tick) {
    int64_t k = (int64_t)floor((t - s->phase) / s->period) + 1;
    for (;; k--) {
        double u = s->phase + k * s->period + s->jitter * (uniform(g, stream, k) - 0.5);
        if (u <= t) { *tick = k; return u; }
    }
}

static const Fault *fault(const Gpu *g, const char *kind, const char *what, double t) {
    for (int i = 0; i < g->fault_count; i++) {
        const Fault *f = &g->faults[i];
        if (!strcmp(f->kind, kind) && (t >= f->at || f->at == 0) && (!what || !strcmp(f->what, what))) return f;
    }
    return NULL;
}

static uint64_t counter_mj(const Gpu *g, double t) {
    int64_t tick;
    const Fault *stuck = fault(g, "stuck", NULL, t), *reset, *jump;
    if (stuck && t > stuck->at) t = stuck->at;
    double u = update(g, &g->counter, 0, t, &tick), base = g->base_j + energy(g, 0);
    if ((reset = fault(g, "reset", NULL, u))) return (uint64_t)floor(1000 * g->gain * fake_nvml_energy(g->index, reset->at, u));
    double wrapped = fault(g, "wrap", NULL, u) ? 4294967.296 : 0;
    if ((jump = fault(g, "jump", NULL, u))) base += jump->value;
    double counted = energy(g, u - g->lag), before = fmin(counted, energy(g, g->gain_from));
    return (uint64_t)floor(1000 * (base - wrapped + g->gain * (before + g->counter_gain * (counted - before))));
}

static uint32_t power_mw(const Gpu *g, const Sensor *s, int stream, double share, double t) {
    int64_t tick;
    double u = update(g, s, stream, t, &tick);
    double end = u - g->power_lag, mean = (energy(g, end) - energy(g, end - s->window)) / s->window;
    double w = share * g->gain * mean + g->noise * gaussian(g, stream + 1, tick);
    return (uint32_t)lround(1000 * (w > 0 ? w : 0));
}

static void work(double seconds) { /* busy, as a driver that polls the GPU is */
    if (virtual_clock) { virtual_now += seconds; return; }
    for (double until = now() + seconds; now() < until;) {}
}

static double answer_after_work(const Gpu *g, double t) { /* the instant, within the call, whose values it returns */
    int64_t tick;
    double since = t - update(g, &g->counter, 0, t, &tick), seconds = since < g->slow_s ? g->slow_latency : g->latency;
    double at = uniform(g, 6, (int64_t)(t * 1e6)), length = seconds * (0.85 + 0.3 * uniform(g, 5, (int64_t)(t * 1e6)));
    if (seconds <= 0) return t;
    work(at * length);
    t = now();
    work((1 - at) * length);
    return t;
}

static Status refused(const Gpu *g, const char *what, double t) {
    if (fault(g, "lost", NULL, t)) return GPU_IS_LOST;
    if (fault(g, "hang", NULL, t)) sleep(3600);
    if (fault(g, "unsupported", what, t)) return NOT_SUPPORTED;
    if (fault(g, "no_permission", what, t)) return NO_PERMISSION;
    return OK;
}

/* ---- the script ---- */

static void table(Gpu *g, int linear, int repeats, double length) {
    g->linear = linear; g->repeats = repeats; g->length = length;
    g->e[0] = 0;
    for (int i = 1; i < g->knots; i++) {
        double dt = g->t[i] - g->t[i - 1];
        g->e[i] = g->e[i - 1] + dt * (linear ? (g->w[i] + g->w[i - 1]) / 2 : g->w[i - 1]);
    }
}

static void knot(Gpu *g, double t, double w) {
    if (g->knots < MAX_KNOTS) { g->t[g->knots] = t; g->w[g->knots++] = w; }
}

static int wave(Gpu *g, const char *kind, const char *rest) {
    double a = 0, b = 0, c = 0, d = 0;
    int used = 0, n = sscanf(rest, "%lf %lf %lf %lf", &a, &b, &c, &d);
    g->knots = 0;
    if (!strcmp(kind, "constant") && n >= 1) { knot(g, 0, a); table(g, 0, 0, 0); }
    else if (!strcmp(kind, "square") && n >= 3) { /* low high period [share of the period that is high] */
        knot(g, 0, b); knot(g, c * (n > 3 ? d : 0.5), a); table(g, 0, 1, c);
    } else if (!strcmp(kind, "ramp") && n >= 3) { knot(g, 0, a); knot(g, c, b); table(g, 1, 1, c); }
    else if (!strcmp(kind, "burst") && n == 4) { /* idle peak start length */
        knot(g, 0, a); knot(g, c, b); knot(g, c + d, a); table(g, 0, 0, 0);
    } else if (!strcmp(kind, "steps") && n >= 2) { /* seconds watts, again and again */
        double t = 0;
        while (sscanf(rest, "%lf %lf%n", &a, &b, &used) == 2) { knot(g, t, b); t += a; rest += used; }
        table(g, 0, 1, t);
    } else if (!strcmp(kind, "trace")) { /* a file of seconds,watts; the last value is held */
        char path[512], line[128];
        FILE *f = sscanf(rest, "%511s", path) == 1 ? fopen(path, "r") : NULL;
        if (!f) return 0;
        while (fgets(line, sizeof line, f)) if (sscanf(line, "%lf,%lf", &a, &b) == 2) knot(g, a, b);
        fclose(f);
        table(g, 1, 0, 0);
    } else return 0;
    return g->knots > 0;
}

static int sensor(Sensor *s, const char *rest) { /* period [window [phase [jitter]]] */
    double p = 0, w = 0, ph = 0, j = 0;
    if (sscanf(rest, "%lf %lf %lf %lf", &p, &w, &ph, &j) < 1 || p <= 0) return 0;
    *s = (Sensor){p, w > 0 ? w : p, ph, j};
    return 1;
}

/* An NVIDIA H100 80GB as measured on 2026-11-26 (driver 580.159.04): docs/energy.md. The counter's phase and its lag
 * are drawn by the seed. */
static int profile(Gpu *g, const char *rest) {
    char word[24];
    if (sscanf(rest, "%23s", word) != 1 || strcmp(word, "h100")) return 0;
    double power_phase = 0.1 * uniform(g, 3, 1);
    g->counter = (Sensor){0.1000016, 0.1, 0.1 * uniform(g, 3, 2), 0};
    g->lag = 0.005 + 0.010 * uniform(g, 3, 3);
    g->average = (Sensor){0.10046, 1.0, power_phase, 0};
    g->instant = (Sensor){0.10046, 0.025, power_phase, 0};
    g->power_lag = 0.014;
    g->latency = 0.0033; g->slow_latency = 0.016; g->slow_s = 0.010;
    g->limit_w = g->default_limit_w = 700;
    snprintf(g->name, sizeof g->name, "NVIDIA H100 80GB HBM3");
    return 1;
}

static int setting(Gpu *g, const char *key, const char *rest) {
    char word[24];
    int used = 0;
    if (!strcmp(key, "wave")) return sscanf(rest, "%23s%n", word, &used) == 1 && wave(g, word, rest + used);
    if (!strcmp(key, "counter")) return sensor(&g->counter, rest);
    if (!strcmp(key, "average")) return sensor(&g->average, rest);
    if (!strcmp(key, "instant")) return sensor(&g->instant, rest);
    if (!strcmp(key, "profile")) return profile(g, rest);
    if (!strcmp(key, "name")) { while (*rest == ' ') rest++; snprintf(g->name, sizeof g->name, "%s", rest); return 1; }
    if (!strcmp(key, "fault")) { /* kind, seconds from which, [what it strikes | value] */
        Fault *f = &g->faults[g->fault_count];
        char last[24] = "";
        if (g->fault_count == MAX_FAULTS || sscanf(rest, "%23s %lf %23s", f->kind, &f->at, last) < 2) return 0;
        strcpy(f->what, last);
        f->value = strtod(last, NULL);
        g->fault_count++;
        return 1;
    }
    double value = strtod(rest, NULL);
    struct { const char *key; double *to; } numbers[] = {
        {"gain", &g->gain}, {"noise", &g->noise}, {"memory_share", &g->memory_share}, {"base", &g->base_j},
        {"limit", &g->limit_w}, {"default_limit", &g->default_limit_w}, {"celsius", &g->celsius},
        {"celsius_per_s", &g->celsius_per_s}, {"counter_gain", &g->counter_gain}, {"gain_from", &g->gain_from},
        {"lag", &g->lag}, {"power_lag", &g->power_lag}, {"latency", &g->latency}, {"slow_latency", &g->slow_latency},
        {"slow_s", &g->slow_s}, {"ask_latency", &g->ask_latency}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) { *numbers[i].to = value; return 1; }
    return 0;
}

static void initial(Gpu *g, int index) {
    memset(g, 0, sizeof *g);
    g->index = index; g->gain = g->counter_gain = 1; g->gain_from = -1e9; g->lag = 0.010; g->base_j = 100000; g->memory_share = 0.2; g->celsius = 55;
    g->limit_w = g->default_limit_w = 400; g->sm_mhz = 1410; g->utilisation = 90;
    g->counter = (Sensor){0.1, 0.1, 0.013 * index, 0};
    g->average = (Sensor){0.1, 1.0, 0, 0};
    g->instant = (Sensor){0.1, 0.025, 0, 0};
    strcpy(g->name, "Simulated GPU");
    wave(g, "constant", "100");
}

static int script(void) {
    const char *path = getenv("FAKE_NVML");
    char line[65536], key[24];
    int used = 0, number = 0;
    FILE *f = path ? fopen(path, "r") : NULL;
    gpu_count = 1; origin = 0; virtual_clock = 0; seed = 1;
    strcpy(driver, "570.00-simulated");
    for (int i = 0; i < MAX_GPUS; i++) initial(&gpus[i], i);
    if (!path) return 1;
    if (!f) { fprintf(stderr, "fake NVML: cannot read %s\n", path); return 0; }
    while (fgets(line, sizeof line, f)) {
        int first = 0, last = MAX_GPUS - 1, one;
        char *rest = line;
        number++;
        line[strcspn(line, "#\n")] = 0;
        if (sscanf(rest, " gpu %d%n", &one, &used) == 1 && one >= 0 && one < MAX_GPUS) { first = last = one; rest += used; }
        if (sscanf(rest, "%23s%n", key, &used) != 1) continue;
        rest += used;
        int good = 1;
        if (!strcmp(key, "gpus")) good = (gpu_count = atoi(rest)) >= 0 && gpu_count <= MAX_GPUS;
        else if (!strcmp(key, "clock")) virtual_clock = strstr(rest, "virtual") != NULL;
        else if (!strcmp(key, "origin")) origin = strtod(rest, NULL);
        else if (!strcmp(key, "seed")) seed = strtoull(rest, NULL, 10);
        else if (!strcmp(key, "driver")) good = sscanf(rest, "%63s", driver) == 1;
        else for (int i = first; i <= last; i++) good = good && setting(&gpus[i], key, rest);
        if (!good) { fprintf(stderr, "fake NVML: %s:%d: not understood: %s\n", path, number, line); fclose(f); return 0; }
    }
    fclose(f);
    return 1;
}

/* ---- NVML ---- */

#define GPU(handle) Gpu *g = (Gpu *)(handle); double t = now(); Status status; (void)t; if (!loaded) return UNINITIALIZED
#define REFUSE(what) do { work(g->ask_latency); if ((status = refused(g, what, t))) return status; } while (0)

Status nvmlInitWithFlags(unsigned flags) { (void)flags; if (!loaded && !script()) return UNINITIALIZED; loaded++; return OK; }
Status nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Status nvmlShutdown(void) { if (!loaded) return UNINITIALIZED; loaded--; return OK; }

const char *nvmlErrorString(Status status) {
    switch (status) {
    case OK: return "Success";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Simulated error";
    }
}

static Status text(char *to, unsigned size, const char *from) { snprintf(to, size, "%s", from); return OK; }
Status nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(to, size, driver); }
Status nvmlSystemGetNVMLVersion(char *to, unsigned size) { return text(to, size, "12.570.00-simulated"); }
Status nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12080; return OK; }
Status nvmlDeviceGetCount_v2(unsigned *count) { *count = gpu_count; return loaded ? OK : UNINITIALIZED; }
Status nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (!loaded) return UNINITIALIZED;
    if ((int)index >= gpu_count) return INVALID_ARGUMENT;
    *handle = &gpus[index];
    return OK;
}
static void uuid(const Gpu *g, char *to, unsigned size) {
    snprintf(to, size, "GPU-%08x-0000-0000-0000-%012x", fault(g, "uuid", NULL, now()) ? 0xdeadu : 0x51u, g->index);
}
Status nvmlDeviceGetHandleByUUID(const char *wanted, void **handle) {
    char own[80];
    for (int i = 0; i < gpu_count; i++) { uuid(&gpus[i], own, sizeof own); if (!strcmp(own, wanted)) { *handle = &gpus[i]; return OK; } }
    return NOT_FOUND;
}
Status nvmlDeviceGetName(void *handle, char *to, unsigned size) { GPU(handle); REFUSE("name"); return text(to, size, g->name); }
Status nvmlDeviceGetUUID(void *handle, char *to, unsigned size) { GPU(handle); REFUSE("uuid"); uuid(g, to, size); return OK; }
Status nvmlDeviceGetIndex(void *handle, unsigned *to) { GPU(handle); REFUSE("index"); *to = g->index; return OK; }
Status nvmlDeviceGetArchitecture(void *handle, unsigned *to) { GPU(handle); REFUSE("architecture"); *to = 7; return OK; }
Status nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    GPU(handle); REFUSE("capability"); *major = 8; *minor = 0; return OK;
}
Status nvmlDeviceGetPciInfo_v3(void *handle, Pci *to) {
    GPU(handle); REFUSE("pci");
    memset(to, 0, sizeof *to);
    to->bus = g->index + 1;
    snprintf(to->bus_id, sizeof to->bus_id, "00000000:%02X:00.0", g->index + 1);
    return OK;
}
Status nvmlDeviceGetPersistenceMode(void *handle, unsigned *to) {
    GPU(handle); REFUSE("persistence"); *to = !fault(g, "unloads", NULL, t); return OK;
}
Status nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *to) {
    GPU(handle); REFUSE("counter"); *to = counter_mj(g, t); return OK;
}
Status nvmlDeviceGetPowerUsage(void *handle, unsigned *to) {
    GPU(handle); REFUSE("average"); *to = power_mw(g, &g->average, 2, 1, t); return OK;
}
Status nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *to) {
    GPU(handle); REFUSE("limit"); *to = (unsigned)(1000 * g->limit_w); return OK;
}
Status nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *to) { return nvmlDeviceGetPowerManagementLimit(handle, to); }
Status nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *to) {
    GPU(handle); REFUSE("limit"); *to = (unsigned)(1000 * g->default_limit_w); return OK;
}
static int celsius(const Gpu *g, double t) { return (int)(g->celsius + g->celsius_per_s * (t > 0 ? t : 0)); }
Status nvmlDeviceGetTemperature(void *handle, unsigned which, unsigned *to) {
    (void)which; GPU(handle); REFUSE("temperature"); *to = celsius(g, t); return OK;
}
Status nvmlDeviceGetTemperatureV(void *handle, Temperature *to) {
    GPU(handle); REFUSE("temperature"); to->celsius = celsius(g, t); return OK;
}
Status nvmlDeviceGetClockInfo(void *handle, unsigned which, unsigned *to) {
    GPU(handle); REFUSE("clocks"); *to = which == 2 ? 1593 : g->sm_mhz; return OK;
}
Status nvmlDeviceGetMaxClockInfo(void *handle, unsigned which, unsigned *to) { return nvmlDeviceGetClockInfo(handle, which, to); }
Status nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *to) {
    GPU(handle); REFUSE("throttle");
    const Fault *f = fault(g, "throttle", NULL, t);
    *to = f ? (unsigned long long)f->value : 0;
    return OK;
}
Status nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *to) {
    return nvmlDeviceGetCurrentClocksEventReasons(handle, to);
}
Status nvmlDeviceGetUtilizationRates(void *handle, unsigned *to) {
    GPU(handle); REFUSE("utilisation"); to[0] = to[1] = g->utilisation; return OK;
}
Status nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *to) {
    GPU(handle); REFUSE("memory"); 
    const Fault *f = fault(g, "memory", NULL, t);
    to[0] = 80ULL << 30; to[2] = f ? (unsigned long long)(f->value * (1ULL << 30)) : 20ULL << 30; to[1] = to[0] - to[2];
    return OK;
}
Status nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    GPU(handle); REFUSE("mig"); *current = *pending = fault(g, "mig", NULL, t) != NULL; return OK;
}
Status nvmlDeviceGetC2cModeInfoV(void *handle, unsigned *to) {
    GPU(handle); REFUSE("c2c");
    if (!fault(g, "module", NULL, t)) return NOT_SUPPORTED;
    *to = 1;
    return OK;
}
Status nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *to) {
    GPU(handle); REFUSE("processes");
    const Fault *tenant = fault(g, "tenant", NULL, t);
    unsigned room = *count;
    *count = tenant != NULL;
    if (!tenant) return OK;
    if (room < 1 || !to) return INSUFFICIENT_SIZE;
    to[0] = (Process){(uint32_t)(tenant->value > 0 ? tenant->value : 1), 1ULL << 30, ~0u, ~0u};
    return OK;
}
static uint64_t capped_ns(const Gpu *g, int bits, double t) { /* a counter from 0 at the fault's beginning */
    const Fault *f = fault(g, "throttle", NULL, t);
    return f && ((int)f->value & bits) ? (uint64_t)(1e9 * (t - f->at + 1000)) : 0;
}
#ifndef NO_FIELDS
Status nvmlDeviceGetFieldValues(void *handle, int count, FieldValue *fields) {
    GPU(handle);
    if ((status = refused(g, "fields", t))) return status;
    t = answer_after_work(g, t);
    for (int i = 0; i < count; i++) {
        FieldValue *f = &fields[i];
        int module = fault(g, "module", NULL, t) != NULL, memory = f->scope == SCOPE_MEMORY;
        const char *what = f->field == FIELD_COUNTER ? "counter" : memory ? "memory_power" : f->field == FIELD_AVERAGE ? "average" : "instant";
        f->timestamp = (int64_t)(t * 1e6);
        f->latency = 0;
        f->status = refused(g, what, t);
        if (f->scope == SCOPE_MODULE && !module) f->status = NOT_SUPPORTED;
        if (f->scope == SCOPE_GPU && module && f->field >= FIELD_AVERAGE) f->status = NOT_SUPPORTED;
        if (f->status) continue;
        double share = (memory ? g->memory_share : 1) * (f->scope == SCOPE_MODULE ? 1.4 : 1);
        if (f->field == FIELD_COUNTER) { f->type = 3; f->value.ull = counter_mj(g, t); }
        else if (f->field == FIELD_AVERAGE) { f->type = 1; f->value.ui = power_mw(g, &g->average, 2, share, t); }
        else if (f->field == FIELD_INSTANT && !memory) { f->type = 1; f->value.ui = power_mw(g, &g->instant, 4, share, t); }
        else if (f->field == FIELD_POWER_CAPPED) { f->type = 3; f->value.ull = capped_ns(g, 0x04, t); }
        else if (f->field == FIELD_HEAT_CAPPED) { f->type = 3; f->value.ull = capped_ns(g, 0x60, t); }
        else f->status = NOT_SUPPORTED;
    }
    return OK;
}
#endif

// The kernels in what every processor of the architecture has (SSE2, NEON): 4 floats a vector.

#define VISIONLLM_LANES 4
#define VISIONLLM_TABLE kPortableKernels
#define VISIONLLM_NAME "portable"
#include "kernels_body.h"

/* Do-nothing stand-ins for three CUDA libraries, so that the registry's CUDA-linked torchvision and torchaudio wheels,
 * which use torch's stable C interface, load on a CPU torch and run their real CPU kernels there.
 *
 * Built three times (devkit/environment.py): -DCUDART (libcudart.so.13), -DTORCH (libtorch_cuda.so), and with neither
 * (libc10_cuda.so, which only has to exist). Nothing here is ever called with a device present: every function answers
 * "no device". */
#define NO_DEVICE(name) \
  int name(void) { return 100; /* cudaErrorNoDevice */ }

#ifdef CUDART
NO_DEVICE(__cudaGetKernel)
NO_DEVICE(__cudaLaunchKernel)
NO_DEVICE(__cudaPopCallConfiguration)
NO_DEVICE(__cudaPushCallConfiguration)
NO_DEVICE(cudaDeviceGetAttribute)
NO_DEVICE(cudaDeviceSynchronize)
NO_DEVICE(cudaGetDevice)
NO_DEVICE(cudaGetLastError)
NO_DEVICE(cudaMemcpyAsync)
NO_DEVICE(cudaMemcpy2DAsync)
NO_DEVICE(cudaMemset)
NO_DEVICE(cudaMemsetAsync)
NO_DEVICE(cudaSetDevice)
NO_DEVICE(cudaStreamSynchronize)

const char *cudaGetErrorName(int error) {
  (void)error;
  return "cudaErrorNoDevice";
}

/* Static initialisers of the wheels register their kernels through these. */
void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  (void)binary;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterFunction(void) {}
void __cudaRegisterVar(void) {}
#endif

#ifdef TORCH
NO_DEVICE(aoti_torch_get_current_cuda_stream)
NO_DEVICE(torch_c10_cuda_check_msg)
NO_DEVICE(torch_c10_cuda_free_error_msg)
NO_DEVICE(torch_cuda_stream_synchronize)
NO_DEVICE(torch_get_cuda_stream_from_pool)
NO_DEVICE(torch_set_current_cuda_stream)
#endif

"""What all kernels use: compilation, its cache, threads, memory, the declaration of ops."""

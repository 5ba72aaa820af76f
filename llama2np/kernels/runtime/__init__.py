"""How numba is made to do it: compiling, the cache, threads, memory, the declaration of ops."""

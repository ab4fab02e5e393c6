"""Where nbattn meets other libraries: modules that plug it in, loaded only when asked for."""

"""Complete models: the four published ones, and those of a training configuration."""

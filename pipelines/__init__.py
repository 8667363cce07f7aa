"""CorrDiff at scale: Ray Data, Ray Train and DeepSpeed around the codec in `corrdiff`."""

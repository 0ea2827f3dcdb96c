"""Self-supervised objectives: one file each, with its Config and its Model; blocks, backbone and storage are shared."""
